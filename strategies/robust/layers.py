"""Which part of theta belongs to which layer."""

from __future__ import annotations

from fl_sim.model.flat_model import FlatModel


def output_layer(model: FlatModel) -> slice:
    """The place in theta (d,) of the last layer: its weights, the last parameter with two or more dimensions, and what follows them (the
    bias). All of theta if there are no such weights."""
    first, position = 0, 0
    for shape in model.layout.values():
        first = position if len(shape) >= 2 else first
        position += shape.numel()
    return slice(first, position)
