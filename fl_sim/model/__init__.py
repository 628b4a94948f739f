"""Models: ours and from outside, as functions of their flat parameters, in the burn-in and at the end of a run."""
