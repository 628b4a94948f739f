"""Baselines: known attacks from the literature."""
