"""Results of a map that are here and were not taken."""

from __future__ import annotations

from collections.abc import Sequence

from taskfarm.runtime.executor.results import Results, Singles

__all__ = ["Held"]


class Held:
    """Results by the number of their first item, in the order in which they came.

    Attributes
    ----------
    n : int
        How many items have one.
    size_bytes : int
        Their size on the wire.
    """

    def __init__(self) -> None:
        self._held: dict[int, Results | bytes] = {}  # bytes: of a single item, pickled
        self.n = 0
        self.size_bytes = 0

    def __contains__(self, start: int) -> bool:
        return start in self._held

    @property
    def first(self) -> int:
        """Where the results start that came first, -1 if there are none."""
        return next(iter(self._held), -1)

    def add(self, start: int, results: Results) -> None:
        """Take results of consecutive items."""
        n, size_bytes = results.n, results.size_bytes
        self._held[start] = results
        self.n += n
        self.size_bytes += size_bytes

    def add_singles(self, items: Sequence[int], bodies: Sequence[bytes]) -> None:
        """Take results of single items, each pickled."""
        n, size_bytes = len(bodies), sum(map(len, bodies))
        self._held.update(zip(items, bodies, strict=True))
        self.n += n
        self.size_bytes += size_bytes

    def take(self, start: int) -> Results | None:
        """Return results that start there, None if there are none; of single items all that follow one another."""
        found = self._held.pop(start, None)
        if found is None:
            return None
        if isinstance(found, bytes):
            found = Singles(self._take_singles(start + 1, [found]))
        n, size_bytes = found.n, found.size_bytes  # before: no other thread may come between reading and writing
        self.n -= n
        self.size_bytes -= size_bytes
        return found

    def _take_singles(self, at: int, bodies: list[bytes]) -> list[bytes]:
        get, pop = self._held.get, self._held.pop
        while type(body := get(at)) is bytes:
            bodies.append(body)
            pop(at)
            at += 1
        return bodies

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
        self.n = self.size_bytes = 0
