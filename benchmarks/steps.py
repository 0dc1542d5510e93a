"""Where the time of one task and of one call goes: the steps on rank 0 and on the worker, in microseconds.

    python benchmarks/steps.py [--quick]

Two ranks. Both note the time at the borders of the steps, on the clock that they share as processes of one host: for a
task the entry of `spawnFunction`, the entry and end of each MPI send, the look that finds a message, the user's
function. A step is the median over many tasks. The notes themselves take 0.1 us each and are part of the figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from pair import on_two_ranks

from taskfarm import objects, vm
from taskfarm.runtime.session import current

__all__: list[str] = []

Stamps = list[tuple[str, float]]
_stamps: Stamps = []

BATCH = 100  # tasks between two collections of what was noted


def _stamp(name: str) -> None:
    _stamps.append((name, perf_counter()))


def nothing() -> None:
    """Be the user's function."""
    _stamp("run")


def _take_stamps() -> Stamps:
    """Return what this rank has noted, and begin anew."""
    stamps = list(_stamps)
    _stamps.clear()
    return stamps


def _watch_transport() -> None:
    """Note sends and the arrival of messages on this rank."""
    endpoint: Any = current().open_endpoint
    transport = endpoint.transport

    def send(*args: Any) -> Any:
        _stamp("send begins")
        request = isend(*args)
        _stamp("send ends")
        return request

    def look() -> Any:
        if not _stamps or _stamps[-1][0] != "look":
            _stamp("look")
        taken = poll()
        if taken is not None:
            _stamp("found")
        return taken

    isend, poll = transport._isend, transport._poll
    transport._isend, transport._poll = send, look


# What a step is called, where and with what it begins, where and with what it ends.
Steps = Sequence[tuple[str, int, str, int, str]]

TASK_STEPS: Steps = (
    ("rank 0: spawnFunction, up to the MPI send", 0, "enter", 0, "send begins"),
    ("rank 0: MPI send", 0, "send begins", 0, "send ends"),
    ("until the worker has the message", 0, "send ends", 1, "found"),
    ("worker: parse, load, up to the function", 1, "found", 1, "run"),
    ("worker: pickle the value, up to the MPI send", 1, "run", 1, "send begins"),
    ("worker: MPI send", 1, "send begins", 1, "send ends"),
    ("until rank 0 has the message", 1, "send ends", 0, "found"),
    ("rank 0: to the end of receiveMessage (result)", 0, "found", 0, "result"),
    ("rank 0: receiveMessage (exit)", 0, "result", 0, "exit"),
    ("one task", 0, "enter", 0, "exit"),
    ("meanwhile on rank 0: the rest of spawnFunction", 0, "send ends", 0, "spawned"),
)


def _tasks(machine: vm.MPI, n: int) -> None:
    for _ in range(n):
        _stamp("enter")
        machine.spawnFunction(nothing, count=1)
        _stamp("spawned")
        machine.receiveMessage()
        _stamp("result")
        machine.receiveMessage()
        _stamp("exit")


CALL_STEPS: Steps = (
    ("rank 0: call, up to the MPI send", 0, "enter", 0, "send begins"),
    ("rank 0: MPI send", 0, "send begins", 0, "send ends"),
    ("rank 0: up to its own part", 0, "send ends", 0, "run"),
    ("rank 0: to the end of the call", 0, "run", 0, "left"),
    ("worker: parse, load, up to the function", 1, "found", 1, "run"),
    ("worker: to the next look at MPI", 1, "run", 1, "look"),
)


def _calls(n: int) -> None:
    for _ in range(n):
        _stamp("enter")
        objects.call(nothing)
        _stamp("left")


def _on_rank_0(stamps: Stamps) -> list[dict[str, float]]:
    """Return, for each task or call, when each thing was noted first."""
    groups: list[dict[str, float]] = []
    for name, when in stamps:
        if name == "enter":
            groups.append({})
        if groups:
            groups[-1].setdefault(name, when)
    return groups


def _on_worker(stamps: Stamps) -> list[dict[str, float]]:
    """Return the same for the worker: when it found the message, and what it noted first after that."""
    groups: list[dict[str, float]] = []
    found = 0.0
    for name, when in stamps:
        if name == "run":
            groups.append({"found": found, "run": when})
        elif name == "found":
            found = when
        elif groups:
            groups[-1].setdefault(name, when)
    return groups


def _measure(run: Callable[[int], None], steps: Steps, n: int) -> None:
    samples: dict[str, list[float]] = {name: [] for name, *_ in steps}
    for _ in range(n // BATCH):
        objects.call_all(_take_stamps)
        run(BATCH)
        mine = _on_rank_0(_take_stamps())
        theirs = _on_worker(objects.call_all(_take_stamps)[1])
        for at in zip(mine, theirs, strict=True):
            for name, rank, begin, other, end in steps:
                samples[name].append((at[other][end] - at[rank][begin]) * 1e6)
    for name, values in samples.items():
        print(f"  {name:<48} {statistics.median(values):8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tasks")
    n = 1_000 if parser.parse_args().quick else 20_000
    machine = vm.MPI()  # only rank 0 goes on
    objects.call(_watch_transport)
    print("one task, us")
    _measure(lambda size: _tasks(machine, size), TASK_STEPS, n)
    print("one call, us")
    _measure(_calls, CALL_STEPS, n)
    objects.quit()


if __name__ == "__main__":
    import steps  # what is in __main__ would travel by value, and the worker's notes with it

    sys.exit(on_two_ranks(__file__, steps.main))
