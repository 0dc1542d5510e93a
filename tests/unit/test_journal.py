"""The journal: what it keeps, what it refuses, and that nothing is lost when something goes wrong."""

from __future__ import annotations

import functools
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskfarm.errors import UsageError
from taskfarm.futures._fingerprint import digest_of, fingerprint, name_of
from taskfarm.futures._journal import Chapter, Journal, JournalError
from taskfarm.futures._journaled import JournaledMap, Shelf
from taskfarm.runtime.executor.results import Results, pack_results
from taskfarm.runtime.runner import encode_failure, failure_of

FIRST = digest_of("first")


def double(x: Any) -> Any:
    return x * 2


def results_of(values: list[Any], failed: tuple[int, ...] = ()) -> Results:
    failures = {index: encode_failure(failure_of(ValueError(index), 1, "host")) for index in failed}
    form, packed = pack_results(values, failures, lambda exc: encode_failure(failure_of(exc, 1, "host")))
    return Results(len(values), *packed, form)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


def reopened(path: Path, fn: Callable[..., Any] = double) -> tuple[Journal, Chapter]:
    journal = Journal(path)
    return journal, journal.chapter(fn)


def test_results_are_kept(path: Path) -> None:
    """Results of all kinds come back after the file was closed; arrays are writable; failures are not kept."""
    journal, chapter = reopened(path)
    keys = [digest_of(index) for index in range(4)]
    array = np.arange(50_000.0)
    chapter.put(keys[:3], results_of([1, None, array], failed=(1,)))
    chapter.put_one(keys[3], {"a": [1, 2]})
    journal.close()
    journal.close()
    journal, chapter = reopened(path)
    assert chapter.places.keys() == {keys[0], keys[2], keys[3]}
    assert chapter.get(keys[0]) == 1 and chapter.get(keys[3]) == {"a": [1, 2]}
    found = chapter.get(keys[2])
    assert np.array_equal(found, array)
    found[:] = 0
    assert np.array_equal(chapter.get(keys[2]), array)
    journal.close()


def test_results_are_there_before_the_end(path: Path) -> None:
    """What was written is read at once, and is in the file soon, without anything else being called."""
    journal, chapter = reopened(path)
    for index in range(20):
        chapter.put_one(digest_of(index), index)
        assert chapter.get(digest_of(index)) == index
    journal.close()


def test_one_job_at_a_time(path: Path) -> None:
    """A journal that is in use is not opened a second time."""
    journal, _ = reopened(path)
    with pytest.raises(JournalError, match="in use"):
        Journal(path)
    journal.close()
    Journal(path).close()


