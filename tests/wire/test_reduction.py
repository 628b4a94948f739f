"""The fixed tree: the same bytes whoever sums what."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_sim.wire.reduction import reduce_tree, root


@given(st.integers(1, 40), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_split_and_any_order_of_arrival_gives_the_same_bytes(blocks: int, workers: int, random: object) -> None:
    sums = {(0, i): torch.randn(7, generator=torch.Generator().manual_seed(i)) * 10.0 ** (i % 5) for i in range(blocks)}
    whole = reduce_tree(sums, blocks)
    assert list(whole) == [root(blocks)]
    owner = {i: random.randrange(workers) for i in range(blocks)}  # type: ignore[attr-defined]
    replies = [reduce_tree({node: s for node, s in sums.items() if owner[node[1]] == worker}, blocks) for worker in range(workers)]
    random.shuffle(replies)  # type: ignore[attr-defined]
    merged = {node: total for reply in replies for node, total in reply.items()}
    assert torch.equal(reduce_tree(merged, blocks)[root(blocks)], whole[root(blocks)])


def test_a_contiguous_half_sends_few_vectors() -> None:
    half = reduce_tree({(0, i): torch.ones(1) for i in range(8)}, 16)
    assert {node: float(total) for node, total in half.items()} == {(3, 0): 8.0}
    rest = reduce_tree({(0, i): torch.ones(1) for i in range(8, 13)}, 13)
    assert sum(float(total) for total in rest.values()) == 5.0
    assert len(rest) == 1, "positions 13 to 15 do not exist, so the right half is one node"
