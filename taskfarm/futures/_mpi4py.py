"""Stand-ins for `mpi4py.futures`, with its signatures.

What differs: `MPIPoolExecutor` uses the ranks of the job and never spawns processes by MPI.
"""

from __future__ import annotations

import builtins
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from taskfarm.config import OnError
from taskfarm.futures._ending import note_broken
from taskfarm.futures._executor import Executor
from taskfarm.futures._nested import NestedExecutor
from taskfarm.runtime.launching.surroundings import usable_cores
from taskfarm.runtime.session import current

__all__ = ["MPIPoolExecutor", "ProcessPoolExecutor", "ThreadPoolExecutor"]

T = TypeVar("T")

_OPTIONS = frozenset(
    {"backoff", "env", "globals", "main", "mpi_info", "path", "python_args", "python_exe", "use_pkl5", "wdir"}
)
COMM_KEY = "comm of the workers"  # key in the session's face_state


class MPIPoolExecutor(Executor):
    """`Executor` with the signature of `mpi4py.futures.MPIPoolExecutor`; it looks for workers when it is first used.

    Parameters
    ----------
    max_workers, initializer, initargs
        See `Executor`.
    **kwargs
        ``globals``, ``path``, ``wdir`` and ``env`` change the workers before their first task. What mpi4py needs to
        start processes (``python_exe``, ``python_args``, ``mpi_info``, ``main``, ``backoff``, ``use_pkl5``) is
        accepted and has no effect.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        **kwargs: Any,
    ) -> None:
        if max_workers is not None and int(max_workers) <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if unknown := sorted(set(kwargs) - _OPTIONS):
            raise TypeError(f"MPIPoolExecutor got unknown options {', '.join(unknown)}")
        changes = {name: kwargs[name] for name in ("globals", "path", "wdir", "env") if kwargs.get(name)}
        self._wanted = None if max_workers is None else int(max_workers)
        self._n_workers = 0
        self._first = (changes, initializer, tuple(initargs)) if changes or initializer is not None else None
        self._booted = False
        self._broken = None
        self._shutdown = False
        self._nested = None
        self._part()
        if current().worker is not None:
            self._boot()

    def _boot(self) -> None:
        if not self._booted:
            self._booted = True
            wanted = self._wanted or _number(os.environ.get("MPI4PY_FUTURES_MAX_WORKERS"))
            if self._first is None:
                super().__init__(wanted)
            else:
                super().__init__(wanted, initializer=prepare_worker, initargs=self._first)
            self._make_comm()

    def _make_comm(self) -> None:
        """Give the workers a communicator of their own, for `get_comm_workers`: once, since all must take part."""
        session = current()
        controller = session.controller
        if session.size > 1 and controller is not None and COMM_KEY not in session.face_state:
            session.face_state[COMM_KEY] = None
            with self._crew.paused():
                controller.caller.call(_make_workers_comm, (self._crew.workers,), {}, OnError.WAIT)

    def _boot_threads(self, n_threads: int, kind: type[NestedExecutor] = NestedExecutor) -> None:
        if not self._booted:
            self._booted = True
            first = self._first or ({}, None, ())
            on_broken = partial(note_broken, weakref.ref(self))
            self._nested = kind(prepare_worker, first, on_broken, n_threads)
            self._n_workers = n_threads

    def _check_open(self) -> None:
        if not self._shutdown:
            self._boot()
        super()._check_open()

    def bootup(self, wait: bool = True) -> MPIPoolExecutor:
        """Find the workers now; with `wait`, return when they are ready.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        """
        if self._shutdown:
            raise RuntimeError("cannot bootup after shutdown")
        self._boot()
        if wait and self._broken is None:
            for future in [self.submit(_do_nothing) for _ in range(self.num_workers)]:
                future.exception()
        return self

    @property
    def num_workers(self) -> int:
        """Number of workers; 0 after `shutdown`, and if the initializer has failed."""
        if self._shutdown or self._broken is not None:
            return 0
        self._boot()
        return super().num_workers

    def map(  # type: ignore[override]
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """As `Executor.map`; with `unordered`, as `Executor.map_unordered`."""
        _check_unordered(buffersize, unordered)
        do_map = super().map_unordered if unordered else super().map
        return do_map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    def starmap(  # type: ignore[override]
        self,
        fn: Callable[..., T],
        iterable: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
        unordered: bool = False,
    ) -> Iterator[T]:
        """As `Executor.starmap`."""
        _check_unordered(buffersize, unordered)
        return self._map(fn, iterable, True, timeout, chunksize, buffersize, in_order=not unordered)

    def _end_within(self, limit_s: float, wait: bool, cancel_futures: bool) -> None:
        if self._booted:
            super()._end_within(limit_s, wait, cancel_futures)
        self._shutdown = True


class ThreadPoolExecutor(MPIPoolExecutor):
    """The methods of `MPIPoolExecutor`, on threads of this process."""

    def _part(self) -> None:
        """Do nothing: no rank is needed."""

    def _boot(self) -> None:
        self._boot_threads(self._wanted or usable_cores())


class ProcessPoolExecutor(MPIPoolExecutor):
    """The same as `MPIPoolExecutor`."""


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() and int(text) else None


def _check_unordered(buffersize: int | None, unordered: bool) -> None:
    if unordered and isinstance(buffersize, int) and buffersize > 0:
        raise ValueError("buffersize must be None if unordered")


def _do_nothing() -> None:
    pass


def prepare_worker(
    changes: Mapping[str, Any], initializer: Callable[..., object] | None, initargs: tuple[Any, ...]
) -> None:
    """Change this worker as the options of an `MPIPoolExecutor` say, then run its initializer."""
    sys.path[:0] = [os.fspath(path) for path in changes.get("path", ()) if os.fspath(path) not in sys.path]
    if "wdir" in changes:
        os.chdir(changes["wdir"])
    os.environ.update({str(name): str(value) for name, value in dict(changes.get("env", {})).items()})
    for name, value in dict(changes.get("globals", {})).items():
        setattr(sys.modules["__main__"], name, value)
        if not hasattr(builtins, name):  # functions of __main__ arrive by value, and see a __main__ of their own
            setattr(builtins, name, value)
    if initializer is not None:
        initializer(*initargs)


def _make_workers_comm(ranks: Sequence[int]) -> None:
    from taskfarm.transport.split import workers_comm

    current().face_state[COMM_KEY] = workers_comm(ranks)
