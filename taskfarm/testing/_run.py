"""One simulated farm: a program that maps, submits, cancels and waits, as its seed says."""

from __future__ import annotations

import atexit
import logging
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from taskfarm.config import Config
from taskfarm.errors import UsageError
from taskfarm.futures._executor import Executor
from taskfarm.futures._future import ExecutorBrokenError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import Hall
from taskfarm.runtime.session import Session
from taskfarm.testing._check import SMALL, SimulationFailed, check_crew, check_end, check_outcome, demand
from taskfarm.testing._plan import Plan
from taskfarm.testing._tasks import Item, Kind, expected, work
from taskfarm.testing._world import Network, RankZero, surroundings

__all__ = ["Summary", "simulate"]

_LONG = 30.0  # times the mean that a long task takes
_P_LONG = 0.02
MAX_TEAM = 5  # workers of one task
_BAD = (Kind.RAISES, Kind.BAD_RESULT, Kind.UNREADABLE_RESULT, Kind.UNREADABLE_ARGUMENT)


@dataclass(frozen=True)
class Summary:
    """What happened in a simulated farm.

    Attributes
    ----------
    n_tasks : int
        Tasks whose end was seen and checked.
    n_events : int
        Times at which the tables were checked.
    n_lost : int
        Workers that were lost.
    seconds : float
        Virtual time.
    """

    n_tasks: int
    n_events: int
    n_lost: int
    seconds: float


