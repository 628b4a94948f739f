"""Checks of the options of a defence: one sentence with the option, what is allowed, and the value."""

from __future__ import annotations

import math

from strategies.rule import OptionError


def number(name: str, value: object, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> None:
    """Raises OptionError unless a value is a finite number > above, >= least and <= most."""
    limits = [
        f"> {above:g}" * (above > -math.inf),
        f">= {least:g}" * (least > -math.inf),
        f"<= {most:g}" * (most < math.inf),
    ]
    expected = f"expected strategy.options.{name} to be a number {' and '.join(filter(None, limits))}".rstrip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise OptionError(f"{expected}, got {value!r}")
    if not (value > above and least <= value <= most):
        raise OptionError(f"{expected}, got {value!r}")


def whole(name: str, value: object, *, least: int = 0, most: float = math.inf) -> None:
    """Raises OptionError unless a value is a whole number from least to most."""
    if type(value) is not int or not least <= value <= most:
        upper = f" and <= {most:g}" * (most < math.inf)
        raise OptionError(f"expected strategy.options.{name} to be a whole number >= {least}{upper}, got {value!r}")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises OptionError unless a value is among the allowed texts."""
    if value not in allowed:
        raise OptionError(f"expected strategy.options.{name} to be one of {', '.join(allowed)}, got {value!r}")
