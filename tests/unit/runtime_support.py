"""A whole farm within this process: a controller in the test's thread, every worker in a thread of its own.

Frames go through `taskfarm.transport.local`, which encodes and decodes each. Functions that run on several ranks use
`here()` to learn on which one they are.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from taskfarm.config import Config
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import TASK_ENDED, Surroundings
from taskfarm.runtime.options import ResultWanted
from taskfarm.runtime.registry import Registry
from taskfarm.runtime.runner import decode_failure
from taskfarm.runtime.work import pack_work
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Incoming
from taskfarm.transport.local import LocalDirect, LocalHub, LocalTransport
from taskfarm.wire.codec import unpack
from taskfarm.wire.frames import Frame, Kind

LIMIT_S = 10.0  # a test that waits longer than this for anything hangs
FULL = ResultWanted.MESSAGE | ResultWanted.VALUE

_rank_state = threading.local()


@dataclass
class Here:
    """What a function finds on the rank that it runs on."""

    rank: int
    registry: Registry
    endpoint: Any = None
    n_renewed: int = 0
    n_comm_entries: int = 0
    failures: list[tuple[int, str]] = field(default_factory=list)


def here() -> Here:
    """Return this rank's state."""
    state: Here = _rank_state.here
    return state


class GuardedDirect(LocalDirect):
    """The part of a `GuardedTransport` that moves arrays: a hang is a failure there, too."""

    def wait_until(
        self, condition: Callable[[], bool], deadline: float, on_frame: Callable[[int, Frame], None]
    ) -> bool:
        """Wait, but not for ever."""
        limit = time.monotonic() + LIMIT_S
        held = super().wait_until(condition, min(deadline, limit), on_frame)
        if not held and deadline > limit:
            raise AssertionError(f"waited {LIMIT_S} s for a condition")
        return held


class GuardedTransport(LocalTransport):
    """A local transport that turns a hang into a failure, and may pretend that its sends take time.

    With `slow_sends`, `complete_sends` first takes in what has arrived, as a transport does whose receiver is busy.
    """

    def __init__(self, hub: LocalHub, rank: int, slow_sends: bool = False) -> None:
        super().__init__(hub, rank)
        self.direct = GuardedDirect(hub, self)
        self.slow_sends = slow_sends

    def receive(self, deadline: float) -> Incoming | None:
        """Receive, but not for ever."""
        limit = time.monotonic() + LIMIT_S
        item = super().receive(min(deadline, limit))
        if item is None and deadline > limit <= time.monotonic() and not self.interrupted:
            raise AssertionError(f"rank {self.rank} waited {LIMIT_S} s for a frame")
        return item

    def complete_sends(self, deadline: float, on_frame: Callable[[int, Frame], None]) -> bool:
        """Let time pass first if sends are slow."""
        if self.slow_sends:
            while (item := self.receive_nowait()) is not None:
                on_frame(*item)
        return super().complete_sends(deadline, on_frame)


