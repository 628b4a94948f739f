"""Benchmarks of how the cost of a round grows."""
