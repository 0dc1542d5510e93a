"""The items of a map that are here and have not ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

__all__ = ["Stock"]


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

    def on_returned(self, start: int) -> None:
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
