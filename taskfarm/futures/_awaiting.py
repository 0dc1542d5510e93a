"""What an executor does for `asyncio`."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from taskfarm.futures._arguments import check_sizes, joined
from taskfarm.futures._future import set_soon
from taskfarm.futures._journaled import JournaledMap, KeyFunction
from taskfarm.futures._mapping import MapMethods
from taskfarm.futures._maps import MapJob
from taskfarm.futures._nested import NestedExecutor
from taskfarm.futures._options import TaskOptions

__all__ = ["AsyncMethods"]

T = TypeVar("T")


class AsyncMethods(MapMethods):
    """An executor, as far as event loops are concerned."""

    _nested: NestedExecutor | None

    def _check_open(self) -> None:
        raise NotImplementedError

    def _new_map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        chunksize: int | None,
        buffersize: int | None,
        options: TaskOptions | None = None,
        journal: JournaledMap | None = None,
    ) -> MapJob:
        raise NotImplementedError

    def _part_of_journal(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        star: bool,
        journal: str | os.PathLike[str] | None,
        key: KeyFunction | None,
    ) -> JournaledMap | None:
        raise NotImplementedError

    async def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
        journal: str | os.PathLike[str] | None = None,
        key: KeyFunction | None = None,
    ) -> AsyncIterator[T]:
        """As `map`, for ``async for``; the event loop runs while results are waited for."""
        self._check_open()
        items, star = joined(iterables)
        part = self._part_of_journal(fn, items, star, journal, key)
        if self._nested is not None:
            for item in zip(*iterables, strict=False):
                yield await self.asubmit(fn, *item)
            return
        check_sizes(chunksize, buffersize)
        job = self._new_map(fn, part.missing() if part else items, star, chunksize, buffersize, None, part)
        results = _results_of(job)
        results = part.merged_later(results) if part else results
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()
            job.end()


async def _results_of(job: MapJob) -> AsyncGenerator[Any, None]:
    """Yield the results of a map in the order of the items."""
    import asyncio  # see `HasOptions.asubmit`

    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    job.on_arrival = lambda: set_soon(loop, arrived)
    while True:
        arrived.clear()
        results = job.take_results(job.in_order)
        if results is not None:
            for result in results:
                yield result
            job.on_consumed(len(results))
        elif job.has_ended():
            return
        else:
            await arrived.wait()
