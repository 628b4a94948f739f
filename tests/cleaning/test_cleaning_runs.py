"""Runs with a cleaning: the same bytes wherever they are computed, what their records hold, and that no cleaning changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fl_sim.config.idle_keys import idle_key_notes
from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.grid.transports import InlineTransport
from tests.support.runs import fingerprint, lines, run
from tests.support.small_cleaning import OPTIONS, QUICK
from tests.support.workers import Workers, encoded_answer

Configure = Callable[..., Config]
IMAGES = {"attack__surface": "images", "attack__pgd_steps": 2, "twin": False, "control": False}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dsc", "filter-gmm", "noise", "ebm"])
def test_a_run_is_the_same_bytes_with_any_number_of_workers(configure: Configure, tmp_path: Path, name: str) -> None:
    """And with encoded messages; the second run finds what the first one fitted and purified in the cache."""
    config = configure(**QUICK, **IMAGES, cleaning__name=name, cleaning__options=OPTIONS.get(name, ""), cleaning__p0=0.01)
    _, first = run(config, tmp_path / "one")
    _, second = run(config, tmp_path / "three", Workers(3))
    _, third = run(config, tmp_path / "encoded", InlineTransport(encoded_answer))
    assert fingerprint(first) == fingerprint(second) == fingerprint(third)
    plain = configure(**QUICK, **IMAGES)
    assert fingerprint(run(plain, tmp_path / "plain")[1])[0] != fingerprint(first)[0]


def test_a_run_with_a_filter_records_what_it_dropped(configure: Configure, tmp_path: Path) -> None:
    config = configure(**QUICK, **IMAGES, cleaning__name="filter-kd", attack__epsilon=0.2)
    _, folder = run(config, tmp_path)
    record = json.loads((folder / "cleaning.json").read_text())
    bins = len(record["edges"]) + 1
    for line in lines(folder):
        figures, acts = line["cleaning"], "attack" in line
        assert figures["images"] + figures.get("poisoned_images", 0) == 120
        assert ("poisoned_images" in figures) == acts
        assert (len(figures["scores"]), sum(figures["scores"])) == (bins, figures["images"])
        assert figures["threshold"] == record["start"]
        beyond = sum(count for count, edge in zip(figures["scores"][1:], record["edges"], strict=True) if edge > record["start"])
        assert beyond <= figures["dropped"], "whatever is in a bin beyond the threshold was dropped"
    assert [len(record[part]) for part in ("before", "after", "labels")] == [8, 8, 8]


def test_without_a_cleaning_there_is_no_record_of_one(configure: Configure, tmp_path: Path) -> None:
    _, folder = run(configure(twin=False, control=False), tmp_path)
    assert not (folder / "cleaning.json").exists()
    assert all("cleaning" not in line for line in lines(folder))


@pytest.mark.parametrize("strategy", ["mean", "flwr.FedAvg"])
def test_a_round_whose_images_are_all_dropped_leaves_the_model_as_it_was(configure: Configure, tmp_path: Path, strategy: str) -> None:
    file = tmp_path / "own.py"
    file.write_text("def nothing(batch, context):\n    return batch._replace(kept=batch.kept & False)\n")
    alone = {"twin": False, "control": False, "attack__name": "none", "attack__malicious_fraction": 0.0}
    summary, folder = run(configure(**QUICK, **alone, cleaning__name=f"{file}:nothing", strategy__name=strategy), tmp_path)
    assert summary["accuracy"]["final"] == summary["accuracy"]["burn_in"]
    for line in lines(folder):
        assert line["skipped"]
        assert line["clients"] == 0
        assert line["cleaning"]["dropped"] == line["cleaning"]["images"] == 120


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        (
            {"cleaning__name": "dsc", "schedule__burn_in_epochs": 1, "cleaning__history": 0.8},
            "expected cleaning.history to give an earlier model than the burnt-in one with cleaning.name = 'dsc', got 0.8 of 1 epochs",
        ),
        ({"cleaning__fpr": 0.0}, "expected cleaning.fpr > 0.0, got 0.0"),
        ({"cleaning__unit": "x"}, "expected cleaning.unit to be one of 'example', 'batch', got 'x'"),
    ],
)
def test_bad_values_are_refused(configure: Configure, flat: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(**flat)
    assert caught.value.problems == [says]


def test_keys_that_no_cleaning_reads_are_named(configure: Configure) -> None:
    (note,) = idle_key_notes([configure(cleaning__shrunk=True)])
    assert note == "cleaning.shrunk = True has no effect here: it is read by every cleaning but none"
    assert idle_key_notes([configure(cleaning__name="jpeg", cleaning__shrunk=True)]) == []
