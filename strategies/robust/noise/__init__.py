"""Defences that bound updates and add noise."""
