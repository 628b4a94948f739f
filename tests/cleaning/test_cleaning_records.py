"""Figures of a cleaning in summary and drawings, from counts in bins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from clients.cleaning.calibration import bin_edges
from experiments.records.cleaning import auroc, cleaning_figures, cleaning_summary
from experiments.report.figures.run_figures import draw_figures
from fl_sim.config.keys import Config
from fl_sim.wire.messages import CleaningCounts
from tests.support.runs import run
from tests.support.small_cleaning import QUICK

NOTHING = CleaningCounts()


def counts(scores: np.ndarray, edges: torch.Tensor) -> list[int]:
    return torch.bincount(torch.bucketize(torch.from_numpy(scores), edges), minlength=len(edges) + 1).tolist()


@pytest.mark.parametrize("shift", [-1.0, 0.0, 0.5, 3.0])
def test_the_auroc_of_bins_is_that_of_the_scores_up_to_half_a_bin(shift: float) -> None:
    draws = np.random.default_rng(0)
    clean, poisoned = draws.exponential(size=2000), np.abs(draws.exponential(size=1500) + shift)
    edges = bin_edges(torch.from_numpy(clean))
    exact = roc_auc_score([0] * 2000 + [1] * 1500, np.concatenate([clean, poisoned]))
    assert auroc(counts(clean, edges), counts(poisoned, edges)) == pytest.approx(exact, abs=0.02)


def test_the_auroc_of_integers_is_exact_where_each_has_a_bin() -> None:
    assert auroc([1, 2, 1], [0, 1, 3]) == roc_auc_score([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 2, 1, 2, 2, 2])
    assert auroc([1, 2], [0, 0]) is None


def test_the_summary_adds_the_rounds_and_parts_phase_from_trigger() -> None:
    """Clean images are those of the twin in the rounds before the recovery, or without a twin the attacked track's own of these rounds."""

    def line(round_: int, phase: str, clean: CleaningCounts, poisoned: CleaningCounts = NOTHING) -> dict[str, Any]:
        return {"round": round_, "phase": phase, "cleaning": cleaning_figures(1, {}, clean, poisoned)}

    attacked = [
        line(1, "accumulate", CleaningCounts(4, 1, 0, 0.1, (3, 1)), CleaningCounts(2, 0, 1, 0.0, (1, 1))),
        line(2, "trigger", CleaningCounts(4, 0, 1, 0.0, (4, 0)), CleaningCounts(2, 2, 0, 0.1, (0, 2))),
        line(3, "recover", CleaningCounts(2, 2, 0, 0.0, (0, 2))),
    ]
    twin = [line(round_, "accumulate", CleaningCounts(6, 1, 2, 0.0, (2, 4))) for round_ in (1, 2, 3)]
    assert cleaning_summary(attacked, ()) == {
        "flagged": 2 / 8,
        "poisoned_flagged": 3 / 4,
        "auroc_accumulate": auroc([7, 1], [1, 1]),
        "auroc_trigger": auroc([7, 1], [0, 2]),
        "auroc_control": None,
    }
    beside_twin = cleaning_summary(attacked, twin)
    assert beside_twin is not None
    assert (beside_twin["flagged"], beside_twin["auroc_trigger"]) == (6 / 12, auroc([4, 8], [0, 2]))
    control = [
        line(1, "accumulate", NOTHING, CleaningCounts(2, 0, 0, 0.0, (2, 0))),
        line(2, "trigger", NOTHING, CleaningCounts(3, 0, 0, 0.0, (1, 2))),
    ]
    beside_control = cleaning_summary(attacked, twin, control)
    assert beside_control is not None
    assert beside_control["auroc_control"] == auroc([4, 8], [1, 2]), "of its triggers alone"
    assert cleaning_summary([{"round": 1, "phase": "accumulate"}], ()) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["filter-lid", "jpeg"])
def test_its_figures_are_drawn(configure: Callable[..., Config], tmp_path: Path, name: str) -> None:
    config = configure(**QUICK, cleaning__name=name, attack__surface="images", attack__pgd_steps=2, twin=False, control=False)
    _, folder = run(config, tmp_path)
    assert {"cleaning.png", "cleaned_images.png"} <= {path.name for path in draw_figures(folder)}
