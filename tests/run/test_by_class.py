"""Accuracy by class: the lines and the summary against predictions counted here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.run.history import accuracy_by_class
from fl_sim.config.keys import Config
from fl_sim.data.federation import load_federation
from fl_sim.model.saved import load_model
from tests.support.runs import lines, run

Configure = Callable[..., Config]

SMALL: Mapping[str, Any] = {"data__num_clients": 10, "model__name": "mlp", "schedule__burn_in_epochs": 1, "schedule__accumulate_rounds": 3,
         "schedule__recovery_rounds": 2, "attack__fire": "schedule", "attack__poison_ratio": 0.1, "twin": False, "control": False}  # fmt: skip


def test_the_last_models_classes_are_counted_right(configure: Configure, tmp_path: Path) -> None:
    config = configure(**SMALL)
    summary, folder = run(config, tmp_path)
    test = load_federation(config).test()
    with torch.no_grad():
        predictions = load_model(folder)(test.inputs).argmax(1).numpy()
    labels = test.labels.numpy()
    confusion = np.zeros((10, 10), int)
    for label, prediction in zip(labels, predictions, strict=True):
        confusion[label, prediction] += 1
    assert lines(folder)[-1]["whole_confusion"] == confusion.tolist()
    recalls = [100.0 * np.mean(predictions[labels == number] == number) for number in range(10)]
    np.testing.assert_allclose(summary["accuracy_by_class"]["final"], recalls, atol=1e-4)
    worst = int(np.argmin(recalls))
    assert summary["worst_class"]["class"] == worst
    start = summary["accuracy_by_class"]["burn_in"]
    losses = [one - last for one, last in zip(start, summary["accuracy_by_class"]["final"], strict=True)]
    harmed = int(np.argmax(losses))
    assert summary["most_harmed_class"] == {
        "class": harmed,
        "burn_in": start[harmed],
        "final": summary["accuracy_by_class"]["final"][harmed],
    }


def test_its_weighted_mean_is_the_accuracy(configure: Configure, tmp_path: Path) -> None:
    config = configure(**SMALL, evaluate__examples=100)
    _, folder = run(config, tmp_path)
    test = load_federation(config).test(100)
    shares = np.bincount(test.labels.numpy(), minlength=10) / 100
    for line in lines(folder):
        assert abs(np.dot(shares, line["by_class"]) - line["accuracy"]) < 1e-3
    trigger = next(line for line in lines(folder) if "before_trigger" in line)
    for place in ("before_trigger", "after_trigger"):
        counts = np.array(trigger[f"{place}_confusion"])
        assert trigger[place] == 100.0 * counts.trace() / counts.sum()


def test_without_it_the_records_have_no_classes_and_the_same_numbers(configure: Configure, tmp_path: Path) -> None:
    """The model is the same; nothing else depends on it."""
    on, with_classes = run(configure(**SMALL), tmp_path / "on")
    off, without = run(configure(**SMALL, evaluate__by_class=False), tmp_path / "off")
    keys = {key for line in lines(without) for key in (*line, *line.get("start", {}))}
    assert not [key for key in keys if "class" in key or "confusion" in key]
    assert (off["accuracy_by_class"], off["worst_class"], off["most_harmed_class"]) == (None, None, None)
    assert on["accuracy"] == off["accuracy"]
    assert (with_classes / "final.safetensors").read_bytes()[-1000:] == (without / "final.safetensors").read_bytes()[-1000:]


def test_a_class_without_an_example_has_no_accuracy() -> None:
    assert accuracy_by_class([[3, 1, 0], [0, 0, 0], [2, 0, 2]]) == [75.0, None, 50.0]
