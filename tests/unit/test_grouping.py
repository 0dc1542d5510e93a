"""Groups: whole hosts where that is possible, every rank in one of them at most."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfarm.scheduling.grouping import ENOUGH_FOR_GROUPS, form_groups, group_size


def hosts(*sizes: int) -> dict[int, str]:
    """Return the hosts of ranks from 1 on, so many on each."""
    names = [f"h{index}" for index, size in enumerate(sizes) for _ in range(size)]
    return dict(enumerate(names, 1))


@pytest.mark.parametrize(
    ("sizes", "size", "groups"),
    [
        ((4,), 2, {1: (2,), 3: (4,)}),
        ((2,), 8, {1: (2,)}),
        ((1,), 2, {}),
        ((3, 3), 4, {1: (2, 3), 4: (5, 6)}),
        ((7,), 4, {1: (2, 3), 4: (5, 6, 7)}),
        ((1, 1, 1, 1), 2, {1: (2,), 3: (4,)}),
        ((4, 1), 4, {1: (2, 3, 4, 5)}),
        ((5,), 2, {1: (2,), 3: (4, 5)}),
    ],
)
def test_groups(sizes: tuple[int, ...], size: int, groups: dict[int, tuple[int, ...]]) -> None:
    """A host is a group, or several, or hosts are put together."""
    assert form_groups(hosts(*sizes), size) == groups


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(2, 50))
def test_every_rank_is_in_one_group(sizes: list[int], size: int) -> None:
    """From two workers on every rank is in one group, and hardly more than wanted in any."""
    groups = form_groups(hosts(*sizes), size)
    ranks = [rank for relay, members in groups.items() for rank in (relay, *members)]
    assert sorted(ranks) == (list(range(1, sum(sizes) + 1)) if sum(sizes) > 1 else [])
    assert all(1 <= len(members) <= size + 1 for members in groups.values())


def test_when() -> None:
    """By hand at any number of workers; else where one controller would not do."""
    assert group_size(8, None) == 0
    assert group_size(8, 0) == group_size(8, 1) == group_size(10**6, 0) == 0
    assert group_size(8, 4) == 4
    assert group_size(ENOUGH_FOR_GROUPS - 1, None) == 0
    assert group_size(ENOUGH_FOR_GROUPS, None) == 128
    assert group_size(100_000, None) == 316
