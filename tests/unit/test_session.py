"""The session: its phases, alone and with other ranks, over a world that is made up."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from taskfarm.config import Config, OnError
from taskfarm.errors import InternalError, ProtocolError, UsageError, WorkerLostError
from taskfarm.runtime import ending, session
from taskfarm.runtime.launching import start
from taskfarm.runtime.session import PHASE_TABLE, Phase, PhaseEvent, Session, current
from taskfarm.transport.local import LocalHub
from taskfarm.wire.frames import Frame, Kind

LAUNCHER_VARIABLES = ("PMI_SIZE", "PMI_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")


class Aborted(BaseException):
    """The made-up world was aborted."""


@dataclass
class FakeWorld:
    """A world of `size` ranks of which this process is `rank`."""

    rank: int
    size: int
    host: str = "here"
    finalized: bool = False

    def library(self) -> str:
        return "Made-up MPI 1.0"

    def new_comm(self) -> Any:
        return SimpleNamespace(renew=lambda: "renewed", tracker=SimpleNamespace(place=None))

    def finalize(self) -> None:
        self.finalized = True

    def abort(self, status: int) -> None:
        raise Aborted(status)


@dataclass
class FakeOpening:
    """An opening in which the ranks in `absent` are missing, and those in `leaving` only come to let others go."""

    world: FakeWorld
    hub: LocalHub
    absent: list[int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)
    versions: dict[int, str] = field(default_factory=dict)
    deadlines: list[float] = field(default_factory=list)
    n_begun: int = 0
    served: bool | None = None

    def wait(self, deadline: float) -> bool:
        self.deadlines.append(deadline)
        return not self.absent

    def missing(self) -> list[int]:
        return self.absent

    def complete(self, n_cores: int, serves: bool, survives: bool) -> Any:
        assert n_cores >= 1
        assert not survives  # this process has no supervisor
        self.served = serves
        peers = [self.peer(rank) for rank in range(self.world.size)]
        transport = self.hub.transports()[self.world.rank]
        return SimpleNamespace(
            transport=transport, peers=peers, secret="s", watch_address=("127.0.0.1", 1), watch_listener=None
        )

    def peer(self, rank: int) -> Any:
        version = self.versions.get(rank, "v1")
        return SimpleNamespace(
            rank=rank, host=f"host{rank % 2}", versions=version, serves=rank not in self.leaving, trace=""
        )


NewSession = Callable[..., tuple[Session, FakeOpening]]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session in a process without MPI."""
    broken = ModuleType("taskfarm.transport.world")

    def no_library() -> None:
        raise RuntimeError("cannot load MPI library")

    broken.start_world = no_library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    return Session(Config())


@pytest.fixture
def new_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[NewSession]:
    """Makes sessions of one rank in a made-up world."""
    monkeypatch.setattr(ending, "install", lambda session: None)
    before = signal.getsignal(signal.SIGINT)

    def make(rank: int, size: int) -> tuple[Session, FakeOpening]:
        module = ModuleType("taskfarm.transport.world")
        opening = FakeOpening(FakeWorld(rank, size), LocalHub(size))

        def begin(config: Config) -> FakeOpening:
            opening.n_begun += 1
            return opening

        module.start_world = lambda: opening.world  # type: ignore[attr-defined]
        module.Opening = begin  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return Session(Config()), opening

    yield make
    signal.signal(signal.SIGINT, before)


# One process


def test_a_new_session_has_done_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a session looks at no world."""
    monkeypatch.setattr(Session, "_start_world", lambda self: pytest.fail("the world was started"))
    made = Session(Config(on_error=OnError.WAIT))
    assert made.phase is Phase.IDLE
    assert (made.controller, made.worker, made.exit_status, made.loop_launched) == (None, None, None, False)
    assert made.on_error is OnError.WAIT
    assert list(made.peers) == []


def test_without_mpi_it_is_one_process(alone: Session) -> None:
    """Where no MPI library is found, the process is rank 0 of 1 without a communicator; the reason is kept."""
    assert (alone.rank, alone.size, alone.comm) == (0, 1, None)
    assert alone.host
    assert isinstance(alone.mpi_error, RuntimeError)
    alone.finalize_mpi()


def test_one_process_opens_and_closes(alone: Session) -> None:
    """The phases follow the table; opening again is harmless, closing twice too, reopening is an error."""
    alone.open()
    assert alone.phase is Phase.OPEN
    controller = alone.controller
    assert controller is not None
    assert controller.farm.assign() == []
    alone.open()
    assert alone.controller is controller
    alone.registry.manage("object", owner=False)
    alone.close(1.0)
    assert alone.phase is Phase.CLOSED
    assert alone.registry.objects == {}
    alone.close(1.0)
    with pytest.raises(UsageError, match="the session has ended"):
        alone.open()


def test_closing_what_was_never_open_changes_nothing(alone: Session) -> None:
    """A session that did not open has nothing to close."""
    alone.close(1.0)
    assert alone.phase is Phase.IDLE


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("event", PhaseEvent)
def test_events_that_do_not_fit_change_nothing(alone: Session, phase: Phase, event: PhaseEvent) -> None:
    """In every phase an event leads where the table says, or raises and leaves the phase as it is."""
    alone.phase = phase
    if (phase, event) in PHASE_TABLE:
        alone._go_on(event)
        assert alone.phase is PHASE_TABLE[phase, event]
    else:
        with pytest.raises(ProtocolError, match=f"the session is {phase.name}"):
            alone._go_on(event)
        assert alone.phase is phase


def test_serving_without_being_a_worker_is_a_fault_of_ours(alone: Session) -> None:
    """Only a worker of an open session serves."""
    alone.open()
    with pytest.raises(InternalError):
        alone.serve()


# The world


def test_a_launcher_without_a_library_is_explained(alone: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a launcher, a missing library is an error: N processes would each do the whole work."""
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(UsageError, match="a launcher started 4 ranks, but MPI cannot be loaded: cannot load MPI"):
        _ = alone.size


