"""Sums whose bytes do not depend on who computed which part: a fixed binary tree over the blocks of a round."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Node = tuple[int, int]  # (level, index): covers the blocks index * 2**level up to (index + 1) * 2**level - 1


def reduce_tree(nodes: Mapping[Node, Tensor], num_blocks: int) -> dict[Node, Tensor]:
    """Merge siblings until none is left: from block sums to the fewest nodes, or to the root once all are there.

    A worker that holds some of the blocks sends what remains, about one vector for a contiguous range; the server puts
    the parts of all workers together and merges on. Every addition is `left + right` of the same tree, so the root is
    the same bytes for any number of workers and any order of arrival.

    Args: nodes, sums (d,) by node, none inside another; num_blocks, the blocks of the whole round.
    """
    level, left = 0, dict(nodes)
    while num_blocks > 1 << level:
        for _, index in sorted(node for node in left if node[0] == level):
            sibling = (level, index ^ 1)
            if (level, index) not in left:
                continue  # merged already, as its sibling
            if sibling in left:
                low, high = left.pop((level, index & ~1)), left.pop((level, index | 1))
                left[level + 1, index >> 1] = low + high
            elif (index ^ 1) << level >= num_blocks:
                left[level + 1, index >> 1] = left.pop((level, index))  # no such sibling in this round
        level += 1
    return left


def root(num_blocks: int) -> Node:
    """The node that covers all blocks of a round."""
    return (max(num_blocks - 1, 0)).bit_length(), 0
