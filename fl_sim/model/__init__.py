"""Models of ours and from outside, the model as a function of its flat parameters, the burn-in, the last model of a run."""
