"""Who counts as dead, what the job can do without, and what a controller makes of a loss."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from runtime_support import LocalFarm, local_farm

from taskfarm.errors import WorkerLostError
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.lines import Lines
from taskfarm.runtime.runner import decode_failure
from taskfarm.runtime.survival.hub import Hub
from taskfarm.runtime.survival.vitals import Mark, describe_end, look_at, no_marks
from taskfarm.runtime.work import pack_work
from taskfarm.scheduling.survival import Look, Pulse, Standing, fatal_reason
from taskfarm.transport.memory import memory_of
from taskfarm.wire.frames import Frame, Kind, encode

INTERVAL_S = 2.0
LIMIT_S = 10.0


def looks(pulse: Pulse, state: str, cpu_per_s: float, beats: bool, seconds: float, since: float = 0.0) -> str:
    """Look at a process for so many seconds; return the first thing that is wrong."""
    for step in range(int(seconds / INTERVAL_S) + 1):
        passed = since + step * INTERVAL_S
        wrong = pulse.on_look(Look(passed, int(passed) if beats else 0, passed * cpu_per_s, state))
        if wrong:
            return wrong
    return ""


@pytest.mark.parametrize(
    ("state", "cpu_per_s", "beats", "expected"),
    [
        ("S", 0.0, True, ""),  # waits
        ("R", 1.0, True, ""),  # computes
        ("R", 1.0, False, ""),  # computes in C code that holds the interpreter's lock, perhaps for hours
        ("D", 0.0, False, ""),  # waits for a file system
        ("t", 0.0, False, ""),  # somebody looks at it with a debugger
        ("T", 0.0, False, "was stopped for 10 s"),
        ("S", 0.0, False, "gave no sign of life for 10 s"),
        ("S", 0.001, False, "gave no sign of life for 10 s"),
    ],
)
def test_pulse(state: str, cpu_per_s: float, beats: bool, expected: str) -> None:
    """Stopped and hung processes are noticed at the limit, working and waiting ones are not, however long."""
    assert looks(Pulse(INTERVAL_S, LIMIT_S), state, cpu_per_s, beats, 1000.0) == expected
    assert not looks(Pulse(INTERVAL_S, LIMIT_S), state, cpu_per_s, beats, LIMIT_S - INTERVAL_S)


def test_pulse_of_an_endless_loop() -> None:
    """A rank that computes without ever letting another thread run is dead only if the user has set a limit."""
    assert "no sign of life for 20 s" in looks(Pulse(INTERVAL_S, LIMIT_S, 20.0), "R", 1.0, False, 30.0)


def test_the_limit_is_kept_to_the_moment() -> None:
    """Silence counts from the last beat, not from the look that missed it; the last look comes at the limit."""
    pulse = Pulse(INTERVAL_S, LIMIT_S)
    now, n_looks = 0.0, 0
    while not (wrong := pulse.on_look(Look(now, min(now, 3.9), min(now, 3.9), "T" if now > 3.9 else "R"))):
        now = pulse.next_look(now)
        n_looks += 1
    assert wrong == "was stopped for 10 s"
    assert now == pytest.approx(3.9 + LIMIT_S)
    assert n_looks == 7


def test_nobody_dies_while_nobody_looks() -> None:
    """When the whole machine was suspended, the time counts against nobody."""
    pulse = Pulse(INTERVAL_S, LIMIT_S)
    for night in range(20):
        assert pulse.on_look(Look(night * 1e4, 0, 0.0, "S")) == ""


def test_what_cannot_be_spared() -> None:
    """A rank can be spared if it has left all calls that rank 0 has sent."""
    assert fatal_reason(Standing(7, 0), 7) == ""
    assert fatal_reason(Standing(0, 0), 0) == ""
    assert fatal_reason(Standing(6, 7), 7) == "inside collective call 7"
    assert fatal_reason(Standing(6, 0), 7) == "before it had run collective call 7"
    assert fatal_reason(Standing(7, 0, in_meeting=True), 7) == "while the ranks of a task made their communicator"


def test_looking_at_a_process() -> None:
    """What is seen of a living process is its state and the processor time that it has used."""
    look = look_at(os.getpid(), 1_250_000_000, 1.5)
    assert (look.now, look.beat, look.state) == (1.5, 1.25, "R")
    assert 0 < look.cpu_s <= time.process_time() + 1
    assert look_at(0, 0, 0.0).cpu_s == 0.0  # there is no such process any more


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("import os; os._exit(3)", "exited with status 3"),
    ],
)
def test_ends_are_described(code: str, expected: str) -> None:
    """The wait status of a process is told by the signal's name, or the exit status."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ)
    assert describe_end(os.waitpid(pid, 0)[1]) == expected