def test_what_is_no_journal(path: Path) -> None:
    """A file of something else is refused and left as it was, and so is a folder."""
    path.write_bytes(b"important" * 1000)
    with pytest.raises(JournalError, match="is no journal"):
        Journal(path)
    assert path.read_bytes() == b"important" * 1000
    with sqlite3.connect(path.parent / "other.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = (path.parent / "other.db").read_bytes()
    with pytest.raises(JournalError, match="something else"):
        Journal(path.parent / "other.db")
    assert (path.parent / "other.db").read_bytes() == before
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal(path.parent)


def test_a_damaged_journal(path: Path) -> None:
    """A journal of which a part was overwritten is refused."""
    journal, chapter = reopened(path)
    for index in range(300):
        chapter.put_one(digest_of(index), bytes(200))
    journal.close()
    data = bytearray(path.read_bytes())
    data[5000:20_000] = b"\xff" * 15_000
    path.write_bytes(data)
    with pytest.raises(JournalError, match="damaged"):
        Journal(path)


def test_a_full_disk(path: Path) -> None:
    """Where no space is left the error says so, and what was kept before is still there."""
    journal, chapter = reopened(path)
    chapter.put_one(FIRST, 1)
    assert chapter.get(FIRST) == 1
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(JournalError, match="no space is left"):
        for index in range(100):
            chapter.put_one(digest_of(index), bytes(100_000))
            chapter.get(digest_of(index))
    with pytest.raises(JournalError, match="no space is left"):
        chapter.put_one(digest_of("more"), 1)
    journal.close()  # which has been told
    journal, chapter = reopened(path)
    assert chapter.get(FIRST) == 1
    chapter.put_one(digest_of("last"), 1)
    journal._db.execute("PRAGMA query_only = 1")  # what is committed while it is closed fails, and nobody knows yet
    chapter.put_one(digest_of("lost"), 1)
    with pytest.raises(JournalError, match="readonly"):
        journal.close()


def make(constant: int, default: int = 0) -> Callable[[int], int]:
    scope: dict[str, Any] = {"__name__": "somewhere"}
    exec(f"def work(x, y={default}):\n    return x + {constant}", scope)
    function: Callable[[int], int] = scope["work"]
    return function


def test_a_changed_function(path: Path) -> None:
    """Results of a function whose code or defaults have changed are not used; one that is the same is known again."""
    journal, chapter = reopened(path, make(1))
    chapter.put_one(digest_of(1), 2)
    assert journal.chapter(make(1)) is chapter
    for other in (make(2), make(1, default=1)):
        with pytest.raises(JournalError, match=r"somewhere\.work.*changed"):
            journal.chapter(other)
    journal.close()


def test_functions_without_a_name_of_their_own(path: Path) -> None:
    """Lambdas share a name: one with other code is another function, not a changed one."""
    journal, chapter = reopened(path, lambda x: x + 1)
    other = journal.chapter(lambda x: x + 2)
    chapter.put_one(digest_of("k"), 1)
    assert other.places.keys() == set() and other is not chapter
    journal.close()


def test_fingerprints() -> None:
    """What a function holds belongs to it: bound arguments, closures, the object of a method."""

    def closed(n: int) -> Callable[[], int]:
        return lambda: n

    assert fingerprint(functools.partial(double, 1)) != fingerprint(functools.partial(double, 2))
    assert fingerprint(closed(1)) != fingerprint(closed(2)) and fingerprint(closed(1)) == fingerprint(closed(1))
    assert fingerprint([1].append) != fingerprint([2].append)
    assert name_of(functools.partial(double, 1)) == f"{__name__}.double"
    assert digest_of(np.arange(10_000)) == digest_of(np.arange(10_000)) != digest_of(np.arange(1, 10_001))
    with pytest.raises(UsageError, match="key="):
        digest_of(iter(()) and (x for x in ()))


def compute(part: JournaledMap, batch: int, log: list[Any], fail_at: Any = None) -> Iterator[Any]:
    """Stand for the workers: batches of items, in order; reads ahead as a map does."""
    waiting: list[Any] = []
    n_done = 0
    source = part.missing()
    while True:
        waiting = list(itertools.islice(source, batch))
        if not waiting:
            return
        log += waiting
        good = [item for item in waiting if item != fail_at]
        part.on_results(n_done, results_of([double(item) for item in good]))
        n_done += len(good)
        for item in waiting:
            if item == fail_at:
                raise ValueError(item)
            yield double(item)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("first", [range(0), range(20), range(5, 9), range(0, 40, 2)])
def test_a_map_computes_what_is_missing(path: Path, batch: int, first: range) -> None:
    """Whatever a journal has, the results are those of all items in their order, and only the rest is computed."""
    journal, chapter = reopened(path)
    log: list[Any] = []
    part = JournaledMap(chapter, first, None, False)
    assert list(part.merged(compute(part, batch, log))) == [double(x) for x in first]
    del log[:]
    part = JournaledMap(chapter, range(40), None, False)
    assert list(part.merged(compute(part, batch, log))) == [double(x) for x in range(40)]
    assert log == [x for x in range(40) if x not in first]
    part = JournaledMap(chapter, range(50), None, False)
    assert sorted(part.merged_unordered(compute(part, batch, log))) == [double(x) for x in range(50)]
    journal.close()


def test_a_map_that_failed(path: Path) -> None:
    """What was computed before a failure is kept."""
    journal, chapter = reopened(path)
    part = JournaledMap(chapter, range(10), None, False)
    with pytest.raises(ValueError, match="7"):
        list(part.merged(compute(part, 1, [], fail_at=7)))
    assert chapter.places.keys() == {digest_of(x) for x in range(7)}
    journal.close()


def test_keys_of_the_users(path: Path) -> None:
    """``key=`` says what an item is known by; without a journal it is refused."""
    journal, chapter = reopened(path)
    log: list[Any] = []
    part = JournaledMap(chapter, [("a", 1), ("b", 2)], lambda name, _: name, True)
    list(part.merged(compute(part, 1, log)))
    part = JournaledMap(chapter, [("b", 7), ("c", 1)], lambda name, _: name, True)
    assert next(iter(part.merged(compute(part, 2, log)))) == ("b", 2, "b", 2)
    assert log == [("a", 1), ("b", 2), ("c", 1)]
    journal.close()
    with pytest.raises(UsageError, match="key="):
        Shelf(None).map(double, [1], str, False, None)
