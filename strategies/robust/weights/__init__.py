"""Defences that weigh clients or coordinates."""
