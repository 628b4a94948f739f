"""Sums over a fixed binary tree of a round's blocks: the bytes do not depend on which worker computed which part."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Node = tuple[int, int]  # (level, index): the sum of the blocks index * 2**level to (index + 1) * 2**level - 1


def reduce_tree(nodes: Mapping[Node, Tensor], num_blocks: int) -> dict[Node, Tensor]:
    """Add siblings as long as there are any: from the sums of blocks to the fewest nodes, or to the root if all blocks are there.

    A worker reduces its blocks and sends the remaining nodes, about one vector for a contiguous range. The server reduces the nodes of all
    workers. Every addition is that of two fixed siblings of the same tree, so the root has the same bytes for any number of workers and
    any order of arrival.

    Args: nodes, sums (d,) by node, none inside another; num_blocks, the blocks of the whole round.
    """
    level, remaining = 0, dict(nodes)
    while num_blocks > 1 << level:
        for _, index in sorted(node for node in remaining if node[0] == level):
            sibling = (level, index ^ 1)
            if (level, index) not in remaining:
                continue  # added to its sibling already
            if sibling in remaining:
                low, high = remaining.pop((level, index & ~1)), remaining.pop((level, index | 1))
                remaining[level + 1, index >> 1] = low + high
            elif (index ^ 1) << level >= num_blocks:
                remaining[level + 1, index >> 1] = remaining.pop((level, index))  # no such sibling in this round
        level += 1
    return remaining


def root(num_blocks: int) -> Node:
    """The node that covers all blocks of a round."""
    return (max(num_blocks - 1, 0)).bit_length(), 0
