"""A stream: batches that follow one another without repetition, of examples that the burn-in has not seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_sim.config.keys import Config
from fl_sim.config.resolve import ConfigError
from fl_sim.data.batches import stream_batches
from fl_sim.data.federation import load_federation
from fl_sim.grid.transports import InlineTransport
from tests.support.runs import fingerprint, run
from tests.support.small_data import split
from tests.support.workers import Workers, encoded_answer

Configure = Callable[..., Config]


def test_a_pass_uses_every_example_once_and_the_next_is_in_another_order() -> None:
    """Twelve examples in batches of four, two steps a round: three batches are a pass, so the second round begins a new one half-way."""
    share, keys = np.arange(100, 112), [(1, "pass", 0)]
    rounds = [stream_batches([share], keys, round_, 2, 4) for round_ in (1, 2, 3)]
    batches = np.concatenate([where[0] for where, _ in rounds])
    assert batches.shape == (6, 4)
    for number in (0, 1):
        assert sorted(batches[3 * number : 3 * number + 3].ravel()) == list(share)
    assert batches[:3].tolist() != batches[3:].tolist()
    assert stream_batches([share], keys, 2, 2, 4)[0].tolist() == rounds[1][0].tolist()


def test_what_does_not_fill_a_batch_waits_and_a_small_share_is_used_whole() -> None:
    shares, keys = [np.arange(10), np.arange(20, 23)], [(1, "pass", 0), (1, "pass", 1)]
    drawn = [stream_batches(shares, keys, round_, 1, 4) for round_ in (1, 2, 3)]
    where = [batches[0] for batches in drawn]
    assert drawn[0][1].tolist() == [4, 3]
    assert len(set(where[0][0, 0]) | set(where[1][0, 0])) == 8
    assert all(sorted(batch[1, 0, :3]) == [20, 21, 22] for batch in where)


def test_the_burn_in_has_its_own_examples() -> None:
    plain, apart = split("iid"), split("iid", burn_in_share=0.5)
    assert len(apart.burn_in) == 450
    assert np.array_equal(plain.own_set, apart.own_set)
    everything = np.concatenate([*apart.shares, apart.own_set, apart.burn_in])
    assert sorted(everything) == list(range(1000))
    assert np.array_equal(apart.trained_before, np.sort(apart.burn_in))
    assert np.array_equal(plain.trained_before, np.sort(np.concatenate(plain.shares)))
    assert len(plain.burn_in) == 0
    with pytest.raises(ValueError, match=r"data\.num-clients = 20: only 9 training examples are left"):
        split("iid", burn_in_share=0.99)
    with pytest.raises(ValueError, match=r"data\.burn-in-share = 0\.0001: expected at least one"):
        split("iid", burn_in_share=0.0001)


def test_the_rounds_of_a_federation_are_a_stream(configure: Configure) -> None:
    federation = load_federation(configure(data__stream=True, data__burn_in_share=0.5))
    drawn = torch.cat([federation.cohort([3], round_, 1, 5).inputs.flatten(0, 2) for round_ in range(1, 11)])
    share = federation.batch(federation.dataset.train, federation.splits.shares[3]).inputs
    passed = share[: len(share)].flatten(1)
    assert all(bool((passed == image).all(dim=1).any()) for image in drawn.flatten(1))
    assert len(torch.unique(drawn.flatten(1), dim=0)) == 50
    again = load_federation(configure())
    assert not again.streams
    assert again.cohort([3], 1, 1, 5).inputs.shape == (1, 1, 5, 1, 8, 8)


@pytest.mark.parametrize("clients", [1, 20])
@pytest.mark.slow
def test_the_online_setting_is_the_same_bytes_wherever_it_is_computed(configure: Configure, tmp_path: Path, clients: int) -> None:
    """One client with twenty images, and twenty with one."""
    config = configure(
        data__num_clients=clients, client__batch_size=20 // clients, data__stream=True, data__burn_in_share=0.5, strategy__name="mean",
        attack__surface="images", attack__poison_ratio=1.0 if clients == 1 else 0.25, attack__image_fraction=0.25 if clients == 1 else 1.0,
        attack__epsilon=0.2, attack__pgd_steps=2, control_honest=True,
    )  # fmt: skip
    summary, first = run(config, tmp_path / "one")
    assert summary["honest_trigger"]["after_trigger"] is not None
    assert fingerprint(run(config, tmp_path / "three", Workers(3))[1]) == fingerprint(first)
    assert fingerprint(run(config, tmp_path / "encoded", InlineTransport(encoded_answer))[1]) == fingerprint(first)
    assert {line["attack"]["images"] for line in fingerprint(first)[1] if line["track"] == "attacked" and "attack" in line} == {5.0}


@pytest.mark.parametrize(
    ("flat", "says"),
    [
        ({"data__burn_in_share": 1.0}, "expected data.burn-in-share < 1.0, got 1.0"),
        ({"data__burn_in_share": -0.1}, "expected data.burn-in-share >= 0.0, got -0.1"),
        ({"data__stream": 1}, "expected data.stream to be true or false, got 1"),
    ],
)
def test_bad_values_are_refused(configure: Configure, flat: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configure(**flat)
    assert caught.value.problems == [says]
