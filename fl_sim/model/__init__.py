"""Architectures, the model as a function of its flat parameters, the burn-in."""
