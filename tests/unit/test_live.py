"""The live view: what it counts, and one line that fits."""

from __future__ import annotations

import io
import os

import pytest
from runtime_support import LIMIT_S, LocalFarm, local_farm, new_gate, wait_at_gate

from taskfarm.config import Config
from taskfarm.futures._comm import _CommExecutor
from taskfarm.runtime.crew import Crew
from taskfarm.runtime.crews import Hall
from taskfarm.runtime.live import HostLoad, LiveView, Load, load_of, start_view, status_line
from taskfarm.runtime.session import Session

HOSTS = {"node1.cluster": HostLoad(4, 3, 0), "node2.cluster": HostLoad(4, 4, 1)}


def test_the_line_says_how_far_the_farm_is() -> None:
    line = status_line(Load(1234, 5678, HOSTS, memory_bytes=3_200_000_000), 75.0, 56.78, 200)
    assert line == (
        "1:15  1,234 done | 7 of 8 workers busy | 1 LOST | 56.8/s | 5,678 ahead, 1:40 left | 3.2 GB here | "
        "node1 3/4 | node2 4/4"
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
    assert len(status_line(Load(10**9, 10**9, HOSTS, 3, 10**12), 10**6, 1e6, width)) < width


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
