"""Progress bars, by tqdm: how far a `map` or `as_completed` is, how fast, and how many workers are busy."""

from __future__ import annotations

import concurrent.futures as std
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from operator import length_hint
from typing import Any, Literal, TypeVar

from taskfarm.errors import UsageError
from taskfarm.futures._future import Future
from taskfarm.runtime.launching.terminal import terminal_columns

__all__ = ["Progress", "as_completed", "shown"]

T = TypeVar("T")

Progress = bool | Literal["always"]
REFRESH_S = 0.5  # between two looks at the number of busy workers


def shown(
    results: Iterator[T], progress: Progress, n: int | None, n_busy: Callable[[], int], n_workers: int
) -> Iterator[T]:
    """Return `results`, which show a progress bar while they are taken, if one is wanted.

    Parameters
    ----------
    results : iterator
        What is counted.
    progress : bool or "always"
        True: only where standard error is a terminal, or that of the launching process is.
    n : int or None
        How many there will be, None if that is not known.
    n_busy : callable
        Returns how many workers have something to do.
    n_workers : int
        How many there are.

    Raises
    ------
    UsageError
        If `progress` is something else, or tqdm is missing.
    """
    if progress not in (True, False, "always"):
        raise UsageError(f"progress={progress!r} is neither True nor False nor 'always'")
    columns = terminal_columns(sys.stderr)
    if not progress or (progress is True and not columns):
        return results
    try:
        from tqdm import tqdm  # optional
    except ImportError as exc:
        raise UsageError("progress needs tqdm: pip install 'taskfarm[progress]'") from exc
    return _counted(results, tqdm(total=n, ncols=columns or None), n_busy, n_workers)


def _counted(results: Iterator[T], bar: Any, n_busy: Callable[[], int], n_workers: int) -> Iterator[T]:
    looked_at = 0.0
    with bar:
        for result in results:
            bar.update()
            now = time.monotonic()
            if now - looked_at > REFRESH_S:
                looked_at = now
                bar.set_postfix_str(f"{n_busy()} of {n_workers} workers busy", refresh=False)
            yield result


def items_in(iterables: Iterable[Any]) -> int | None:
    """Return how many items the shortest of `iterables` has, None if one does not say."""
    hints = [length_hint(iterable, -1) for iterable in iterables]
    return min(hints) if hints and min(hints) >= 0 else None


def as_completed(
    fs: Iterable[std.Future[T]], timeout: float | None = None, *, progress: Progress = False
) -> Iterator[std.Future[T]]:
    """Yield the futures as they end: `concurrent.futures.as_completed`, with a progress bar if one is wanted.

    Parameters
    ----------
    fs : iterable of Future
        May hold a future more than once.
    timeout : float, optional
        Seconds from now, after which `TimeoutError` is raised.
    progress : bool or "always"
        Whether to show a progress bar; True shows it only where standard error is a terminal.
    """
    if not progress:
        return std.as_completed(fs, timeout)
    futures = set(fs)
    crew = next((future._crew for future in futures if isinstance(future, Future)), None)
    if crew is None:
        return shown(std.as_completed(futures, timeout), progress, len(futures), lambda: 0, 0)
    n_workers = len(crew.workers)
    return shown(std.as_completed(futures, timeout), progress, len(futures), crew.dealer.n_busy, n_workers)
