"""The live view: what it counts, and one line that fits."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_support import LIMIT_S, LocalFarm, local_farm, new_gate, wait_at_gate

from taskfarm.config import Config
from taskfarm.futures._comm import _CommExecutor
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import Hall
from taskfarm.runtime.host_memory import HostMemory, report_memory
from taskfarm.runtime.live import HostLoad, LiveView, Load, load_of, start_view, status_line
from taskfarm.runtime.session import Session

HOSTS = {"node1.cluster": HostLoad(4, 3, 0, 2_000_000_000), "node2.cluster": HostLoad(4, 4, 1, 1_200_000_000)}


def test_the_line_says_how_far_the_farm_is() -> None:
    line = status_line(Load(1234, 5678, HOSTS), 75.0, 56.78, 200)
    assert line == (
        "1:15  1,234 done | 7 of 8 workers busy | 1 LOST | 56.8/s | 5,678 ahead, 1:40 left | 3.2 GB | "
        "node1 3/4 2.0 GB | node2 4/4 1 LOST 1.2 GB"
    )


def test_nothing_is_invented() -> None:
    """No rate without tasks, no time left without a rate, no hosts where there is one."""
    assert (
        status_line(Load(0, 0, {"a": HostLoad(2, 0, 0)}), 3700.0, 0.0, 100) == "1:01:40  0 done | 0 of 2 workers busy"
    )
    line = status_line(Load(0, 9, {"a": HostLoad(2, 2, 0)}, call=7), 1.0, 0.0, 100)
    assert line == "0:01  0 done | in call 7 | 2 of 2 workers busy | 9 ahead"


@pytest.mark.parametrize("width", [10, 40, 60, 80])
def test_the_line_never_wraps(width: int) -> None:
    """A line that wraps is not overwritten by the next one."""
    assert len(status_line(Load(10**9, 10**9, HOSTS, 3), 10**6, 1e6, width)) < width


def test_tasks_are_counted() -> None:
    """Those that run, and those that have ended."""
    with local_farm(3) as farm, new_gate() as gate:
        hosts = {1: "odd", 2: "even"}
        farm.spawn(wait_at_gate)
        busy = load_of(farm.controller, hosts)
        assert (busy.n_done, busy.n_ahead) == (0, 1)
        assert busy.hosts == {"odd": HostLoad(1, 1, 0), "even": HostLoad(1, 0, 0)}
        gate.set()
        farm.collect(1)
        idle = load_of(farm.controller, hosts)
        assert (idle.n_done, idle.n_ahead) == (1, 0)
        assert idle.hosts["odd"].n_busy == 0


def test_items_of_executors_are_counted() -> None:
    """Those of `map` and `submit`, also while they are under way."""
    hosts = {1: "odd"}
    with local_farm(2) as farm, new_gate() as gate:
        hall = Hall(Session(Config(blas_threads=0)), Crew(farm.controller, [1]), lambda deadline: None)
        executor = _CommExecutor(hall)
        assert list(executor.map(abs, range(10))) == list(range(10))
        future = executor.submit(wait_at_gate)
        executor.submit(abs, -1)
        load = load_of(farm.controller, hosts)
        assert (load.n_done, load.n_ahead, load.hosts["odd"].n_busy) == (10, 2, 1)
        gate.set()
        assert future.result(LIMIT_S) == 1
        executor.shutdown()
        load = load_of(farm.controller, hosts)
        assert (load.n_done, load.n_ahead, load.hosts["odd"].n_busy) == (12, 0, 0)
        hall.close()


def test_the_last_line_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the one before, and with the mean rate; a second stop says nothing."""
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((100, 20)))
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "fileno", lambda: 0)
    view = LiveView(lambda: Load(5, 0, {}), terminal)
    view._thread.start()
    view.stop()
    view.stop()
    assert terminal.getvalue().startswith("\r\x1b[K0:00  5 done")
    assert terminal.getvalue().count("\n") == 1


def test_a_terminal_that_is_none_is_left_alone(tmp_path: os.PathLike[str]) -> None:
    """The name may be that of a terminal of another host."""
    farm = LocalFarm(2)
    path = os.path.join(tmp_path, "file")
    with open(path, "w"):
        pass
    start_view(path, farm.controller, {1: "odd"})
    start_view(os.path.join(tmp_path, "no", "where"), farm.controller, {1: "odd"})
    assert os.path.getsize(path) == 0


def test_a_terminal_of_another_host_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though one of the same name is here: it is somebody else's."""
    farm = LocalFarm(2)
    ours, theirs = os.openpty()
    shown: list[object] = []
    monkeypatch.setattr(LiveView, "start", lambda view: shown.append(view))
    try:
        start_view(f"elsewhere:{os.ttyname(theirs)}", farm.controller, {1: "odd"})
        assert shown == []
        start_view(f"{socket.gethostname()}:{os.ttyname(theirs)}", farm.controller, {1: "odd"})
        assert len(shown) == 1
        shown[0]._terminal.close()  # type: ignore[attr-defined]
    finally:
        os.close(ours)
        os.close(theirs)


def new_peers(*hosts: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(rank=rank, host=host, pid=os.getpid()) for rank, host in enumerate(hosts)]


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def test_memory_of_other_hosts_is_told_by_one_rank_of_each() -> None:
    """Rank 0 knows its own; strangers and torn datagrams change nothing."""
    opened: Any = SimpleNamespace(
        peers=new_peers("a", "b", "b"), secret="s3cret", watch_address=("127.0.0.1", free_port())
    )
    memory = HostMemory(opened)
    assert list(memory.by_host()) == ["a"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for datagram in (b"", b"secret 1 5", b"s3cret 1", b"s3cret 9 5", b"s3cret 1 x", b"s3cret -1 5"):
            stranger.sendto(datagram, opened.watch_address)
    before = threading.active_count()
    report_memory(0, opened)
    report_memory(2, opened)
    assert threading.active_count() == before
    assert list(memory.by_host()) == ["a"]
    report_memory(1, opened)
    deadline = time.monotonic() + LIMIT_S
    while "b" not in memory.by_host():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    found = memory.by_host()
    assert found["b"] > 1_000_000  # of two ranks, which are this process
    assert found["a"] > 1_000_000
    memory.close()
