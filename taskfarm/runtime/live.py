"""The live view: one line at the bottom of the terminal that says how far the farm is, renewed twice a second.

Launchers give their ranks pipes instead of the terminal. So ``taskfarm run --watch``, which sees the terminal, tells
rank 0 its name, and rank 0 writes to it where it is on the same host. Nothing is sent: rank 0 knows all that it shows.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from taskfarm.runtime.controller import Controller
from taskfarm.scheduling.farm import SlotState

__all__ = ["HostLoad", "LiveView", "Load", "load_of", "start_view", "status_line"]

INTERVAL_S = 0.5
WINDOW_S = 10.0  # over which the rate is taken
_NO_WIDTH = 80  # where the terminal does not say
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class HostLoad(NamedTuple):
    """The workers of one host: how many, how many of them are busy, and how many are gone."""

    n_workers: int
    n_busy: int
    n_lost: int


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
    memory_bytes : int
        Of the ranks on rank 0's host; 0 if unknown.
    """

    n_done: int
    n_ahead: int
    hosts: Mapping[str, HostLoad]
    call: int = 0
    memory_bytes: int = 0


def load_of(controller: Controller, hosts: Mapping[int, str], memory_bytes: int = 0) -> Load:
    """Return what `controller` knows; from any thread, while others change it."""
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
    loads = {host: HostLoad(n, n_busy[host], n_lost[host]) for host, n in workers.items()}
    return Load(n_done, n_ahead, loads, controller.current_call, memory_bytes)


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
    if load.memory_bytes:
        parts.append(f"{load.memory_bytes / 1e9:.1f} GB here")
    if len(load.hosts) > 1:
        parts += [f"{host.partition('.')[0]} {one.n_busy}/{one.n_workers}" for host, one in sorted(load.hosts.items())]
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(part) + 3 >= width:
            return (line + " ...")[: width - 1]
        line += f" | {part}"
    return line[: width - 1]


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


def start_view(name: str, controller: Controller, hosts: Mapping[int, str]) -> None:
    """Show the farm of `controller` on the terminal `name`, if this process can reach it."""
    try:
        terminal = open(name, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    except OSError:
        return
    if not terminal.isatty():
        terminal.close()
    else:
        LiveView(lambda: load_of(controller, hosts, _memory_here()), terminal).start()


def _memory_here() -> int:
    """Return the resident memory of the ranks on this host, in bytes; 0 if the system does not tell."""
    session = getattr(sys.modules.get("taskfarm.runtime.session"), "_session", None)
    peers: Sequence[Any] = session.peers if session is not None else ()
    total = 0
    for peer in peers:
        if peer.host == peers[0].host:
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{peer.pid}/statm") as file:
                total += int(file.read().split()[1]) * _PAGE_BYTES
    return total
