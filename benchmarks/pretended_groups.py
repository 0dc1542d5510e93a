"""What rank 0 spends on a map over groups of workers, measured with the real code and groups that only pretend.

Started by ``benchmarks/scale.py --simulate`` on two ranks. Rank 0 runs a real `Executor.map` with a real `RelayCrew`
over real MPI; rank 1 plays all groups: it takes portions, and tells of results as controllers of groups do, in the
order in which workers would be through with tasks of log-normal times, but without taking that time. So rank 0 always
has something to do, and its processor time, with reports of several sizes, gives what a message costs and what an item
costs: everything from the iterable that is read to the program's loop over the results.

Prints a line of JSON: ``[[size of reports, messages, items, seconds], ...]``.
"""

from __future__ import annotations

import heapq
import json
import pickle
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from taskfarm import Executor
from taskfarm.runtime.executor.crews import Hall
from taskfarm.runtime.executor.portions import Singles, parts_frame
from taskfarm.runtime.executor.relay_crew import RelayCrew
from taskfarm.runtime.session import current
from taskfarm.wire.frames import Frame, Kind

__all__: list[str] = []

SHIFT = 32  # of the group's number in a field of a frame that has room for it
ROUNDS = 3
RESERVE = 1.1  # items in the hands of groups, per worker, so that no worker waits


