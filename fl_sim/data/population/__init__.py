"""Populations of any size, of which nothing is stored."""
