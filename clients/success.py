"""When a targeted attack has succeeded: an attack may name the test images, and the class that the model should give each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from clients.knowledge import PixelRange
from fl_sim.config.keys import Attack
from fl_sim.data.batches import Batch

A = TypeVar("A", bound=Callable[..., Any])


@dataclass(frozen=True)
class SuccessView:
    """What a success test gets: normalised `test` images (e, C, H, W) with their labels, the keys `attack.*`, the number of classes, the
    range of the pixels, and the edge-case images (none of them was trained on)."""

    test: Batch
    settings: Attack
    num_classes: int
    pixels: PixelRange
    edge_images: Callable[[], Tensor]

    @property
    def to_class(self) -> int:
        """The class that a backdoor aims for: `attack.to-class`, class 0 for -1. Raises ValueError if there is no such class."""
        return target_class(self.settings, self.num_classes)

    def victims(self) -> Batch:
        """The test images that the attack is about: those of `attack.class` (-1: of every class), without those of the target class."""
        labels = self.test.labels
        chosen = (labels != self.to_class) & of_source(self.settings, labels, self.num_classes)
        return Batch(self.test.inputs[chosen], labels[chosen])


class SuccessTest(Protocol):
    """`(view, **attack.options) -> Batch`: the images (v, C, H, W) and for each the class (v,) that counts as success. The attack success
    rate is the percentage of them that the model gives this class. None: there is nothing to measure with these keys."""

    def __call__(self, view: SuccessView, **options: Any) -> Batch | None: ...


def measured_by(test: Callable[..., Batch | None]) -> Callable[[A], A]:
    """Gives an attack its success test, as the attribute `success_test`."""

    def name_it(attack: A) -> A:
        cast(Any, attack).success_test = test
        return attack

    return name_it


def success_test_of(attack: Callable[..., Any]) -> SuccessTest | None:
    """The success test that an attack names; None without one."""
    return getattr(attack, "success_test", None)


def target_class(settings: Attack, num_classes: int) -> int:
    """`attack.to-class`, class 0 for -1. Raises ValueError if the data has no such class."""
    return _checked("attack.to-class", max(settings.to_class, 0), num_classes)


def of_source(settings: Attack, labels: Tensor, num_classes: int) -> Tensor:
    """Which labels are of `attack.class`, of the labels' shape; all of them for -1. Raises ValueError if the data has no such class."""
    if settings.class_ < 0:
        return torch.ones_like(labels, dtype=torch.bool)
    return labels == _checked("attack.class", settings.class_, num_classes)


def _checked(key: str, number: int, num_classes: int) -> int:
    if number >= num_classes:
        raise ValueError(f"expected {key} < {num_classes}, the number of classes of the data, got {number}")
    return number
