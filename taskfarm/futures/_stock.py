"""The items of a map that are here and have not ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

__all__ = ["Stock", "StockByItem"]


class Stock:
    """Items of a map, numbered from 0: those that were read and not dealt, that are under way, that came back.

    Parameters
    ----------
    source : range or None
        The items themselves, if they are a range: its parts need not be put together.
    """

    def __init__(self, source: range | None) -> None:
        self._range = source
        self._fresh: deque[Sequence[Any]] = deque()  # what was read and not dealt, in order
        self._given_back: dict[int, Sequence[Any]] = {}  # runs, by the number of their first item
        self._flying: dict[int, Sequence[Any]] = {}

    def add(self, part: Sequence[Any]) -> None:
        """Take the next items."""
        self._fresh.append(part)

    def deal(self, start: int, stop: int) -> Sequence[Any]:
        """Return items from `start` up to, not including, `stop`, which are under way now."""
        items = self._flying[start] = self._take(start, stop)
        return items

    def _take(self, start: int, stop: int) -> Sequence[Any]:
        n = stop - start
        items = self._given_back.pop(start, None)
        if items is not None:
            if len(items) > n:
                self._given_back[stop] = items[n:]
                items = items[:n]
            return items
        fresh = self._fresh
        if self._range is not None:
            while n:
                part = fresh.popleft()
                if len(part) > n:
                    fresh.appendleft(part[n:])
                n -= min(n, len(part))
            return self._range[start:stop]
        first = fresh.popleft()
        if len(first) > n:
            fresh.appendleft(first[n:])
            return first[:n]
        parts = list(first)
        while len(parts) < n:
            part = fresh.popleft()
            wanted = n - len(parts)
            if len(part) > wanted:
                fresh.appendleft(part[wanted:])
                part = part[:wanted]
            parts.extend(part)
        return parts

    def on_done(self, start: int, n_done: int) -> None:
        """Note that the first items of a batch have ended; the rest came back."""
        items = self._flying.pop(start, ())
        if n_done < len(items):
            self._given_back[start + n_done] = items[n_done:]

    def on_all_done(self, items: Iterable[int]) -> None:
        """Note that these items, which were dealt one by one, have ended."""
        for item in items:
            self.on_done(item, 1)

    def on_returned(self, start: int, stop: int) -> None:
        """Note that a batch came back."""
        self._given_back[start] = self._flying.pop(start)

    def on_failed(self, item: int) -> None:
        """Forget an item that was dealt alone, or came back, with whatever others."""
        self._flying.pop(item, None)
        for start, items in self._given_back.items():
            if start <= item < start + len(items):
                del self._given_back[start]
                if start < item:
                    self._given_back[start] = items[: item - start]
                if item + 1 < start + len(items):
                    self._given_back[item + 1] = items[item + 1 - start :]
                return

    def clear(self) -> None:
        """Forget what is not under way."""
        self._fresh.clear()
        self._given_back.clear()


class StockByItem(Stock):
    """The same where items that were dealt together end, or come back, one by one: a group of workers has them."""

    def __init__(self, source: range | None) -> None:
        super().__init__(source)
        self._under_way: dict[int, Any] = {}  # not those of a range, which are where they were

    def deal(self, start: int, stop: int) -> Sequence[Any]:
        """Return items from `start` up to, not including, `stop`, which are under way now."""
        items = self._take(start, stop)
        if self._range is None:
            self._under_way.update(zip(range(start, stop), items, strict=True))
        return items

    def on_done(self, start: int, n_done: int) -> None:
        """Note that items have ended."""
        self.on_all_done(range(start, start + n_done))

    def on_all_done(self, items: Iterable[int]) -> None:
        """Note that these items have ended."""
        if self._range is None:
            deque(map(self._under_way.pop, items, repeat(None)), 0)  # runs through

    def on_returned(self, start: int, stop: int) -> None:
        """Note that items came back."""
        if self._range is None:
            self._given_back[start] = [self._under_way.pop(item) for item in range(start, stop)]
        else:
            self._given_back[start] = self._range[start:stop]

    def on_failed(self, item: int) -> None:
        """Forget an item that was dealt alone, or came back, with whatever others."""
        self._under_way.pop(item, None)
        super().on_failed(item)
