"""Distances between updates, and what is made of them faster than ByzFL and Flower make it."""

from __future__ import annotations

import byzfl
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum

from strategies.fast import distances, stages
from strategies.fast.distances import squared_distances
from strategies.fast.stages import Krum, Median, NearestNeighbourMixing, TrimmedMean
from strategies.selection.left_out import but_the_lowest, krum_scores


def rows_of(seed: int, n: int = 15, d: int = 40, offset: float = 0.0) -> torch.Tensor:
    return offset + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("part", [1, 7, 40, 1 << 16])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_they_are_those_of_differences(monkeypatch: pytest.MonkeyPatch, part: int, offset: float) -> None:
    monkeypatch.setattr(distances, "COORDINATES", part)
    rows = rows_of(1, offset=offset)
    by_subtraction = torch.stack([(rows.double() - row.double()).square().sum(dim=1) for row in rows])
    torch.testing.assert_close(squared_distances(rows), by_subtraction, rtol=1e-12, atol=0.0)


def test_equal_updates_have_none_and_near_ones_a_small_one() -> None:
    rows = rows_of(2, d=5_000)
    rows[3], rows[4] = rows[0], rows[0] + 1e-5
    distance = squared_distances(rows)
    assert distance[0, 3] == 0.0
    assert bool((distance.diagonal() == 0.0).all())
    torch.testing.assert_close(distance[0, 4], (rows[4].double() - rows[0].double()).square().sum(), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("f", [1, 4, 7])
@pytest.mark.parametrize("seed", [5, 6, 7])
def test_mixing_by_neighbours_is_that_of_byzfl(f: int, seed: int) -> None:
    rows = rows_of(seed)
    torch.testing.assert_close(NearestNeighbourMixing(f)(rows), byzfl.NNM(f)(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("f", [0, 1, 4, 7])
@pytest.mark.parametrize("seed", [12, 13])
def test_the_trimmed_mean_is_that_of_byzfl(f: int, seed: int) -> None:
    torch.testing.assert_close(TrimmedMean(f)(rows_of(seed)), byzfl.TrMean(f)(rows_of(seed)), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("f", [1, 4, 7])
@pytest.mark.parametrize("seed", [21, 22, 23])
def test_krum_and_multikrum_are_those_of_byzfl(f: int, seed: int) -> None:
    rows = rows_of(seed)
    torch.testing.assert_close(Krum(f, 1)(rows), byzfl.Krum(f)(rows), rtol=0.0, atol=0.0)
    torch.testing.assert_close(Krum(f, 0)(rows), byzfl.MultiKrum(f)(rows), rtol=1e-5, atol=1e-6)


def test_krum_needs_more_honest_than_malicious() -> None:
    with pytest.raises(ValueError, match="smaller than the number of updates, 14, got f = 7"):
        Krum(7, 1)(rows_of(8, 14))


def test_distances_are_computed_again_when_the_updates_have_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, counted = rows_of(24), list[int]()
    compute = distances._squared_distances  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(distances, "_squared_distances", lambda updates: counted.append(1) or compute(updates))
    first = squared_distances(rows)
    first.zero_()  # what a caller does to the result is its own affair
    assert float(squared_distances(rows).max()) > 0.0
    assert len(counted) == 1
    rows[0] += 1.0
    torch.testing.assert_close(squared_distances(rows), compute(rows))
    squared_distances(rows.clone())
    assert len(counted) == 3


@pytest.mark.parametrize("part", [1, 7, 39, 64])
def test_sorting_in_parts_is_sorting(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    rows, whole = rows_of(25), (TrimmedMean(3)(rows_of(25)), Median()(rows_of(25)))
    monkeypatch.setattr(stages, "COORDINATES", part)
    torch.testing.assert_close(TrimmedMean(3)(rows), whole[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(Median()(rows), whole[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n", [1, 2, 14, 15])
def test_the_median_is_that_of_byzfl_for_even_and_odd_numbers(n: int) -> None:
    torch.testing.assert_close(Median()(rows_of(14, n)), byzfl.Median()(rows_of(14, n)), rtol=1e-6, atol=1e-7)


def test_a_trimmed_mean_needs_more_updates_than_it_trims() -> None:
    with pytest.raises(ValueError, match="smaller than the number of updates, 14, got f = 7"):
        TrimmedMean(7)(rows_of(8, 14))


def test_mixing_needs_more_updates_than_it_leaves_out() -> None:
    with pytest.raises(ValueError, match="smaller than the number of updates, 15, got 15"):
        NearestNeighbourMixing(15)(rows_of(8))


@pytest.mark.parametrize(("f", "count"), [(0, 1), (3, 1), (3, 6), (12, 4)])
@pytest.mark.parametrize("seed", [9, 10, 11])
def test_krums_choice_is_that_of_flower_and_flower_chooses_all_of_it(f: int, count: int, seed: int) -> None:
    rows = rows_of(seed)

    def content(index: int) -> RecordDict:
        layer = rows[index].double().numpy()
        return RecordDict({"arrays": ArrayRecord([layer]), "metrics": MetricRecord({"client": index})})

    def chosen(indices: list[int]) -> set[int]:
        contents = select_multikrum([content(index) for index in indices], f, count)
        return {int(one.metric_records["metrics"]["client"]) for one in contents}  # pyright: ignore[reportArgumentType]

    kept = (~but_the_lowest(krum_scores(rows, max(1, len(rows) - f - 2)), count)).nonzero().flatten().tolist()
    assert chosen(list(range(len(rows)))) == set(kept) == chosen(kept)