class LocalFarm:
    """The farm; ranks are on host ``even`` or ``odd``."""

    def __init__(self, size: int, config: Config | None = None, slow_sends: bool = False) -> None:
        self.hub = LocalHub(size)
        self.config = config or Config()
        self.states = [Here(rank, Registry()) for rank in range(size)]
        self.transports = [GuardedTransport(self.hub, rank, slow_sends) for rank in range(size)]
        hosts = {rank: self.host(rank) for rank in range(1, size)}
        self.controller = Controller(self.transports[0], hosts, self._surroundings(self.states[0]))
        self.states[0].endpoint = self.controller
        _rank_state.here = self.states[0]
        self.threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    @staticmethod
    def host(rank: int) -> str:
        return "odd" if rank % 2 else "even"

    def _surroundings(self, state: Here) -> Surroundings:
        def renew_comm() -> None:
            state.n_renewed += 1

        return Surroundings(
            self.host(state.rank),
            state.registry,
            self.config,
            renew_comm,
            lambda: state.n_comm_entries,
            lambda: lambda call, text: state.failures.append((call, text)),
        )

    def new_worker(self, rank: int) -> Worker:
        """Return the worker of `rank`, which nobody runs yet."""
        worker = Worker(self.transports[rank], self._surroundings(self.states[rank]))
        self.states[rank].endpoint = worker
        return worker

    def start(self) -> None:
        """Start every worker."""
        for rank in range(1, self.hub.size):
            thread = threading.Thread(target=self._work, args=(self.new_worker(rank),), name=f"rank-{rank}")
            self.threads.append(thread)
            thread.start()

    def _work(self, worker: Worker) -> None:
        _rank_state.here = self.states[worker.transport.rank]
        try:
            worker.run()
            worker.transport.close(time.monotonic() + LIMIT_S, lambda source, frame: None)
        except BaseException as exc:  # noqa: BLE001 - whatever ended the thread fails the test
            self.errors.append(exc)

    def stop(self) -> None:
        """End every worker as the session does, and see that nothing is left."""
        self.controller.drain_tasks(time.monotonic() + LIMIT_S, "the end of the test", at_end=True)
        assert self.controller.quit_workers(time.monotonic() + LIMIT_S) == []
        self.join()

    def join(self) -> None:
        """Agree with the workers, which have been told to leave, that nothing is left."""
        assert self.transports[0].close(time.monotonic() + LIMIT_S, self.controller.handle)
        for thread in self.threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
        assert self.errors == []
        assert [list(queue) for queue in self.hub.queues] == [[] for _ in self.hub.queues]
        self.controller.farm.check_invariants()

    # Short forms

    def spawn(
        self,
        fn: Callable[..., Any],
        *args: Any,
        count: int | None = 1,
        wanted: ResultWanted = FULL,
        hosts: list[str] | None = None,
    ) -> list[tuple[int, int]]:
        """Spawn, and return ``(rank, number)`` of each task."""
        assigned = self.controller.spawn(pack_work("spawn", fn, args, {}), count, hosts, wanted)
        return [(slot.rank, slot.number) for slot in assigned]

    def call(self, fn: Callable[..., Any], *args: Any, values: bool = False) -> Any:
        """Make a collective call."""
        return self.controller.caller.call(fn, args, {}, self.config.on_error, values=values)

    def next_message(self, timeout_s: float = LIMIT_S, rank: int | None = None) -> Any:
        """Receive on rank 0: ``(rank, number, message)`` or None.

        A message is ``("exit",)``, ``("result", value)``, ``("failed", failure)`` or ``("message", object)``.
        """
        letter = self.controller.take_letter(time.monotonic() + timeout_s, rank)
        return None if letter is None else (letter.rank, letter.number, read(letter.content))

    def collect(self, n_exits: int) -> list[Any]:
        """Receive until `n_exits` tasks have exited; return all messages."""
        found: list[Any] = []
        while sum(message == ("exit",) for *_, message in found) < n_exits:
            item = self.next_message()
            assert item is not None
            found.append(item)
        return found


def read(content: Any) -> tuple[Any, ...]:
    """Return what a letter holds in a readable form."""
    if content is TASK_ENDED:
        return ("exit",)
    if content.kind is Kind.MESSAGE:
        return "message", unpack(content.body, content.buffers)
    assert content.kind is Kind.DONE
    if content.option & ResultWanted.FAILED:
        return "failed", decode_failure(content.body)
    return "result", unpack(content.body, content.buffers) if content.option & ResultWanted.VALUE else None


@contextmanager
def local_farm(size: int, config: Config | None = None, slow_sends: bool = False) -> Iterator[LocalFarm]:
    """A running farm that has ended, with nothing left over, when the block is through."""
    farm = LocalFarm(size, config, slow_sends)
    farm.start()
    try:
        yield farm
    finally:
        farm.stop()


# What tasks do


def receive(rank: int | None = None, deadline: float = math.inf) -> Any:
    """Receive a message in a task; None if none came."""
    letter = here().endpoint.take_letter(deadline, rank)
    return None if letter is None else unpack(letter.content.body, letter.content.buffers)


def send(rank: int, number: int, obj: Any) -> None:
    """Send a message from a task."""
    here().endpoint.send_message(rank, number, obj)


# What calls do

logs: dict[int, list[Any]] = {}
gates: dict[str, threading.Event] = {}


def note(entry: Any) -> int:
    """Write `entry` down on every rank."""
    logs.setdefault(here().rank, []).append(entry)
    return here().rank


def everywhere(n_ranks: int, entries: list[Any]) -> dict[int, list[Any]]:
    """Return what `logs` holds when every rank has noted `entries`."""
    return dict.fromkeys(range(n_ranks), entries)


def hold_rank(rank: int) -> None:
    """Wait on one rank until the gate opens."""
    if here().rank == rank:
        assert gates["gate"].wait(LIMIT_S)


def wait_at_gate() -> int:
    """Wait until the gate opens."""
    hold_rank(here().rank)
    return here().rank


def where() -> int:
    """Return the rank."""
    return here().rank


def fail_on(ranks: set[int], what: str = "bad", uses_comm: bool = False) -> str:
    """Raise on some ranks, which may all have used the communicator before."""
    here().n_comm_entries += uses_comm
    if here().rank in ranks:
        raise ValueError(f"{what} on {here().rank}")
    return "fine"


@contextmanager
def new_gate() -> Iterator[threading.Event]:
    """Yield a closed gate; it opens in any case at the end."""
    gates["gate"] = threading.Event()
    yield gates["gate"]
    gates["gate"].set()
