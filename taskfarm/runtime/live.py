"""The live view: one line at the bottom of the terminal that says how far the farm is, renewed twice a second.

Launchers give their ranks pipes instead of the terminal. So ``taskfarm run --watch``, which sees the terminal, tells
rank 0 its name, and rank 0 writes to it where it is on the same host. Nothing is sent but the memory of other hosts:
rank 0 knows all else that it shows.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TextIO

from taskfarm.runtime.controller import Controller
from taskfarm.runtime.host_memory import HostMemory, report_memory
from taskfarm.scheduling.farm import SlotState

if TYPE_CHECKING:
    from taskfarm.transport.world import Opened

__all__ = ["HostLoad", "LiveView", "Load", "load_of", "start_view", "status_line", "watch"]

INTERVAL_S = 0.5
WINDOW_S = 10.0  # over which the rate is taken
_NO_WIDTH = 80  # where the terminal does not say


class HostLoad(NamedTuple):
    """The workers of one host: how many, how many are busy, how many are gone; bytes of its ranks, 0 if unknown."""

    n_workers: int
    n_busy: int
    n_lost: int
    memory_bytes: int = 0


class Load(NamedTuple):
    """What the farm is doing.

    Attributes
    ----------
    n_done, n_ahead : int
        Tasks that have ended, and those that wait or run.
    hosts : mapping of str to HostLoad
        By name.
    call : int
        Number of the collective call that rank 0 is inside of, 0 for none.
    """

    n_done: int
    n_ahead: int
    hosts: Mapping[str, HostLoad]
    call: int = 0


def load_of(controller: Controller, hosts: Mapping[int, str], memory: Mapping[str, int] | None = None) -> Load:
    """Return what `controller` knows, with the bytes of each host; from any thread, while others change it."""
    farm, crew = controller.farm, controller.crew
    slots = farm.slots()
    busy = {rank for rank, state in slots.items() if state is SlotState.BUSY}
    n_done, n_ahead = farm.n_ended, farm.n_running
    if crew is not None:
        busy |= crew.busy_workers
        n_done += crew.n_done
        n_ahead += sum(map(crew.dealer.n_waiting, list(crew.job_numbers)))
        n_ahead += crew.n_in_hand + crew.desk.n_ahead
    workers = Counter(hosts.values())
    n_busy = Counter(hosts[rank] for rank in busy)
    n_lost = Counter(hosts[rank] for rank, state in slots.items() if state is SlotState.LOST)
    memory = memory or {}
    loads = {host: HostLoad(n, n_busy[host], n_lost[host], memory.get(host, 0)) for host, n in workers.items()}
    return Load(n_done, n_ahead, loads, controller.current_call)


def status_line(load: Load, elapsed_s: float, rate: float, width: int) -> str:
    """Return the line; what does not fit into `width` characters is left out, the least important first."""
    parts = [f"{_clock(elapsed_s)}  {load.n_done:,} done"]
    if load.call:
        parts.append(f"in call {load.call}")
    n_workers = sum(host.n_workers for host in load.hosts.values())
    n_lost = sum(host.n_lost for host in load.hosts.values())
    parts.append(f"{sum(host.n_busy for host in load.hosts.values())} of {n_workers} workers busy")
    if n_lost:
        parts.append(f"{n_lost} LOST")
    if rate:
        parts.append(f"{rate:,.3g}/s" if rate < 1000 else f"{rate:,.0f}/s")
    if load.n_ahead:
        left = f", {_clock(load.n_ahead / rate)} left" if rate else ""
        parts.append(f"{load.n_ahead:,} ahead{left}")
    total = sum(host.memory_bytes for host in load.hosts.values())
    if total:
        parts.append(_gigabytes(total))
    if len(load.hosts) > 1:
        parts += [_host_part(host.partition(".")[0], one) for host, one in sorted(load.hosts.items())]
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(part) + 3 >= width:
            return (line + " ...")[: width - 1]
        line += f" | {part}"
    return line[: width - 1]


def _host_part(name: str, load: HostLoad) -> str:
    lost = f" {load.n_lost} LOST" if load.n_lost else ""
    memory = f" {_gigabytes(load.memory_bytes)}" if load.memory_bytes else ""
    return f"{name} {load.n_busy}/{load.n_workers}{lost}{memory}"


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class LiveView:
    """Writes the line.

    Parameters
    ----------
    look : callable
        Returns the load.
    terminal : text stream
        Where to write.
    """

    def __init__(self, look: Callable[[], Load], terminal: TextIO) -> None:
        self._look = look
        self._terminal = terminal
        self._started = time.monotonic()
        self._past: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskfarm-watch", daemon=True)

    def start(self) -> None:
        """Show the line until `stop`, or the end of the process."""
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """Show it a last time, and leave it there."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._draw("\n")

    def _run(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            self._draw("")

    def _draw(self, end: str) -> None:
        now = time.monotonic()
        with contextlib.suppress(RuntimeError, OSError, ValueError):  # changed while we look; the terminal is gone
            load = self._look()
            self._past.append((now, load.n_done))
            while len(self._past) > 2 and now - self._past[0][0] > WINDOW_S:
                self._past.popleft()
            (first, before), whole = self._past[0], now - self._started
            rate = load.n_done / whole if end else (load.n_done - before) / (now - first)
            width = os.get_terminal_size(self._terminal.fileno()).columns or _NO_WIDTH
            self._terminal.write(f"\r\x1b[K{status_line(load, whole, rate, width)}{end}")
            self._terminal.flush()


def start_view(name: str, controller: Controller, hosts: Mapping[int, str], memory: HostMemory | None = None) -> None:
    """Show the farm of `controller` on the terminal `name` (``host:path``, or a path), if this process can reach it."""
    host, colon, path = name.rpartition(":")
    if colon and host != socket.gethostname():
        return  # a terminal of that name may well be here, but it is somebody else's
    try:
        terminal = open(path, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    except OSError:
        return
    if not terminal.isatty():
        terminal.close()
    else:
        LiveView(lambda: load_of(controller, hosts, memory.by_host() if memory else None), terminal).start()


def watch(name: str, rank: int, controller: Controller | None, hosts: Mapping[int, str], opened: Opened) -> None:
    """Do this rank's part: rank 0 shows the view, one rank of every other host tells of its memory."""
    if controller is not None:
        start_view(name, controller, hosts, HostMemory(opened))
    else:
        report_memory(rank, opened)
