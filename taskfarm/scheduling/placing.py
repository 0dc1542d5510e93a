"""Which workers run a task that needs several of them, or particular ones, and when.

Theory of operation. A *placed* task asks for a number of workers, all at once and with nothing queued before it,
perhaps only from some of them. It starts at once if enough are idle, on one host if any has enough. Else it *reserves*
those that are expected to be free first (again on one host, unless that takes much longer). The dealer deals nothing
more to them, so each becomes idle in a bounded time, whatever else waits: a placed task cannot starve. Meanwhile

* plain batches that should end before the last of the reserved workers is ready are dealt to those that wait for it
  (*backfill*). That moment is fixed when the reservation is made and never put off; if nobody knows it, there is none;
* if enough workers become idle elsewhere, the task starts there and gives its reservation back.

Placed tasks get their workers in the order in which they came. A later one may start first only on workers that no
earlier one has reserved, or could use.

Plain tasks cannot starve either. While some wait, placed tasks hold at most half of the workers. One that needs more
than half takes turns with them: after it, plain tasks get as many worker-seconds before the next such one.

Nothing here knows the time; it comes in as an argument, in seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heapreplace, nsmallest
from typing import NamedTuple

from taskfarm.errors import ProtocolError, UsageError
from taskfarm.scheduling.dealing import Dealer

__all__ = ["Placement", "Placer"]

HOST_PATIENCE = 2.0  # one host may take so many times as long to be ready as workers of several
ENOUGH = 64  # idle workers that are looked at, if some of them will do
SWAP_TRIES = 8  # tasks with reservations that are looked at per decision whether they could start elsewhere

_Shape = tuple[int, "frozenset[int] | None"]


class Placement(NamedTuple):
    """Task `number` starts on `workers`, in rank order."""

    number: int
    workers: tuple[int, ...]


class _Team:
    """A task that has its workers reserved, or runs."""

    __slots__ = ("allowed", "began", "number", "workers")

    def __init__(self, number: int, allowed: frozenset[int] | None, workers: Iterable[int]) -> None:
        self.number = number
        self.allowed = allowed
        self.workers = tuple(sorted(workers))
        self.began = -math.inf


class Placer:
    """Places tasks on workers, beside the dealer that deals batches to them.

    Parameters
    ----------
    dealer : Dealer
        Deals to the same workers; told which of them to leave alone.
    hosts : mapping of int to str
        The host of each worker.

    Attributes
    ----------
    debt_s : float
        Worker-seconds that plain tasks, if any wait, get before a task may again have more than half of the workers.
    """

    def __init__(self, dealer: Dealer, hosts: Mapping[int, str]) -> None:
        self._dealer = dealer
        self._lanes = dealer.lanes
        self._hosts = dict(hosts)
        self._half = max(1, len(self._hosts) // 2)
        self._queues: dict[_Shape, OrderedDict[int, None]] = {}
        self._shapes: dict[int, _Shape] = {}  # of waiting tasks
        self._reserved: OrderedDict[int, _Team] = OrderedDict()
        self._running: dict[int, _Team] = {}
        self._reserved_for: dict[int, int] = {}  # worker to task
        self._busy_with: dict[int, int] = {}
        self._changed = False
        self._share_wanted = 0  # workers of the task that waits until plain tasks have had their share
        self._n_idle_seen = 0
        self._n_widest = 0  # tasks that have, or have reserved, more than half of the workers
        self.debt_s = 0.0

    # Events

    def add(self, number: int, n_workers: int, allowed: frozenset[int] | None = None) -> None:
        """Take a task, numbered higher than any before, for `n_workers` of the workers `allowed` (None: of all).

        Raises
        ------
        UsageError
            If there are not so many.
        """
        n = self._n_able(allowed)
        if n_workers > n:
            raise UsageError(f"a task needs {n_workers} workers, and {n} may run it")
        shape = (n_workers, allowed)
        self._shapes[number] = shape
        self._queues.setdefault(shape, OrderedDict())[number] = None
        self._changed = True

    def drop(self, number: int) -> bool:
        """Forget a task that has not started; False if it has, or is not known."""
        team = self._reserved.pop(number, None)
        if team is not None:
            self._n_widest -= len(team.workers) > self._half
            self._unreserve(team, keep=())
        elif number in self._shapes:
            shape = self._shapes.pop(number)
            del self._queues[shape][number]
            if not self._queues[shape]:
                del self._queues[shape]
        else:
            return False
        self._changed = True
        return True

    def on_ended(self, number: int, now: float) -> tuple[int, ...]:
        """Note that a task has ended on all of its workers; return them.

        Raises
        ------
        ProtocolError
            If it does not run.
        """
        team = self._running.pop(number, None)
        if team is None:
            raise ProtocolError(f"task {number} ended, which does not run")
        if len(team.workers) > self._half:
            self._n_widest -= 1
            if self._dealer.has_waiting:
                self.debt_s += len(team.workers) * (now - team.began)
        for worker in team.workers:
            del self._busy_with[worker]
            if worker in self._reserved_for:
                self._lanes.newly_idle.append(worker)
            else:
                self._release(worker)
        self._changed = True
        return team.workers

    def on_worker_lost(self, worker: int) -> list[int]:
        """Take in that a worker is gone, of which the dealer knows; return the waiting tasks that nobody can run now.

        A task that ran there goes on for the others, until `on_ended`.
        """
        del self._hosts[worker]
        self._half = max(1, len(self._hosts) // 2)
        number = self._busy_with.pop(worker, None)
        if number is not None:
            team = self._running[number]
            team.workers = tuple(other for other in team.workers if other != worker)
        number = self._reserved_for.pop(worker, None)
        if number is not None:
            team = self._reserved.pop(number)
            shape = (len(team.workers), team.allowed)
            team.workers = tuple(other for other in team.workers if other != worker)
            self._unreserve(team, keep=())
            self._shapes[number] = shape
            queue = self._queues.setdefault(shape, OrderedDict())
            queue[number] = None
            queue.move_to_end(number, last=False)
        teams = [*self._running.values(), *self._reserved.values()]
        self._n_widest = sum(len(team.workers) > self._half for team in teams)
        self._changed = True
        return [number for number, (n, allowed) in self._shapes.items() if n > self._n_able(allowed)]

    def _n_able(self, allowed: frozenset[int] | None) -> int:
        return len(self._hosts) if allowed is None else len(allowed & self._hosts.keys())

    def on_plain_work(self, seconds: float) -> None:
        """Note that a plain batch took `seconds`."""
        if self.debt_s:
            self.debt_s = max(0.0, self.debt_s - seconds)

    # Decisions

    @property
    def has_waiting(self) -> bool:
        """Whether any task waits for workers."""
        return bool(self._shapes or self._reserved)

    @property
    def n_running(self) -> int:
        """Number of tasks that run."""
        return len(self._running)

    def waiting(self) -> list[int]:
        """Return the tasks that have not started."""
        return sorted([*self._shapes, *self._reserved])

    def place(self, now: float) -> Iterator[Placement]:
        """Yield, one by one, the tasks that start `now`; to be called after every event, before the dealer deals.

        Notes
        -----
        O(idle workers) for a task that starts at once, O(workers) for one that reserves, once each; O(1) for events
        that change nothing for placed tasks.
        """
        if not self.has_waiting:
            self._lanes.newly_idle.clear()
            return
        if not self._dealer.has_waiting:
            self.debt_s = 0.0
        yield from self._start_reserved(now)
        n_idle = len(self._lanes.idle)
        if self._reserved and (n_idle > self._n_idle_seen or self._changed):
            yield from self._swap(now)
        if self._changed or (self._share_wanted and self._may_have(self._share_wanted)):
            self._changed = False
            yield from self._start_or_reserve(now)
        self._n_idle_seen = len(self._lanes.idle)

    def _start_reserved(self, now: float) -> Iterator[Placement]:
        newly_idle = self._lanes.newly_idle
        while newly_idle:
            team = self._reserved.get(self._reserved_for.get(newly_idle.pop(), -1))
            if team is not None and all(map(self._is_free, team.workers)):
                del self._reserved[team.number]
                self._changed = True
                yield self._start(team, now)

    def _swap(self, now: float) -> Iterator[Placement]:
        """Start tasks with reservations on workers that are idle elsewhere, together with their own idle ones."""
        for team in list(self._reserved.values())[:SWAP_TRIES]:
            own = [worker for worker in team.workers if self._is_free(worker)]
            missing = len(team.workers) - len(own)
            others = self._pick_idle(missing, team.allowed)
            if others or not missing:
                del self._reserved[team.number]
                self._unreserve(team, keep=own)
                self._changed = True
                yield self._start(_Team(team.number, team.allowed, [*own, *others]), now)

    def _start_or_reserve(self, now: float) -> Iterator[Placement]:
        self._share_wanted = 0
        heads = [(next(iter(queue)), shape) for shape, queue in self._queues.items()]
        heapify(heads)
        while heads and self._n_unreserved:
            number, shape = heads[0]
            n, allowed = shape
            if not self._may_have(n):
                self._share_wanted = n
                return
            chosen = self._pick_idle(n, allowed)
            if chosen:
                yield self._start(_Team(number, allowed, chosen), now)
            elif not self._reserve(number, n, allowed, now):
                heappop(heads)
                continue
            self._n_widest += n > self._half
            queue = self._queues[shape]
            del queue[number], self._shapes[number]
            if queue:
                heapreplace(heads, (next(iter(queue)), shape))
            else:
                del self._queues[shape]
                heappop(heads)

    @property
    def _n_unreserved(self) -> int:
        return len(self._hosts) - len(self._reserved_for)

    def _may_have(self, n: int) -> bool:
        """Tell whether a task may have `n` workers, as far as plain tasks are concerned."""
        if not self._dealer.has_waiting:
            return True
        if n > self._half:
            return self.debt_s <= 0.0 and not self._n_widest
        return len(self._busy_with) + len(self._reserved_for) + n <= self._half

    def _pick_idle(self, n: int, allowed: frozenset[int] | None) -> list[int]:
        """Return `n` idle workers, of one host or else of as few as can be; none if there are not so many.

        Low ranks first, as far as `ENOUGH` idle workers show: the same ones again have a communicator already.
        """
        by_host: dict[str, list[int]] = {}
        found = False
        for n_seen, worker in enumerate(self._lanes.idle):
            if allowed is None or worker in allowed:
                on_host = by_host.setdefault(self._hosts[worker], [])
                on_host.append(worker)
                found = found or len(on_host) >= n
            if found and n_seen >= ENOUGH:
                break
        if found:
            return min(nsmallest(n, on_host) for on_host in by_host.values() if len(on_host) >= n)
        if sum(map(len, by_host.values())) < n:
            return []
        largest_first = sorted(by_host.values(), key=len, reverse=True)
        return [worker for on_host in largest_first for worker in sorted(on_host)][:n]

    def _reserve(self, number: int, n: int, allowed: frozenset[int] | None, now: float) -> bool:
        """Reserve the workers that should be free first; False if there are not enough that nobody has reserved."""
        ready = {worker: self._ready_at(worker, now) for worker in self._unreserved(allowed)}
        if len(ready) < n:
            return False
        chosen = nsmallest(n, ready, key=lambda worker: (ready[worker], worker))
        limit = now + HOST_PATIENCE * (ready[chosen[-1]] - now)
        by_host: dict[str, list[int]] = {}
        for worker in ready:
            by_host.setdefault(self._hosts[worker], []).append(worker)
        best = math.inf
        for on_host in by_host.values():
            if len(on_host) >= n:
                first = nsmallest(n, on_host, key=lambda worker: (ready[worker], worker))
                last = ready[first[-1]]
                if last <= limit and (last < best or (best == math.inf and last == best)):
                    best, chosen = last, first
                    if last == math.inf:
                        break
        team = _Team(number, allowed, chosen)
        last = max(ready[worker] for worker in chosen)
        until = last if last < math.inf else -math.inf  # what nobody knows leaves no holes
        self._reserved[number] = team
        for worker in chosen:
            self._reserved_for[worker] = number
            self._lanes.hold(worker, until)
        return True

    def _unreserved(self, allowed: frozenset[int] | None) -> Iterator[int]:
        for worker in self._hosts if allowed is None else allowed & self._hosts.keys():
            if worker not in self._reserved_for:
                yield worker

    def _ready_at(self, worker: int, now: float) -> float:
        return math.inf if worker in self._busy_with else self._lanes.ready_at(worker, now)

    def _is_free(self, worker: int) -> bool:
        return worker not in self._busy_with and self._lanes.is_idle(worker)

    def _unreserve(self, team: _Team, keep: Iterable[int]) -> None:
        kept = set(keep)
        for worker in team.workers:
            del self._reserved_for[worker]
            if worker not in self._busy_with and worker not in kept:
                self._release(worker)

    def _release(self, worker: int) -> None:
        self._lanes.release(worker, has_waiting=self._dealer.has_waiting)

    def _start(self, team: _Team, now: float) -> Placement:
        team.began = now
        self._running[team.number] = team
        for worker in team.workers:
            self._reserved_for.pop(worker, None)
            self._busy_with[worker] = team.number
            self._lanes.hold(worker)
        return Placement(team.number, team.workers)

    def check_invariants(self) -> None:
        """Assert what must hold between two events."""
        self._dealer.check_invariants()
        busy = {worker: team.number for team in self._running.values() for worker in team.workers}
        reserved = {worker: team.number for team in self._reserved.values() for worker in team.workers}
        assert busy == self._busy_with
        assert reserved == self._reserved_for
        assert sum(len(team.workers) for team in self._running.values()) == len(busy)
        assert sum(len(team.workers) for team in self._reserved.values()) == len(reserved)
        queued = [number for queue in self._queues.values() for number in queue]
        assert sorted(queued) == sorted(self._shapes)
        assert not set(queued) & (set(self._reserved) | set(self._running))
        assert not set(self._lanes.idle) & (set(busy) | set(reserved))
        assert all(self._lanes.is_idle(worker) for worker in busy)
        teams = [*self._running.values(), *self._reserved.values()]
        assert self._n_widest == sum(len(team.workers) > self._half for team in teams)