class Spread:
    """A transport on which all groups are rank 1; counts what goes by."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.n_messages = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def send(self, dest: int, frame: Frame, **options: bool) -> None:
        """Send to rank 1 and say for whom."""
        self.n_messages += 1
        self._transport.send(1, frame._replace(b=frame.b + (dest << SHIFT)), **options)

    def tell(self, report: int) -> None:
        """Have reports of so many items; 0 if no more items come."""
        self._transport.send(1, Frame(Kind.DEBUG, report))

    def receive_nowait(self) -> Any:
        """Return a frame with the group that it is from."""
        item = self._transport.receive_nowait()
        return None if item is None else self._from_group(item[1])

    def receive(self, deadline: float) -> Any:
        """Return a frame with the group that it is from."""
        item = self._transport.receive(deadline)
        return None if item is None else self._from_group(item[1])

    def _from_group(self, frame: Frame) -> tuple[int, Frame]:
        self.n_messages += 1
        return frame.a, frame


class Group:
    """A group that pretends: its workers, by when they are through with which item."""

    def __init__(self, relay: int, size: int, times: list[float]) -> None:
        self.relay = relay
        self.size = size
        self.times = times
        self.n_begun = 0
        self.waiting: list[tuple[int, int, bytes]] = []  # the next ones last
        self.running: list[tuple[float, int, int, bytes]] = []

    def take(self, portion: int, bodies: list[bytes]) -> None:
        """Take the items of a portion."""
        self.waiting[:0] = [(portion, offset, body) for offset, body in enumerate(bodies)][::-1]
        while self.waiting and len(self.running) < self.size:
            self._begin(0.0)

    def _begin(self, now: float) -> None:
        self.n_begun += 1
        heapq.heappush(self.running, (now + self.times[self.n_begun % len(self.times)], *self.waiting.pop()))

    def report(self, job: int, n: int, answers: bool = False) -> Frame:
        """Let `n` items end, and tell of them."""
        ended = []
        for _ in range(min(n, len(self.running))):
            ended.append(heapq.heappop(self.running))
            if self.waiting:
                self._begin(ended[-1][0])
        columns = [list(column) for column in zip(*(one[1:] for one in ended), strict=True)]
        singles = [Singles(job, float(len(ended)), *columns)] if ended else []
        return parts_frame([], singles, answers)._replace(a=self.relay)


class Groups:
    """All groups, on rank 1."""

    def __init__(self, worker: Any, n_groups: int, size: int) -> None:
        rng = np.random.default_rng(1)
        self._transport = worker.transport
        self._groups = {
            relay: Group(relay, size - 1, rng.lognormal(-0.125, 0.5, 1009).tolist())
            for relay in range(1, n_groups * size + 1, size)
        }
        self._report = 1
        self._job = 0  # of which every group has had items
        self._n_met = 0
        self._n_held = 0
        self._n_enough = self._n_wanted = int(RESERVE * n_groups * (size - 1))
        self._turn = deque(self._groups)
        for kind in (Kind.GROUP, Kind.FUNCTION):
            worker.add_handler(kind, lambda source, frame: None)
        worker.add_handler(Kind.PORTION, self.on_portion)
        worker.add_handler(Kind.RECALL, self.on_recall)
        worker.add_handler(Kind.FORGET, self.on_forget)
        worker.add_handler(Kind.DEBUG, self.on_debug)

    def on_debug(self, source: int, frame: Frame) -> None:
        """Note how many items a report should have; 0: let all that there is end, as no more items come."""
        self._report = frame.a or self._report
        self._n_enough = self._n_wanted if frame.a else 0
        while self._n_held and not frame.a:
            self._report_next(self._job)

    def on_portion(self, source: int, frame: Frame) -> None:
        """Take a portion, and let all groups report in turn, as long as that leaves no worker without work."""
        group = self._groups[frame.b >> SHIFT]
        job = frame.b & ((1 << SHIFT) - 1)
        bodies = pickle.loads(frame.body)[3]
        group.take(frame.a, bodies)
        self._n_held += len(bodies)
        if job != self._job:  # the first portion: rank 0 has to learn how long tasks take
            self._n_met += 1
            self._send(group, job, 1)
            if self._n_met == len(self._groups):
                self._job, self._n_met = job, 0
        while job == self._job and self._n_held > self._n_enough:
            self._report_next(job)

    def _report_next(self, job: int) -> None:
        self._turn.rotate(-1)
        if (group := self._groups[self._turn[0]]).running:
            self._send(group, job, self._report)

    def _send(self, group: Group, job: int, n: int) -> None:
        self._n_held -= min(n, len(group.running))
        self._transport.send(0, group.report(job, n))

    def on_recall(self, source: int, frame: Frame) -> None:
        """Give nothing back."""
        self._transport.send(0, self._groups[frame.b >> SHIFT].report(0, 0, answers=True))

    def on_forget(self, source: int, frame: Frame) -> None:
        """Be through with all there is."""
        group = self._groups[frame.b >> SHIFT]
        while group.running:
            self._send(group, frame.a, group.size)


def measure(executor: Executor, crew: RelayCrew, spread: Spread, report: int, n_items: int) -> tuple[int, int, float]:
    """Return messages, items and seconds of processor time of a map."""

    def items() -> Iterator[int]:
        crew.post(lambda: spread.tell(report))
        yield from range(n_items)
        crew.post(lambda: spread.tell(0))

    began = spread.n_messages, time.process_time()
    assert sum(1 for _ in executor.map(float, items())) == n_items
    return spread.n_messages - began[0], n_items, time.process_time() - began[1]


def main() -> None:
    """Measure on rank 0, pretend on rank 1."""
    n_groups, size, n_items, *reports = map(int, sys.argv[1:])
    session = current()
    session.open()
    if session.worker is not None:
        Groups(session.worker, n_groups, size)
        session.serve()
        return
    controller = session.controller
    assert controller is not None
    ranks = range(1, n_groups * size + 1)
    before, controller.hosts = controller.hosts, dict.fromkeys(ranks, "")
    transport = controller.transport
    controller.transport = spread = Spread(transport)
    crew = RelayCrew(controller, {relay: range(relay + 1, relay + size) for relay in ranks[::size]})
    controller.transport, controller.hosts = transport, before
    session.face_state["crew"] = Hall(session, crew)
    found = []
    with Executor() as executor:
        for _ in range(ROUNDS):
            for report in random.Random(1).sample(reports, len(reports)):
                found.append((report, *measure(executor, crew, spread, report, n_items)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
