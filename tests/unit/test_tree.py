"""The tree along which rank 0 reaches everybody."""

from __future__ import annotations

import math

import pytest

from taskfarm.scheduling.tree import children, parent

SIZES = [*range(1, 70), 127, 128, 129, 1000, 1024]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, {0: []}),
        (2, {0: [1], 1: []}),
        (5, {0: [4, 2, 1], 1: [], 2: [3], 3: [], 4: []}),
        (8, {0: [4, 2, 1], 1: [], 2: [3], 3: [], 4: [6, 5], 5: [], 6: [7], 7: []}),
    ],
)
def test_small_trees(size: int, expected: dict[int, list[int]]) -> None:
    """The tree is binomial, the largest subtree is served first."""
    assert {rank: children(rank, size) for rank in range(size)} == expected


@pytest.mark.parametrize("size", SIZES)
def test_everybody_has_one_parent(size: int) -> None:
    """Every rank but 0 is the child of exactly one rank, its parent: nobody gets a frame twice or not at all."""
    found = [(child, rank) for rank in range(size) for child in children(rank, size)]
    assert sorted(found) == [(rank, parent(rank)) for rank in range(1, size)]


@pytest.mark.parametrize("size", SIZES)
def test_the_tree_is_shallow(size: int) -> None:
    """A frame reaches the last rank in ``ceil(log2(size))`` steps, counting that a rank sends one after the other."""
    arrival = {0: 0}
    for rank in range(size):  # children have larger numbers than their parents
        for position, child in enumerate(children(rank, size)):
            arrival[child] = arrival[rank] + position + 1
    assert max(arrival.values()) <= math.ceil(math.log2(size)) if size > 1 else arrival == {0: 0}
