"""The launching process of a job with supervisors: whom it believes, when it ends the launcher, what else it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskfarm.cli._watch import STRANGER_S, Watch
from taskfarm.runtime.launching.surroundings import OUTPOST_VARIABLE
from taskfarm.runtime.survival.outpost import Outpost, launcher_grace_s

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="supervisors are for Linux")

LIMIT_S = 10.0
WAIT_S = 10.0


class Post:
    """A watch, and the address for those who report."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.watch = Watch(self.listener, "secret")
        self.port = self.listener.getsockname()[1]
        self.sockets: list[socket.socket] = []

    def hub(self, secret: str = "secret") -> Outpost:
        outpost = Outpost({OUTPOST_VARIABLE: f"127.0.0.1:{self.port}:{secret}"}, LIMIT_S, "alpha")
        assert outpost._sock is not None
        self.sockets.append(outpost._sock)
        return outpost

    def stranger(self, words: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), WAIT_S)
        sock.sendall(words)
        self.sockets.append(sock)
        return sock

    def look(self, now: float) -> str:
        """Look twice, since what was sent arrives at once, but after the connection."""
        time.sleep(0.02)
        return self.watch.look(now) or self.watch.look(now)


@pytest.fixture
def post() -> Iterator[Post]:
    post = Post()
    yield post
    watched = [*post.watch._strangers, *([post.watch._hub[0]] if post.watch._hub else [])]
    for sock in (post.listener, *post.sockets, *watched):
        sock.close()


def test_a_job_that_ends_as_it_should(post: Post) -> None:
    """While the hub speaks, and after it has taken its leave, nothing is done to the launcher."""
    hub = post.hub()
    for second in range(0, 60, 5):
        hub.tell({"here": 1})
        assert post.look(float(second)) == ""
    hub.tell({"free": 1})
    assert post.look(60.0) == ""
    assert post.look(1000.0) == ""
    assert post.watch.kill_at is None


def test_a_job_that_the_hub_has_ended(post: Post) -> None:
    """The launcher has the seconds that the hub gives it; the status is the hub's."""
    hub = post.hub()
    hub.tell({"end": [7, 2.5]})
    assert post.look(3.0) == ""
    assert (post.watch.status, post.watch.kill_at) == (7, 5.5)


def test_a_host_that_falls_silent(post: Post) -> None:
    """It is named once, and the job ends with 75 before the limit is reached."""
    hub = post.hub()
    hub.tell({"here": 1})
    assert post.look(0.0) == ""
    assert post.look(5.0) == ""
    assert post.look(6.5) == "host alpha with rank 0 is lost: not heard of for 6 s; ending the job with status 75"
    assert post.watch.kill_at == 6.5 + launcher_grace_s(LIMIT_S) <= LIMIT_S
    assert post.look(7.0) == ""
    assert post.watch.status == 75


@pytest.mark.parametrize(
    "words", [b"wrong 10 host\n", b"\n", b"\xff\xfe x y\n", b"secret ten host\n", b"secret\n", b"x" * (1 << 21)]
)
def test_strangers_change_nothing(post: Post, words: bytes) -> None:
    """Who does not know the secret is dropped; the hub is heard all the same."""
    sock = socket.create_connection(("127.0.0.1", post.port), WAIT_S)
    post.sockets.append(sock)
    sock.setblocking(False)
    left = memoryview(words)
    deadline = time.monotonic() + WAIT_S
    with contextlib.suppress(ConnectionError):  # dropped in the middle of it
        while left and time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                left = left[sock.send(left) :]
            post.watch.look(0.0)
    while post.watch._strangers and time.monotonic() < deadline:
        post.watch.look(0.0)
    assert not post.watch._strangers
    assert post.watch.kill_at is None
    hub = post.hub()
    hub.tell({"end": [3, 1.0]})
    post.look(1.0)
    assert post.watch.status == 3


def test_a_second_hub_is_a_stranger(post: Post) -> None:
    """Even who knows the secret cannot take the place of the hub that is there; who says nothing is dropped in time."""
    post.hub()
    post.look(0.0)
    post.hub().tell({"end": [1, 0.0]})
    silent = post.stranger(b"")
    post.look(1.0)
    assert post.watch.kill_at is None
    post.look(1.5 + STRANGER_S)
    assert silent.recv(1) == b""


RUN = """
import os, sys
from taskfarm.cli._watchdog import run_and_watch
sys.exit(run_and_watch([sys.executable, "-c", sys.argv[1]], os.environ, one_host=True))
"""


def run_watched(program: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RUN, program, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("program", "status"),
    [("import sys; sys.exit(5)", 5), ("import os; os.kill(os.getpid(), 9)", -9), ("print('said')", 0)],
)
def test_the_launcher_ends_by_itself(program: str, status: int) -> None:
    """Its status is that of the command, also if a signal has ended it."""
    with run_watched(program) as process:
        assert process.wait(WAIT_S) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_are_the_launchers(number: signal.Signals) -> None:
    """What is sent to this process reaches the launcher, and not twice."""
    program = f"""
import signal, sys, time
def note(*_):
    time.sleep(0.5)
    print("got it", flush=True)
signal.signal({int(number)}, note)
print("ready", flush=True)
time.sleep(2.0)
"""
    with run_watched(program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "got it\n"
        assert process.wait(WAIT_S) == 0


# A launcher that hangs, with a helper in a session of its own; it plays the hub, too.
HANGS = """
import os, signal, subprocess, sys, time
from taskfarm.runtime.survival.outpost import Outpost
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-c", "import time; time.sleep(100)"]
helper = "import subprocess, sys; print(subprocess.Popen(%r, start_new_session=True).pid, flush=True)" % sleep
subprocess.run([sys.executable, "-c", helper])
print(os.getpid(), flush=True)
post = Outpost(os.environ, 10.0, "alpha")
post.tell({"end": [9, 0.3]})
time.sleep(100)
"""


def pids_of(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(2)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_launcher_that_hangs_is_ended_with_all_that_it_has_started() -> None:
    """Its helpers go with it, wherever they have put themselves; a process that was not started by it stays."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) as other:
        try:
            with run_watched(HANGS) as process:
                helper, launcher = pids_of(process)
                assert process.wait(WAIT_S) == 9
            assert not is_alive(helper)
            assert not is_alive(launcher)
            assert is_alive(other.pid)
        finally:
            other.kill()


def test_the_launcher_does_not_outlive_this_process() -> None:
    """`kill -9` of the command is `kill -9` of the launcher, as if they were one."""
    program = "import os, time; print(os.getpid()); print(os.getpid(), flush=True); time.sleep(100)"
    with run_watched(program) as process:
        launcher, _ = pids_of(process)
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + WAIT_S
        while is_alive(launcher) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not is_alive(launcher)
