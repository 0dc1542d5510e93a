"""A parallel backend for joblib: ``with joblib.parallel_config("taskfarm"): ...``."""

from __future__ import annotations

import concurrent.futures as std
from collections.abc import Callable
from typing import Any

from joblib.parallel import ParallelBackendBase, SequentialBackend, register_parallel_backend

from taskfarm.futures._executor import Executor

__all__ = ["TaskfarmBackend", "register"]


class TaskfarmBackend(ParallelBackendBase):  # type: ignore[misc]
    """Runs the batches of `joblib.Parallel` as tasks of an `Executor`.

    Parameters
    ----------
    executor : Executor, optional
        Whose workers to use; by default one that lives as long as the process.
    **kwargs
        joblib's own.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    default_n_jobs = -1

    def __init__(self, executor: Executor | None = None, nesting_level: int | None = None, **kwargs: Any) -> None:
        super().__init__(nesting_level=nesting_level, **kwargs)
        self._executor = executor or Executor()
        self._pending: set[std.Future[Any]] = set()

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Return how many jobs can run at once: as many as there are workers, if `n_jobs` is negative or 0."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        n_workers = self._executor.num_workers
        return n_workers if n_jobs is None or n_jobs < 0 else min(n_jobs, n_workers)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> std.Future[Any]:
        """Start one batch; `callback` gets the future."""
        future = self._executor.submit(func)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    apply_async = submit

    def retrieve_result_callback(self, out: std.Future[Any]) -> Any:
        """Return what a batch returned, or raise what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Drop the batches that have not begun."""
        for future in list(self._pending):
            future.cancel()

    def get_nested_backend(self) -> tuple[Any, None]:
        """Return the backend of `Parallel` calls inside a batch: they run where they are."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def register() -> None:
    """Make the backend known to joblib."""
    register_parallel_backend("taskfarm", TaskfarmBackend)
