"""A file in which results are kept, so that a program that is started again computes only what is missing.

Theory of operation. A journal is a SQLite file (write-ahead log, so what was committed survives the death of every
process, and a loss of power at most costs the last moments). A *function* is known by its name and a fingerprint of
its code; an *item* by a digest of its pickle, or of what ``key=`` makes of it. Results that arrive together are one row
(*batch*), pickled as they came, with the digests of their items side by side; batches within 50 ms are one transaction.
So the file only ever grows at its end. A row per item, sorted by digests, would have every commit write to most of the
pages that there are: 15 us per item instead of 4, and more with each million.

Where the result of an item is, is held in memory, some 140 bytes each; results are read when they are asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from taskfarm.errors import JournalError
from taskfarm.futures._fingerprint import DIGEST_BYTES, fingerprint, name_of
from taskfarm.runtime.executor.results import ReplyOption, Results
from taskfarm.wire.codec import pack
from taskfarm.wire.frames import Buffer

__all__ = ["Chapter", "Journal"]

_APPLICATION = 0x74466A32  # "tFj2": the journal's form is part of it
_SCHEMA = """
CREATE TABLE function (id INTEGER PRIMARY KEY, name TEXT NOT NULL, fingerprint BLOB NOT NULL);
CREATE TABLE batch (id INTEGER PRIMARY KEY, function INTEGER NOT NULL, keys BLOB NOT NULL, body BLOB NOT NULL);
"""
_CHECKPOINT_PAGES = 16384  # 64 MB; each checkpoint waits for the disk
COMMIT_S = 0.05  # results that follow one another as fast are committed together: a commit takes 0.1 ms of CPU
COMMIT_BYTES = 8 << 20
_TAKEN = object()
_NO_KEY = bytes(DIGEST_BYTES)  # stands for an item whose result is not kept
_POSITION_BITS = 32  # a place is the number of the batch, and the position of the item in it
_HEAD = struct.Struct("<II")
_LENGTH = struct.Struct("<Q")


class Journal:
    """An open journal; any thread may use it.

    Parameters
    ----------
    path : str or path
        The file. It is made if it is not there.

    Raises
    ------
    JournalError
        If it cannot be used; it has not been changed then.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        self._chapters: dict[int, Chapter] = {}
        self._pending: list[tuple[int, int, bytes, bytes]] = []
        self._pending_bytes = 0
        self._committed_at = -math.inf
        self._thread: threading.Thread | None = None
        self._has_pending = threading.Event()
        self._is_closed = False
        self._next_batch = 1
        self._error: JournalError | None = None
        self._told = False  # whether somebody has been told of the error
        try:
            self._db = sqlite3.connect(self.path, timeout=0.0, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as exc:
            raise JournalError(f"journal {self.path!r} cannot be opened: {exc}") from exc
        try:
            self._open()
        except sqlite3.Error as exc:
            self._db.close()
            raise self._explained(exc) from exc
        except JournalError:
            self._db.close()
            raise

    def _open(self) -> None:
        [application] = self._db.execute("PRAGMA application_id").fetchone()
        [n_tables] = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION and (application or n_tables):
            raise JournalError(f"journal {self.path!r} is a database of something else; give another file")
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # one job at a time; works without shared memory, too
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        if application == _APPLICATION:
            [verdict] = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise JournalError(f"journal {self.path!r} is damaged ({verdict}); move it away to begin anew")
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("COMMIT")
            [last] = self._db.execute("SELECT max(id) FROM batch").fetchone()
            self._next_batch = (last or 0) + 1
            return
        self._db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {_APPLICATION}")
        self._db.execute("COMMIT")

    def _explained(self, exc: sqlite3.Error) -> JournalError:
        text = str(exc)
        if "locked" in text:
            return JournalError(f"journal {self.path!r} is in use by another process")
        if "full" in text:
            return JournalError(
                f"journal {self.path!r}: no space is left ({text}); what it has is safe, free some space"
            )
        if "not a database" in text or "malformed" in text:
            return JournalError(
                f"journal {self.path!r} is no journal, or is damaged ({text}); nothing was changed, give another file"
            )
        if "disk I/O" in text:
            text += "; the disk may be full, or gone; what it has is safe"
        return JournalError(f"journal {self.path!r}: {text}")

    def chapter(self, fn: Any) -> Chapter:
        """Return what the journal has of the results of `fn`.

        Raises
        ------
        JournalError
            If it has results of a function of this name with other code.
        """
        name, mark = name_of(fn), fingerprint(fn)
        with self._lock, self._errors():
            rows = self._db.execute("SELECT id, fingerprint FROM function WHERE name = ?", (name,)).fetchall()
            numbers = [number for number, other in rows if other == mark]
            if not numbers and rows and "<" not in name:  # lambdas and local functions share names
                raise JournalError(
                    f"journal {self.path!r} has results of {name}, whose code, defaults or bound arguments have "
                    "changed since: give another file, or undo the change"
                )
            if not numbers:
                cursor = self._db.execute("INSERT INTO function (name, fingerprint) VALUES (?, ?)", (name, mark))
                numbers = [int(cursor.lastrowid or 0)]
            if numbers[0] not in self._chapters:
                found = self._db.execute("SELECT id, keys FROM batch WHERE function = ? ORDER BY id", (numbers[0],))
                self._chapters[numbers[0]] = Chapter(self, numbers[0], _places(found))
            return self._chapters[numbers[0]]

    def write(self, function: int, keys: bytes, blob: bytes) -> int:
        """Keep a batch, the digests of whose items are `keys`, and whose results are `blob`; return its number.

        It is committed at once, or with others within `COMMIT_S`. What a later commit raises is raised by the next
        method that is called.
        """
        with self._lock:
            self._raise_error()
            number = self._next_batch
            self._next_batch += 1
            self._pending.append((number, function, keys, blob))
            self._pending_bytes += len(blob) + len(keys)
            if time.monotonic() - self._committed_at >= COMMIT_S or self._pending_bytes >= COMMIT_BYTES:
                self._commit()
                self._raise_error()
            elif self._thread is None:
                self._thread = threading.Thread(target=self._commit_late, name="taskfarm journal", daemon=True)
                self._thread.start()
            self._has_pending.set()
            return number

    def _commit_late(self) -> None:
        while True:
            self._has_pending.wait()
            time.sleep(COMMIT_S)
            with self._lock:
                if self._is_closed:
                    return
                self._has_pending.clear()
                self._commit()

    def _commit(self) -> None:
        """Write what waits for it, in one transaction; with the lock held."""
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        self._committed_at = time.monotonic()
        if not pending or self._error is not None:
            return
        db = self._db
        try:
            db.execute("BEGIN")
            db.executemany("INSERT INTO batch VALUES (?, ?, ?, ?)", pending)
            db.execute("COMMIT")
        except sqlite3.Error as exc:
            self._error = self._explained(exc)
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")

    def _raise_error(self) -> None:
        if self._error is not None:
            self._told = True
            raise self._error

    def read_batch(self, number: int) -> bytes:
        """Return the results of a batch."""
        with self._lock, self._errors():
            if self._pending and number >= self._pending[0][0]:
                self._commit()
                self._raise_error()
            [blob] = self._db.execute("SELECT body FROM batch WHERE id = ?", (number,)).fetchone()
        data: bytes = blob
        return data

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except sqlite3.Error as exc:
            raise self._explained(exc) from exc

    def close(self) -> None:
        """Close the file; what was written is kept. May be repeated.

        Raises
        ------
        JournalError
            If something could not be, and nobody has been told of it.
        """
        with self._lock, self._errors():
            self._commit()
            self._is_closed = True
            self._has_pending.set()
            self._db.close()
            if not self._told:
                self._raise_error()


class Chapter:
    """Results of one function.

    Attributes
    ----------
    places : dict of bytes to int
        Where the results of the items are that are there.
    """

    def __init__(self, journal: Journal, number: int, places: dict[bytes, int]) -> None:
        self._journal = journal
        self._number = number
        self._last: tuple[int, list[Any]] = (0, [])
        self.places = places

    def put(self, keys: Sequence[bytes], results: Results) -> None:
        """Keep the results of a batch, for items with these `keys`."""
        _, failures = results.read("map")
        if len(failures) == len(keys):
            return
        known = [_NO_KEY if position in failures else key for position, key in enumerate(keys)] if failures else keys
        number = self._journal.write(self._number, b"".join(known), _join(results))
        first = number << _POSITION_BITS
        self.places.update(zip(known, range(first, first + len(known)), strict=True))
        if failures:
            del self.places[_NO_KEY]

    def put_one(self, key: bytes, value: object) -> None:
        """Keep one result."""
        packed = pack(value)
        number = self._journal.write(self._number, key, _join(Results(1, *packed, ReplyOption.VALUE)))
        self.places[key] = number << _POSITION_BITS

    def get(self, key: bytes) -> Any:
        """Return the result of an item that is in `places`.

        Raises
        ------
        JournalError
            If it cannot be loaded.
        """
        number, position = divmod(self.places[key], 1 << _POSITION_BITS)
        if self._last[0] != number or self._last[1][position] is _TAKEN:  # neighbours mostly come one after the other
            values, failures = _split(self._journal.read_batch(number)).read("the journal")
            if position in failures:
                raise JournalError(
                    f"journal {self._journal.path!r}: a result cannot be loaded: {failures[position]!r}"
                ) from failures[position]
            self._last = number, values
        value, self._last[1][position] = self._last[1][position], _TAKEN  # the caller may change what it gets
        return value


def _places(batches: Iterable[tuple[int, bytes]]) -> dict[bytes, int]:
    """Return where the results of items are, given the digests of the items of each batch; the last ones count."""
    places: dict[bytes, int] = {}
    for number, keys in batches:
        place = number << _POSITION_BITS
        for start in range(0, len(keys), DIGEST_BYTES):
            places[keys[start : start + DIGEST_BYTES]] = place
            place += 1
    places.pop(_NO_KEY, None)
    return places


def _join(results: Results) -> bytes:
    parts: list[Buffer] = [_HEAD.pack(results.form, results.n)]
    for part in (results.body, *results.buffers):
        parts += [_LENGTH.pack(len(part)), part]
    return b"".join(parts)


def _split(blob: bytes) -> Results:
    form, n = _HEAD.unpack_from(blob)
    view = memoryview(blob)[_HEAD.size :]
    parts: list[Buffer] = []
    while len(view):
        end = _LENGTH.size + _LENGTH.unpack_from(view)[0]
        parts.append(bytearray(view[_LENGTH.size : end]))  # an array in it is to be writable
        view = view[end:]
    return Results(n, parts[0], parts[1:], form)
