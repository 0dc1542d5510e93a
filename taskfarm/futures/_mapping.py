"""The forms of `map`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from taskfarm.futures._arguments import joined
from taskfarm.futures._journaled import KeyFunction
from taskfarm.futures._options import TaskOptions
from taskfarm.futures._progress import Progress
from taskfarm.futures._views import OptionTaker

__all__ = ["MapMethods"]

T = TypeVar("T")


class MapMethods(OptionTaker):
    """An executor, as far as its maps are concerned."""

    def _shown(self, results: Iterator[T], progress: Progress, iterables: Iterable[Any]) -> Iterator[T]:
        raise NotImplementedError

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
        timeout_s: float | None = None,
        journal: str | os.PathLike[str] | None = None,
        key: KeyFunction | None = None,
    ) -> Iterator[T]:
        """Apply `fn` to the items of `iterables`, as the built-in `map` does, and yield the results in order.

        The iterables are read as the results are taken, as far ahead as the workers need. Batches are sized so that
        each takes some 2 ms.

        Parameters
        ----------
        fn : callable
            Sent once to each worker, with whatever it holds: ``functools.partial(f, big)`` sends `big` once.
        *iterables : iterable
            Its arguments; the shortest ends the map. They are read in the calling thread.
        timeout : float, optional
            Seconds from now, after which a result that is not there raises `TimeoutError`.
        chunksize : int, optional
            Items that are run one after another by the same worker; short chunks travel together.
        buffersize : int, optional
            How many items may be read before their results are taken.
        timeout_s : float, optional
            Seconds that each item may take; then it is killed, which needs isolation. See `with_options` for more.
        journal : path, optional
            Keep the results in this file as they arrive, and compute only what it does not have.
        key : callable, optional
            ``key(*item)`` is what an item is known by in the journal, instead of its pickle.
        progress : bool or "always"
            Whether to show a progress bar (tqdm); True shows it only where standard error is a terminal.

        Returns
        -------
        iterator
            The first failure is raised in its place, and what was not run is dropped, as it is when the iterator is
            closed. `shutdown` waits for what it has not yielded, and keeps the results for it.
        """
        items, star = joined(iterables)
        options = None if timeout_s is None else TaskOptions(timeout_s=timeout_s)
        results = self._map(
            fn, items, star, timeout, chunksize, buffersize, in_order=True, options=options, journal=journal, key=key
        )
        return self._shown(results, progress, iterables)

    def map_unordered(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
    ) -> Iterator[T]:
        """As `map`, but yield each result as it arrives."""
        items, star = joined(iterables)
        results = self._map(fn, items, star, timeout, chunksize, buffersize, in_order=False)
        return self._shown(results, progress, iterables)

    def starmap(
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        progress: Progress = False,
    ) -> Iterator[T]:
        """As `map`, for items that are the positional arguments of one call each: ``fn(*item)``."""
        results = self._map(fn, iterable, True, timeout, chunksize, buffersize, in_order=True)
        return self._shown(results, progress, (iterable,))
