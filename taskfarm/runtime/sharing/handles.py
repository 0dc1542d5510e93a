"""Objects whose arrays are held once per host: the handles, and what a process knows of them.

The object is pickled with its large buffers apart, and both go into one block of shared memory (`Layout`). Whoever asks
a handle for its value maps the block, read-only, and unpickles the small part; the arrays then lie in the mapping,
which stays for as long as one of them lives.

A handle on rank 0 *owns* the block; a pickled one knows where to open it. Owners are counted by Python: handles that
are on their way inside tasks are held by the tasks' futures and maps (`Sharing.take_pickled`). Workers keep what they
have opened, so that the next task need not map it anew, until rank 0 says that the number is not needed any more: the
same message that lets them drop functions (`Crew.forget`).
"""

from __future__ import annotations

import math
import os
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from taskfarm.errors import UsageError
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import current_crew
from taskfarm.runtime.session import Session, current
from taskfarm.runtime.sharing.receiving import new_block
from taskfarm.transport.blocks import Block, memory_key, open_block
from taskfarm.wire.codec import Packed, pack, unpack
from taskfarm.wire.frames import Buffer

__all__ = ["Shared", "Sharing", "fill_block", "hold_until_done", "sharing_of", "zero_block"]

T = TypeVar("T")

_FACE = "sharing"
_ALIGNMENT = 4096  # bytes: a page, so that no array shares one with another
_MARK = 1 << 62  # in every number, so that it is none of a crew's
_RECENT = 64  # handles that were pickled and not asked for; by far more than one task names
_MISSING = object()


class Place(NamedTuple):
    """Where a block was made: who can open it there, and of which process."""

    key: str
    pid: int
    descriptor: int


class Sharing:
    """What this process knows of shared objects.

    Attributes
    ----------
    handles : mapping of int to Shared
        Those that live, by number.
    pickled : dict of int to deque
        Handles that were pickled a moment ago, by the thread that did.
    """

    def __init__(self) -> None:
        self.handles: weakref.WeakValueDictionary[int, Shared[Any]] = weakref.WeakValueDictionary()
        self.pickled: dict[int, deque[weakref.ref[Shared[Any]]]] = {}

    def note_pickled(self, handle: Shared[Any]) -> None:
        """Note that the thread at hand pickles `handle`."""
        self.pickled.setdefault(threading.get_ident(), deque(maxlen=_RECENT)).append(weakref.ref(handle))

    def take_pickled(self) -> list[Shared[Any]]:
        """Return, once, the handles that this thread has pickled: who keeps the pickle has to keep them, too."""
        found = self.pickled.pop(threading.get_ident(), ())
        return [handle for ref in found if (handle := ref()) is not None]


def sharing_of(session: Session) -> Sharing:
    """Return what this process knows of shared objects."""
    sharing: Sharing = session.face_state.setdefault(_FACE, Sharing())
    return sharing


