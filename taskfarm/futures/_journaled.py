"""Maps that leave out what a journal has, and keep in it what they compute."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from taskfarm.errors import JournalError, UsageError
from taskfarm.futures._fingerprint import digest_of
from taskfarm.runtime.executor.results import Results

if TYPE_CHECKING:
    from taskfarm.futures._journal import Chapter, Journal

__all__ = ["JournaledMap", "KeyFunction", "Shelf", "no_journal_here"]

logger = logging.getLogger(__name__)

KeyFunction = Callable[..., Any]


def no_journal_here(journal: str | os.PathLike[str] | None) -> UsageError:
    """Return the error for a journal that is asked for inside a task."""
    return UsageError(
        f"journal={journal!r}: inside a task there is no journal, which rank 0 keeps; have the task return what is to "
        "be kept"
    )


class JournaledMap:
    """The items of one map, as far as a journal is concerned.

    Parameters
    ----------
    chapter : Chapter
        What the journal has of the function.
    items : iterable
        All items.
    key : callable or None
        Makes of an item what it is known by.
    star : bool
        Whether an item is the function's positional arguments.
    """

    def __init__(self, chapter: Chapter, items: Iterable[Any], key: KeyFunction | None, star: bool) -> None:
        self._chapter = chapter
        self._items = items
        self._key = key
        self._star = star
        self._plan: deque[bytes | None] = deque()  # in the order of the items: where the result is, or None
        self._keys: dict[int, bytes] = {}  # of items that are computed
        self._n_missing = 0
        self.error: JournalError | None = None

    def missing(self) -> Iterator[Any]:
        """Yield the items whose results the journal does not have."""
        has, plan = self._chapter.places, self._plan
        make_key: KeyFunction = digest_of if self._key is None else self._key_of
        for item in self._items:
            key = make_key(item)
            if key in has:
                plan.append(key)
            else:
                plan.append(None)
                self._keys[self._n_missing] = key
                self._n_missing += 1
                yield item

    def _key_of(self, item: Any) -> bytes:
        assert self._key is not None
        return digest_of(self._key(*item) if self._star else self._key(item))

    def on_results(self, start: int, results: Results) -> None:
        """Keep the results of missing items, from `start` on."""
        keys = [self._keys.pop(index) for index in range(start, start + results.n)]
        if self.error is not None:
            return
        try:
            self._chapter.put(keys, results)
        except JournalError as exc:
            self.error = exc
            logger.error("%s", exc)

    def merged(self, computed: Iterator[Any]) -> Iterator[Any]:
        """Yield all results, in the order of the items; `computed` has those of the missing ones."""
        plan = self._plan
        try:
            while True:
                if plan and plan[0] is not None:
                    yield from self._next_stored()
                try:
                    value = next(computed)
                except StopIteration:
                    break
                if plan[0] is not None:
                    yield from self._next_stored()
                plan.popleft()
                if self.error is not None:
                    raise self.error
                yield value
            yield from self._next_stored()
            self._check()
        finally:
            _close(computed)

    async def merged_later(self, computed: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """As `merged`, where the results have to be awaited."""
        try:
            while True:
                for value in self._next_stored():
                    yield value
                try:
                    found = await computed.__anext__()
                except StopAsyncIteration:
                    break
                for value in self._next_stored():
                    yield value
                self._plan.popleft()
                self._check()
                yield found
            for value in self._next_stored():
                yield value
            self._check()
        finally:
            await computed.aclose()

    def merged_unordered(self, computed: Iterator[Any]) -> Iterator[Any]:
        """Yield all results: those that are there first, as far as the items have been read."""
        try:
            for value in computed:
                yield from self._all_stored()
                self._check()
                yield value
            yield from self._all_stored()
            self._check()
        finally:
            _close(computed)

    def _all_stored(self) -> Iterator[Any]:
        while self._plan:
            key = self._plan.popleft()
            if key is not None:
                yield self._chapter.get(key)

    def _next_stored(self) -> Iterator[Any]:
        """Yield the results that the journal has before the next item that is computed, as far as items were read."""
        while self._plan and (key := self._plan[0]) is not None:
            self._plan.popleft()
            yield self._chapter.get(key)

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


def _close(results: Iterator[Any]) -> None:
    close = getattr(results, "close", None)
    if close is not None:
        close()


class Shelf:
    """The journals of one executor.

    Parameters
    ----------
    path : path or None
        The journal of all its tasks.

    Raises
    ------
    JournalError
        If it cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self._journals: dict[str, Journal] = {}
        self._default = None if path is None else self._journal(path)
        self._error: JournalError | None = None

    @property
    def holds_all(self) -> bool:
        """Whether the results of all tasks are kept."""
        return self._default is not None

    def _journal(self, path: str | os.PathLike[str]) -> Journal:
        place = os.path.abspath(path)
        if place not in self._journals:
            from taskfarm.futures._journal import Journal  # sqlite3 takes 5 ms, which every rank of every job would pay

            self._journals[place] = Journal(path)
        return self._journals[place]

    def map(
        self,
        fn: Callable[..., Any],
        items: Iterable[Any],
        key: KeyFunction | None,
        star: bool,
        path: str | os.PathLike[str] | None,
    ) -> JournaledMap | None:
        """Return a map's part of the journal at `path`, or of the executor's own; None if there is neither."""
        journal = self._default if path is None else self._journal(path)
        if journal is None:
            if key is not None:
                raise UsageError("key= says what items are known by in a journal: give journal=, too")
            return None
        return JournaledMap(journal.chapter(fn), items, key, star)

    def settle(self, future: Future[Any], fn: Callable[..., Any], args: Sequence[Any], kwargs: Any) -> bool:
        """Give `future` its result if the journal has it; else see to it that the journal gets it, and return False."""
        assert self._default is not None
        if self._error is not None:
            raise self._error
        chapter = self._default.chapter(fn)
        key = digest_of((tuple(args), sorted(kwargs.items())))
        if key in chapter.places:
            value = chapter.get(key)
            future.set_running_or_notify_cancel()
            future.set_result(value)
            return True
        future.add_done_callback(partial(self._keep, chapter, key))
        return False

    def _keep(self, chapter: Chapter, key: bytes, future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        try:
            chapter.put_one(key, future.result())
        except JournalError as exc:
            if self._error is None:
                self._error = exc
                logger.error("%s", exc)

    def close(self) -> None:
        """Close all journals; raise what a task's result could not be kept for, once."""
        for journal in self._journals.values():
            journal.close()
        error, self._error = self._error, None
        if error is not None:
            raise error
