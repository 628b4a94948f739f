"""Attacks that were made to break one defence: `-c attack.name=experiments.benchmarks.attacks.<module>:<name>`."""