def simulate(seed: int, plan: Plan | None = None) -> Summary:
    """Run one farm and check what must hold.

    Parameters
    ----------
    seed : int
        Decides everything.
    plan : Plan, optional
        By default the one that belongs to the seed.

    Raises
    ------
    SimulationFailed
        If a promise was broken: a task lost or delivered twice, a wrong result, tables that contradict each other, a
        worker that stays busy, a farm without progress. The message has the command that shows it again.
    """
    plan = plan or Plan.from_seed(seed)
    try:
        with _quiet():
            return _Program(plan).run()
    except Exception as exc:
        again = f"python -m taskfarm.testing --seed {seed}"
        raise SimulationFailed(f"seed {seed}: {type(exc).__name__}: {exc}\nto see it again: {again}\n{plan}") from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the log quiet: losses and bad frames are what this is about."""
    logger = logging.getLogger("taskfarm")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


class _SimulatedExecutor(Executor):
    """The real executor, whose workers are simulated."""

    def __init__(self, hall: Hall) -> None:
        self._given = hall
        super().__init__(blas_threads=0)

    def _part(self) -> None:
        """Do nothing: this is rank 0."""

    def _find_hall(self, session: Session, wanted: int | None) -> Hall:
        return self._given


class _Program:
    """What rank 0 does."""

    def __init__(self, plan: Plan) -> None:
        draw = self._draw = random.Random(plan.seed)
        self._plan = plan
        self._network = Network(draw, plan.latency_s)
        self._zero = RankZero(plan, self._network, draw)
        ranks = range(1, plan.n_workers + 1)
        controller = Controller(self._zero, dict.fromkeys(ranks, "host"), surroundings())
        controller.may_lose = True
        self._crew = Crew(controller, ranks, self._network.time)
        self._hall = Hall(Session(Config(blas_threads=0)), self._crew, lambda deadline: None)
        atexit.unregister(self._hall.close)
        self._crew.wake_pump = lambda: None  # no thread: this one moves everything
        self._executor = _SimulatedExecutor(self._hall)
        self._n_looks = 0
        self._n_checked = 0
        self._zero.on_look = self._look
        self._futures: list[tuple[Item, Future[Any], bool]] = []

    def run(self) -> Summary:
        """Do what the plan says."""
        items = [self._item(index) for index in range(self._plan.n_tasks)]
        position = 0
        try:
            while position < len(items):
                n = min(self._draw.randint(1, 1 + len(items) // 2), len(items) - position)
                self._use(items[position : position + n])
                position += n
                if self._draw.random() < 0.5:
                    self._idle(self._draw.random() * self._plan.horizon_s)
        except ExecutorBrokenError:
            demand(self._is_broken, "the executor is broken although workers live")
        for item, future, was_cancelled in self._futures:
            self._check_future(item, future, was_cancelled)
        self._hall.drain()
        if not self._is_broken:
            check_end(self._crew)
        self._executor.shutdown()
        self._look()
        self._hall.close()
        return Summary(self._n_checked, self._n_looks, len(self._zero.lost), self._network.now)

    def _item(self, index: int) -> Item:
        draw, plan = self._draw, self._plan
        seconds = draw.expovariate(1.0) * plan.task_s * (_LONG if draw.random() < _P_LONG else 1.0)
        kind = Kind.GOOD
        if draw.random() < plan.p_poison:
            kind = Kind.POISON
        elif draw.random() < plan.p_bad:
            kind = draw.choice(_BAD)
        load = bytes(draw.randrange(200)) if kind is Kind.GOOD else None
        return Item(index, kind, seconds, load)

    @property
    def _is_broken(self) -> bool:
        return self._crew.broken is not None

    def _look(self) -> None:
        """Check the tables, between two events; those of a large farm now and then."""
        self._n_looks += 1
        if self._plan.n_workers <= SMALL or self._n_looks % self._plan.n_workers == 0:
            alive = set(self._crew.workers) - set(self._zero.lost)
            check_crew(self._crew, alive)

    def _idle(self, seconds: float) -> None:
        """Let the program do something else, while a background thread would serve."""
        until = self._network.now + seconds
        while self._network.now < until:
            self._network.run_until(self._network.now + seconds / 4)
            self._crew.serve()

    def _use(self, items: Sequence[Item]) -> None:
        if self._plan.p_placed and self._draw.random() < self._plan.p_placed:
            self._place(items)
        elif self._draw.random() < 0.5:
            self._submit(items)
        else:
            self._map(items)

    def _submit(self, items: Sequence[Item]) -> None:
        for item in items:
            future = self._executor.submit(work, _loaded(item))
            was_cancelled = self._draw.random() < self._plan.p_cancel and future.cancel()
            self._futures.append((item, future, was_cancelled))

    def _place(self, items: Sequence[Item]) -> None:
        """Submit tasks that want several workers, as long as there are as many."""
        for item in items:
            wanted = item._replace(n_workers=self._draw.randint(1, min(MAX_TEAM, self._plan.n_workers)))
            placed = self._executor.with_options(ranks=wanted.n_workers)
            try:
                future = placed.submit(work, _loaded(wanted))
            except UsageError as exc:
                demand(self._n_alive < wanted.n_workers, f"{self._n_alive} workers, but {exc}")
                continue
            was_cancelled = self._draw.random() < self._plan.p_cancel and future.cancel()
            self._futures.append((wanted, future, was_cancelled))

    @property
    def _n_alive(self) -> int:
        return self._plan.n_workers - len(self._zero.lost)

    def _check_future(self, item: Item, future: Future[Any], was_cancelled: bool) -> None:
        value, error = None, None
        try:
            value = future.result()
        except CancelledError:
            demand(was_cancelled, f"task {item.number} was cancelled by nobody")
            self._n_checked += 1
            return
        except Exception as exc:
            if isinstance(exc, SimulationFailed):
                raise
            error = exc
        demand(not was_cancelled, f"task {item.number} was cancelled, and gave {value!r}, {error!r}")
        self._check(item, value, error)

    def _check(self, item: Item, value: object, error: BaseException | None) -> None:
        self._n_checked += 1
        n_lost = len(self._zero.lost) + self._zero.n_children_lost
        check_outcome(item, value, error, n_lost=n_lost, n_alive=self._n_alive, is_broken=self._is_broken)

    def _map(self, items: Sequence[Item]) -> None:
        """Take the results of a map, all or some; a failure ends it."""
        draw = self._draw
        in_order = draw.random() < 0.5
        method = self._executor.map if in_order else self._executor.map_unordered
        chunksize = draw.choice((None, None, 1, 3, 10))
        wanted = len(items) if draw.random() < 0.8 else draw.randint(0, len(items))
        results = method(work, [_loaded(item) for item in items], chunksize=chunksize)
        by_value = {expected(item): item for item in items}
        try:
            for position in range(wanted):
                value = next(results)
                item = items[position] if in_order else by_value.pop(value, None)
                if item is None:
                    raise SimulationFailed(f"an unordered map gave {value!r} twice, or out of nothing")
                self._check(item, value, None)
        except StopIteration:
            demand(False, f"a map ended after {position} of {len(items)} results")
        except ExecutorBrokenError:
            raise
        except SimulationFailed:
            raise
        except Exception as exc:  # noqa: BLE001 - the failure of a task
            if in_order:
                self._check(items[position], None, exc)
            else:
                is_due = any(item.kind is not Kind.GOOD for item in items)
                demand(is_due or self._zero.lost or self._zero.n_children_lost, f"{exc!r} out of nothing")
        finally:
            del results  # drops what has not begun


def _loaded(item: Item) -> Item:
    """Return an item with an argument that fails on the way, where that is its kind."""
    from taskfarm.testing._tasks import Unreadable

    return item._replace(load=Unreadable(there=True)) if item.kind is Kind.UNREADABLE_ARGUMENT else item