@pytest.mark.parametrize("rank", [0, 3])
def test_a_foreign_launcher_is_explained_once(
    new_session: NewSession, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """If the launcher belongs to another MPI, one of the N processes says so and the others leave with status 1."""
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("PMI_RANK", str(rank))
    made, _ = new_session(0, 1)
    if rank == 0:
        with pytest.raises(UsageError, match=r"a launcher started 4 ranks.*Made-up MPI 1\.0"):
            _ = made.size
    else:
        with pytest.raises(SystemExit) as caught:
            _ = made.size
        assert caught.value.code == 1


def test_the_world_is_looked_at_once(new_session: NewSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank, size, host and communicator come from one look; the communicator is made once."""
    installed: list[Session] = []
    monkeypatch.setattr(ending, "install", installed.append)
    made, opening = new_session(2, 3)
    assert (made.rank, made.size, made.host) == (2, 3, "here")
    assert made.world is opening.world
    assert made.comm is made.comm
    assert installed == [made]
    assert made.phase is Phase.IDLE
    made.finalize_mpi()
    assert opening.world.finalized


# Meeting


def test_rank_0_meets_its_workers(new_session: NewSession) -> None:
    """When all ranks are here rank 0 has a controller with a slot per worker, on its host."""
    made, opening = new_session(0, 4)
    made.open()
    assert made.phase is Phase.OPEN
    assert made.controller is not None
    assert made.worker is None
    assert made.controller.farm.free == {1, 2, 3}
    assert made.controller.farm.free_hosts == {"host0", "host1"}
    assert [peer.rank for peer in made.peers] == [0, 1, 2, 3]
    assert opening.served is True
    made.open()
    assert opening.n_begun == 1


def test_a_worker_meets_rank_0_and_serves(new_session: NewSession) -> None:
    """A worker works until it is told to leave, says good-bye, and the session is closed."""
    made, opening = new_session(1, 2)
    made.open()
    assert made.worker is not None
    assert made.controller is None
    made.registry.manage("object", owner=False)
    rank_0 = opening.hub.transports()[0]
    rank_0.send(1, Frame(Kind.QUIT))
    other = threading.Thread(target=rank_0.close, args=(time.monotonic() + 5.0, lambda source, frame: None))
    other.start()
    made.serve()
    other.join(5.0)
    assert made.phase is Phase.CLOSED
    assert made.registry.objects == {}
    with pytest.raises(UsageError, match="the session has ended"):
        made.open()


def test_beginning_does_not_wait(new_session: NewSession) -> None:
    """`begin` starts to meet and returns; `open` goes on from there; repeating it begins nothing anew."""
    made, opening = new_session(0, 2)
    made.begin()
    made.begin()
    assert made.phase is Phase.OPENING
    assert (opening.n_begun, opening.deadlines) == (1, [])
    made.open()
    assert made.phase is Phase.OPEN
    assert opening.n_begun == 1


def test_beginning_alone_does_nothing(alone: Session) -> None:
    """With one process there is nobody to meet."""
    alone.begin()
    assert alone.phase is Phase.IDLE


def test_missing_ranks_are_named(new_session: NewSession) -> None:
    """Ranks that do not report in time are named; the session goes on opening and can be opened later."""
    made, opening = new_session(0, 4)
    opening.absent = [1, 3]
    now = time.monotonic()
    for _ in range(2):
        with pytest.raises(WorkerLostError, match=r"ranks \[1, 3\] did not report within 2 s") as caught:
            made.open(2.0)
        assert caught.value.ranks == (1, 3)
        assert made.phase is Phase.OPENING
        assert made.controller is None
    assert opening.deadlines == [pytest.approx(now + 2.0, abs=1.0)] * 2
    opening.absent = []
    made.open(2.0)
    assert made.phase is Phase.OPEN
    assert opening.n_begun == 1


def test_a_long_wait_is_announced(new_session: NewSession, caplog: pytest.LogCaptureFixture) -> None:
    """Who waits for ever says for whom after a while."""
    made, opening = new_session(0, 3)
    opening.absent = [2]
    with caplog.at_level(logging.WARNING, logger="taskfarm"), pytest.raises(WorkerLostError):
        made.open(math.inf)
    assert caplog.messages == ["rank 0 waits for ranks [2] to enter their loop"]
    assert opening.deadlines[1] == math.inf
    assert opening.deadlines[0] == pytest.approx(time.monotonic() + start.WAIT_WARNING_S, abs=1.0)


def test_ranks_that_end_without_serving_are_named(new_session: NewSession) -> None:
    """A rank that came only to end is an error on rank 0, unless rank 0 itself is about to end."""
    made, opening = new_session(0, 4)
    opening.leaving = [2]
    with pytest.raises(WorkerLostError, match=r"ranks \[2\] ended without entering their loop") as caught:
        made.open()
    assert caught.value.ranks == (2,)
    assert made.phase is Phase.OPEN
    made, opening = new_session(0, 4)
    opening.leaving = [2]
    made.open(serves=False)
    assert opening.served is False


def test_other_versions_are_a_warning(new_session: NewSession, caplog: pytest.LogCaptureFixture) -> None:
    """Ranks with other versions are named by their host, once per host."""
    made, opening = new_session(0, 6)
    opening.versions = {1: "v2", 3: "v2"}
    with caplog.at_level(logging.WARNING, logger="taskfarm"):
        made.open()
    assert caplog.messages == ["rank 0: host host1 has other versions: v2; rank 0 has v1"]


# The end


def test_closing_sends_the_workers_away(new_session: NewSession) -> None:
    """Rank 0 tells every worker to leave, waits for their good-byes, and agrees with them that nothing is left."""
    made, opening = new_session(0, 3)
    made.open()
    transports = opening.hub.transports()
    said: list[tuple[int, Kind]] = []

    def work(rank: int) -> None:
        item = transports[rank].receive(time.monotonic() + 5.0)
        assert item is not None
        said.append((rank, item[1].kind))
        transports[rank].send(0, Frame(Kind.BYE))
        transports[rank].close(time.monotonic() + 5.0, lambda source, frame: None)

    workers = [threading.Thread(target=work, args=(rank,)) for rank in (1, 2)]
    for worker in workers:
        worker.start()
    made.close(5.0)
    for worker in workers:
        worker.join(5.0)
    assert made.phase is Phase.CLOSED
    assert sorted(said) == [(1, Kind.QUIT), (2, Kind.QUIT)]


@pytest.mark.parametrize(("exit_status", "expected"), [(None, 1), (3, 3)])
def test_workers_that_do_not_leave_end_the_job(
    new_session: NewSession, capsys: pytest.CaptureFixture[str], exit_status: int | None, expected: int
) -> None:
    """If workers stay, the job is aborted with the status that rank 0 is about to exit with, or 1."""
    made, _ = new_session(0, 3)
    made.open()
    made.exit_status = exit_status
    with pytest.raises(Aborted) as caught:
        made.close(0.001)
    assert caught.value.args == (expected,)
    assert "ranks [1, 2] are still at work and do not leave" in capsys.readouterr().err


def test_a_stuck_job_ends_with_its_own_status(new_session: NewSession, capsys: pytest.CaptureFixture[str]) -> None:
    """What the watch channel decides is printed, and the job aborted."""
    made, _ = new_session(0, 2)
    made.open()
    with pytest.raises(Aborted) as caught:
        made.end_stuck_job("rank 1 is stuck")
    assert caught.value.args == (session.STUCK_STATUS,)
    assert capsys.readouterr().err == "taskfarm: rank 1 is stuck\n"


# The one session of the process


def test_there_is_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """All faces share one session, made at the first use with the options of the environment at that time."""
    monkeypatch.setattr(session, "_session", None)
    monkeypatch.setenv("TASKFARM_STUCK_S", "7.5")
    made = current()
    monkeypatch.setenv("TASKFARM_STUCK_S", "8.5")
    assert current() is made
    assert made.config.stuck_s == 7.5
    assert os.environ["TASKFARM_STUCK_S"] == "8.5"


def test_a_bad_option_makes_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that cannot be read is an error at the first use, again at the next one."""
    monkeypatch.setattr(session, "_session", None)
    monkeypatch.setenv("TASKFARM_SPIN", "perhaps")
    for _ in range(2):
        with pytest.raises(UsageError, match="TASKFARM_SPIN"):
            current()
