"""Benchmarks of ours against stock Flower, a hand-written loop and pfl-research. `python -m experiments.benchmarks --help`."""
