"""Attacks that everybody compares with."""