class Shared(Generic[T]):
    """A handle of an object that `taskfarm.share` has put into shared memory; some 150 bytes when pickled.

    Pass it to tasks, alone or inside of other things, and ask it for its `value` there.

    Attributes
    ----------
    nbytes : int
        Size of the shared memory.
    writable : bool
        Whether arrays in it can be written to, by all processes of the host.

    Notes
    -----
    The memory is given back when the last handle on rank 0 is gone and no task holds one: when it is garbage
    collected, at `release`, at the end of a ``with`` block. Arrays that were taken from `value` stay valid for as long
    as they live. A pickled handle can be used by processes of the same user on hosts that have the data, while they do.
    """

    __slots__ = (
        "__weakref__", "_crews", "_finalizer", "_is_counted", "_number", "_place", "_value", "nbytes", "writable",
    )  # fmt: skip

    def __init__(self, number: int, place: Place, nbytes: int, writable: bool, is_counted: bool = False) -> None:
        self._number = number
        self._place = place
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._crews: list[Crew] = []
        self._is_counted = is_counted  # whether workers that keep it are told when it goes
        self._value: Any = _MISSING
        self.nbytes = nbytes
        self.writable = writable

    @classmethod
    def own(cls, block: Block, writable: bool) -> Shared[T]:
        """Return the handle that owns `block`, in the process that made it."""
        handle = cls(block.number, Place(memory_key(), os.getpid(), block.descriptor), block.size_bytes, writable)
        handle._finalizer = weakref.finalize(handle, _let_go, block, handle._crews, os.getpid())
        handle._finalizer.atexit = False  # the kernel does it
        sharing_of(current()).handles[block.number] = handle
        return handle

    @property
    def value(self) -> T:
        """The object; its arrays of 32 kB and more lie in shared memory, and cannot be written to.

        The same object at every access, for as long as this handle lives.

        Raises
        ------
        UsageError
            If the memory is gone, or this host does not have it.
        """
        if self._value is _MISSING:
            self._value = _read(self._map(), self.writable)
            worker = current().worker
            if worker is not None and self._is_counted:
                worker.keep(self._number, self)
        value: T = self._value
        return value

    def _map(self) -> Any:
        if self._finalizer is not None and not self._finalizer.alive:
            raise UsageError(f"{self!r} was released, and what it held is gone: call share again")
        places: list[tuple[int, int | None]] = [(self._place.pid, self._place.descriptor)]
        key = memory_key()
        if key != self._place.key:
            session = current()
            places = [(peer.pid, None) for peer in session.peers if peer.memory_key == key]  # the lowest has it first
            if not places:
                raise UsageError(
                    f"{self!r} is not on host {session.host}, but on the hosts of the job that shared it, for "
                    "processes of the same user there"
                )
        error: OSError | None = None
        for pid, descriptor in places:
            try:
                return open_block(self._number, pid, descriptor, writable=self.writable)
            except OSError as exc:
                error = error or exc
        raise UsageError(
            f"{self!r} is gone ({error}): its last handle on rank 0 died, or rank 0 did; keep the handle until "
            "the tasks that use it have ended"
        ) from error

    def release(self) -> None:
        """Give the memory back now, also where other references to this handle are left; in a task: let go of it."""
        self._value = _MISSING
        if self._finalizer is not None:
            self._finalizer()
            for crew in self._crews:
                crew.post(partial(crew.forget, self._number))
        else:
            worker = current().worker
            if worker is not None:
                worker.let_go(self._number)

    def announce(self, crew: Crew) -> None:
        """Have the workers of `crew` told when this handle is gone."""
        self._crews.append(crew)
        crew.post(partial(crew.supplies.note_all, self._number))

    def __enter__(self) -> Shared[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy:
            return np.array(self.value, dtype)
        return np.asarray(self.value, dtype)

    def __repr__(self) -> str:
        return f"<taskfarm.Shared {self._number & 0xFFFFFFFF:08x}, {self.nbytes} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        session = current()
        if self._finalizer is not None:
            sharing_of(session).note_pickled(self)
            crew = current_crew(session)
            if crew is not None and crew not in self._crews:
                self.announce(crew)
        is_counted = self._is_counted or bool(self._crews)
        return _arrive, (self._number, tuple(self._place), self.nbytes, self.writable, is_counted)


def _arrive(number: int, place: tuple[str, int, int], nbytes: int, writable: bool, is_counted: bool) -> Shared[Any]:
    """Return the handle with this number: the one that this process has, or a new one."""
    handles = sharing_of(current()).handles
    handle = handles.get(number)
    if handle is None:
        handle = Shared(number, Place(*place), nbytes, writable, is_counted)
        handles[number] = handle
    return handle


def hold_until_done(future: Future[Any], handles: list[Shared[Any]]) -> None:
    """Keep `handles` for as long as `future` is not done: its task may not have opened what they own."""
    if handles:
        future.add_done_callback(lambda _: handles.clear())


def _let_go(block: Block, crews: Sequence[Crew], pid: int) -> None:
    """Give up a block whose owner is gone; only note that workers are to be told, as this may run at any time."""
    if os.getpid() != pid:
        return  # a forked child
    block.close()
    for crew in crews:
        crew.functions.dying.append(block.number)


# What is in a block: the number of buffers, the size of the pickle and of each buffer (int64), the pickle, the buffers.


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Return where the pickle and the buffers of these sizes begin, and where the last one ends."""
    at = 8 * (1 + len(sizes))
    offsets = []
    for size in sizes:
        at = -(-at // _ALIGNMENT) * _ALIGNMENT
        offsets.append(at)
        at += size
    return [*offsets, at]


def fill_block(packed: Packed) -> Block:
    """Return a new block that holds a pickled object.

    Raises
    ------
    UsageError
        If this host has not so much memory, or no shared memory at all.
    """
    parts: list[Buffer] = [packed.body, *packed.buffers]
    return _fill([len(part) for part in parts], parts, writable=False)


def zero_block(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> Block:
    """Return a new block that holds an array of zeros, to be written to; errors as of `fill_block`."""
    body = pack((shape, dtype)).body
    return _fill([len(body), math.prod(np.atleast_1d(shape).tolist()) * dtype.itemsize], [body], writable=True)


def _fill(sizes: list[int], parts: list[Buffer], *, writable: bool) -> Block:
    *offsets, end = _offsets(sizes)
    try:
        block = new_block(_MARK | secrets.randbits(61), end)
        if writable:
            block.allocate()
        block.write(0, np.array([len(sizes), *sizes], np.int64).tobytes())
        for offset, part in zip(offsets, parts, strict=False):
            block.write(offset, part)
        block.seal(writable=writable)
    except (OSError, AttributeError) as exc:
        raise UsageError(f"share: {current().host} has no shared memory for {end} bytes: {exc}") from exc
    return block


def _read(memory: Any, writable: bool) -> Any:
    view = memoryview(memory)
    n = int(np.frombuffer(view, np.int64, 1)[0])
    sizes = np.frombuffer(view, np.int64, n, 8).tolist()
    parts: list[Buffer] = [view[at : at + size] for at, size in zip(_offsets(sizes), sizes, strict=False)]
    if not writable:
        return unpack(parts[0], parts[1:])
    shape, dtype = unpack(parts[0])
    return np.ndarray(shape, dtype, parts[1])
