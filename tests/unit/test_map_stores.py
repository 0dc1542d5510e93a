"""Where a map keeps its items and results: those of groups come back and end one by one, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskfarm.futures._held import Held
from taskfarm.futures._stock import StockByItem
from taskfarm.runtime.executor.results import ReplyOption, Results, Singles
from taskfarm.wire.codec import OOB_MIN_BYTES, pack, pack_each, unpack


def fail_to_load() -> None:
    raise LookupError("cannot be read")


class Unreadable:
    def __reduce__(self) -> Any:
        return fail_to_load, ()


@pytest.mark.parametrize("source", [None, range(100, 120)])
def test_items_end_in_any_order(source: range | None) -> None:
    """What comes back is dealt again as it was, in whatever pieces; what has ended is not kept."""
    items = source or list(range(100, 120))
    stock = StockByItem(source)
    stock.add(items[:8])
    stock.add(items[8:])
    assert list(stock.deal(0, 12)) == list(range(100, 112))
    stock.on_all_done([0, 5, 11])
    stock.on_done(1, 2)
    stock.on_returned(6, 11)
    assert list(stock.deal(6, 8)) == [106, 107]
    assert list(stock.deal(8, 11)) == [108, 109, 110]
    stock.on_all_done([10, 3, 4, 8, 9])
    stock.on_returned(6, 7)
    stock.on_failed(6)
    stock.on_failed(7)
    assert list(stock.deal(12, 20)) == list(range(112, 120))
    stock.on_done(12, 8)
    assert not stock._under_way and not stock._given_back


@given(st.permutations(range(30)), st.lists(st.integers(1, 7), min_size=1, max_size=9))
def test_results_are_taken_in_runs(order: list[int], sizes: list[int]) -> None:
    """Results of single items, however they come, are taken in order, each once, as many at once as there are."""
    held = Held()
    taken: list[int] = []
    at = 0
    for size in [*sizes, *[30] * 2]:
        part, at = order[at : at + size], at + size
        held.add_singles(part, [pack(item).body for item in part])
        assert held.n == len(order[:at]) - len(taken)
        while (results := held.take(len(taken))) is not None:
            taken += results.read("map")[0]
            assert results.n == len(results.read("map")[0])
    assert taken == list(range(30)) and held.n == held.size_bytes == 0 and held.first == -1


def test_results_of_all_kinds_side_by_side() -> None:
    """Results of batches stay together, and single ones before and behind them do not run into them."""
    held = Held()
    held.add(2, Results(2, *pack(([20, 30], {})), ReplyOption.RESULTS))
    held.add_singles([1, 4, 0, 5], [pack(value).body for value in (10, 40, 0, 50)])
    found = [held.take(start) for start in (0, 2, 4)]
    assert [results and results.read("map")[0] for results in found] == [[0, 10], [20, 30], [40, 50]]
    assert held.take(6) is None and held.n == 0


def test_one_unreadable_result_fails_alone() -> None:
    """Of results that are read together, those before and behind one that cannot be read are given out."""
    values, failures = Singles([pack(value).body for value in (1, Unreadable(), 3)]).read("map")
    assert values == [1, None, 3] and [type(error) for error in failures.values()] == [LookupError]
    assert list(failures) == [1]


def test_packing_each() -> None:
    """Each object is read back from its own pickle, with its own buffers."""
    large, small = np.arange(OOB_MIN_BYTES / 8), np.arange(3.0)
    for objs in ([1, 2.5, "x", None], [(1, 2), [3], {}], [large, (small, 2 * large, large), 7]):
        bodies, counts, buffers = pack_each(objs)
        first = 0
        for obj, body, n in zip(objs, bodies, counts or [0] * len(objs), strict=True):
            found = unpack(body, buffers[first : first + n])
            first += n
            assert type(found) is type(obj) and str(found) == str(obj)
        assert first == len(buffers) == sum(counts)
