"""Defences that leave out clients."""