# The hub


class Ended(BaseException):
    """The hub has ended the job."""


class FakeSupervisor:
    """Rank 0's supervisor, without a process."""

    def __init__(self) -> None:
        self.page = no_marks()
        self.environ: dict[str, str] = {}
        self.is_damaged = False
        self.said: list[str] = []
        self.told: list[Any] = []
        self.sources: list[tuple[socket.socket, Any]] = []

    def watch(self, sock: socket.socket, on_readable: Any) -> None:
        sock.settimeout(5.0)
        self.sources.append((sock, on_readable))

    def unwatch(self, sock: socket.socket) -> None:
        self.sources = [source for source in self.sources if source[0] is not sock]
        sock.close()

    def say(self, text: str) -> None:
        self.said.append(text)

    def tell_rank(self, message: Any) -> None:
        self.told.append(message)


class Bench:
    """A hub for three ranks, and clients of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.supervisor = FakeSupervisor()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.hub = Hub(self.supervisor, self.listener, "secret", ["a", "a", "b"], 10.0)  # type: ignore[arg-type]
        self.ends: list[tuple[int, float]] = []

        def end_all(status: int, grace_s: float, **options: bool) -> None:
            self.ends.append((status, grace_s))
            raise Ended

        monkeypatch.setattr(self.hub, "end_all", end_all)

    def connect(self, hello: bytes) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=5.0)
        self.supervisor.sources[0][1]()
        client.sendall(hello)
        self.supervisor.sources[-1][1]()
        return client

    def say(self, client: socket.socket, message: Any) -> None:
        client.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        for sock, on_readable in self.supervisor.sources[1:]:
            if sock.getpeername() == client.getsockname():
                on_readable()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(monkeypatch)
    yield bench
    for sock, _ in bench.supervisor.sources:
        sock.close()


@pytest.mark.parametrize(
    "hello", [b"wrong 1\n", b"\n", b"\xff\xfe\n", b"secret 7\n", b"secret 0\n", b"secret x\n", b"x" * (1 << 21)]
)
def test_strangers_change_nothing(bench: Bench, hello: bytes) -> None:
    """Who does not know the secret, or claims to be a rank that cannot be, is dropped without a word."""
    n_before = len(bench.supervisor.sources)
    client = socket.create_connection(bench.listener.getsockname(), timeout=5.0)
    bench.supervisor.sources[0][1]()

    def send() -> None:
        with contextlib.suppress(OSError):  # dropped in the middle of it
            client.sendall(hello)

    sender = threading.Thread(target=send)
    sender.start()
    while len(bench.supervisor.sources) > n_before:
        bench.supervisor.sources[-1][1]()
    sender.join()
    assert not bench.supervisor.said
    assert not bench.ends
    client.close()


def test_a_second_connection_of_a_rank_is_a_stranger(bench: Bench) -> None:
    """Even who knows the secret cannot take the place of a supervisor that is there."""
    first = bench.connect(b"secret 1\n")
    second = bench.connect(b"secret 1\n")
    assert second.recv(1) == b""
    bench.say(first, {"here": 1})
    assert not bench.ends
    first.close()
    second.close()


def test_a_death_that_can_be_spared(bench: Bench) -> None:
    """Rank 0 is told, the others stay, and the shared page says that there is news."""
    bench.supervisor.page[Mark.LIFE] = 1
    other, victim = bench.connect(b"secret 1\n"), bench.connect(b"secret 2\n")
    bench.say(victim, {"died": ["was killed by SIGKILL", 0, 0, 0]})
    assert bench.supervisor.told == [{"lost": [2, "was killed by SIGKILL"]}]
    assert bench.supervisor.page[Mark.NEWS] == 1
    assert bench.supervisor.is_damaged
    assert json.loads(other.recv(100)) == {"damaged": 1}
    other.close()
    victim.close()


@pytest.mark.parametrize(
    ("life", "last_call", "message", "words"),
    [
        (1, 5, {"died": ["was killed by SIGKILL", 4, 5, 0]}, "rank 2 (host b) was killed by SIGKILL inside collective"),
        (1, 0, {"died": ["was killed by SIGSEGV", 0, 0, 1]}, "was killed by SIGSEGV while the ranks of a task made"),
        (0, 0, {"died": ["exited with status 1", 0, 0, 0]}, "exited with status 1 while the job was starting"),
        (1, 0, b"nonsense\n", "rank 2 (host b) is lost, perhaps with its host"),
    ],
)
def test_a_death_that_cannot(bench: Bench, life: int, last_call: int, message: Any, words: str) -> None:
    """Inside a call, before the job has started, or with the supervisor: the job ends with 75, and says who died."""
    bench.supervisor.page[Mark.LIFE], bench.supervisor.page[Mark.LAST_CALL] = life, last_call
    client = bench.connect(b"secret 2\n")
    with pytest.raises(Ended):
        bench.say(client, message)
    assert bench.ends == [(75, 0.0)]
    assert words in bench.supervisor.said[0]
    client.close()


def test_a_death_at_the_end(bench: Bench) -> None:
    """If the script has ended, its status stays what it is."""
    bench.supervisor.page[Mark.LIFE], bench.supervisor.page[Mark.STATUS] = 2, 3
    client = bench.connect(b"secret 2\n")
    with pytest.raises(Ended):
        bench.say(client, {"died": ["was killed by SIGKILL", 0, 0, 0]})
    assert [status for status, _ in bench.ends] == [3]
    client.close()


def test_a_silent_host(bench: Bench) -> None:
    """A supervisor that says nothing for the limit is lost with its host; one that has taken its leave is not."""
    leaving, silent = bench.connect(b"secret 1\n"), bench.connect(b"secret 2\n")
    bench.say(leaving, {"left": 1})
    leaving.close()
    bench.supervisor.sources[1][1]()
    now = time.monotonic()
    for step in range(3):
        bench.hub.on_look(now + 2.0 * step)
    with pytest.raises(Ended):  # so early that the job has ended when the limit of 10 s is reached
        for step in range(3, 5):
            bench.hub.on_look(now + 2.0 * step)
    assert "host b with rank 2 is lost" in bench.supervisor.said[0]
    silent.close()


def test_lines() -> None:
    """Lines come whole, however they were cut; one without an end is refused."""
    lines = Lines()
    assert lines.feed(b"ab") == []
    assert lines.feed(b"c\nd\ne") == [b"abc", b"d"]
    with pytest.raises(ValueError, match="too long"):
        lines.feed(b"x" * (1 << 21))


# Rank 0


@pytest.fixture
def farm() -> Iterator[LocalFarm]:
    with local_farm(4) as farm:
        farm.controller.may_lose = True
        yield farm
        for rank in farm.controller.lost:  # the threads that played them live
            farm.controller.transport.send(rank, Frame(Kind.QUIT))


def lose(farm: LocalFarm, rank: int) -> None:
    farm.controller.handle(rank, Frame(Kind.LOST, rank, body=b"was killed by SIGKILL"))


def test_a_lost_task_has_failed_and_its_slot_is_gone(farm: LocalFarm) -> None:
    """The caller gets a failed result and an exit, as of any failed task; the slot is never free again."""
    controller = farm.controller
    [task] = controller.spawn(pack_work("spawnFunction", time.sleep, (0.3,), {}), 1, None, 3)
    lose(farm, task.rank)
    result, end = controller.take_letter(0.0), controller.take_letter(0.0)
    assert result is not None
    assert end is not None
    failure = decode_failure(result.content.body)  # type: ignore[union-attr]
    assert isinstance(failure.exception, WorkerLostError)
    assert failure.message == f"task {task.rank}:{task.number} is lost, since rank {task.rank} was killed by SIGKILL"
    assert task.rank not in controller.farm.free
    controller.farm.check_invariants()
    lose(farm, task.rank)
    assert controller.take_letter(0.0) is None


def test_no_call_after_a_loss(farm: LocalFarm) -> None:
    """A collective call without all ranks raises and sends nothing; tasks go on."""
    controller = farm.controller
    lose(farm, 2)
    with pytest.raises(WorkerLostError, match="needs all ranks, and rank 2 was killed by SIGKILL"):
        controller.caller.call(int, (), {}, farm.config.on_error)
    assert controller.caller.book.last == 0
    assert [slot.rank for slot in controller.spawn(pack_work("spawnFunction", int, (), {}), None, None, 0)] == [1, 3]
    while controller.farm.n_running:
        controller.serve_nowait()


def test_nobody_can_announce_the_death_of_another(farm: LocalFarm) -> None:
    """A LOST frame counts only for the rank that it comes from, as the transport makes it."""
    farm.controller.handle(1, Frame(Kind.LOST, 2, body=b"was killed by SIGKILL"))
    assert not farm.controller.lost
    assert 2 in farm.controller.farm.free


def test_nobody_dies_in_a_job_without_supervisors(farm: LocalFarm) -> None:
    """There the transport tells of no deaths: a LOST frame was sent by somebody, and changes nothing."""
    farm.controller.may_lose = False
    lose(farm, 2)
    assert not farm.controller.lost
    assert 2 in farm.controller.farm.free


def test_a_crew_goes_on_until_nobody_is_left(farm: LocalFarm) -> None:
    """Work moves to who is left; without any worker everything that waits has failed."""
    crew = Crew(farm.controller, range(1, 4))
    for rank in (1, 2, 3):
        assert crew.broken is None
        lose(farm, rank)
        crew.post(lambda: None)
        assert crew.dealer.lanes.workers == list(range(rank + 1, 4))
    assert isinstance(crew.broken, WorkerLostError)


def test_worker_processes_may_die() -> None:
    """Without MPI, too: tasks of a worker process that was killed run elsewhere, and poison ends with its story."""
    program = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from taskfarm import Executor, WorkerLostError
def die(once):
    if once is None or not os.path.exists(once):
        if once: open(once, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()
with Executor(6) as executor:
    assert executor.submit(die, os.environ["ONCE"]).result() > 0
    assert list(executor.map(abs, range(1000))) == list(range(1000))
    try:
        executor.submit(die, None).result()
    except WorkerLostError as exc:
        print(exc)
    assert list(executor.map(abs, range(1000))) == list(range(1000))
"""
    once = f"/tmp/taskfarm-once-{os.getpid()}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "ONCE": once},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        os.unlink(once)
    assert done.stdout.startswith("the task was lost 4 times with the process that ran it: attempt 1, rank ")


def test_an_array_for_the_dead_is_not_sent(farm: LocalFarm) -> None:
    """`sendArray` does not wait for a rank that dies meanwhile, nor for one that has died."""
    controller = farm.controller
    [task] = controller.spawn(pack_work("spawnFunction", time.sleep, (0.5,), {}), 1, None, 0)
    memory = memory_of(np.zeros(3), "array", writable=False)

    def die() -> None:
        with farm.hub.changed:
            control, _ = encode(Frame(Kind.LOST, task.rank, body=b"was killed by SIGKILL"))
            farm.hub.queues[0].append((task.rank, control, []))
            farm.hub.changed.notify_all()

    timer = threading.Timer(0.1, die)
    timer.start()
    assert not controller.arrays.send(task.rank, task.number, memory, time.monotonic() + 5.0)
    timer.join()
    assert task.rank in controller.lost
    assert not controller.arrays.send(task.rank, task.number, memory, time.monotonic() + 5.0)
