"""Randomness as an argument."""
