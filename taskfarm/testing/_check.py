"""What must hold in every farm, whatever happens to it."""

from __future__ import annotations

from collections.abc import Collection

from taskfarm.errors import TaskfarmError, WorkerLostError
from taskfarm.runtime.executor.crew import Crew
from taskfarm.scheduling.pacing import RETRIES
from taskfarm.testing._tasks import Item, Kind, expected

__all__ = ["SimulationFailed", "check_crew", "check_end", "check_outcome", "demand"]

SMALL = 64  # workers; with more, the tables are walked after some events only


class SimulationFailed(AssertionError):
    """A promise was broken; the message has the line that shows it again."""


def demand(holds: object, promise: str) -> None:
    """Raise unless `holds`."""
    if not holds:
        raise SimulationFailed(promise)


def check_crew(crew: Crew, alive: Collection[int]) -> None:
    """Check the tables between two events.

    Parameters
    ----------
    alive : collection of int
        Workers whose loss rank 0 has not been told of.
    """
    dealer = crew.dealer
    try:
        dealer.check_invariants()
        crew.controller.farm.check_invariants()
        crew.desk.placer.check_invariants()
    except (AssertionError, TaskfarmError) as exc:
        raise SimulationFailed(f"the tables contradict each other: {exc!r}") from exc
    demand(set(dealer.lanes.workers) >= set(alive), "a living worker has no lane")


def check_end(crew: Crew) -> None:
    """Check that nothing is left when all has ended."""
    demand(not crew.dealer.flying, "batches are under way although everything has ended")
    demand(not crew.desk.is_busy, "a task has workers, or waits for them, although everything has ended")
    demand(not crew.dealer.has_waiting, "items wait although everything has ended")
    demand(crew.dealer.n_busy() == 0, "a worker is taken for busy although everything has ended")


def check_outcome(
    item: Item, value: object, error: BaseException | None, *, n_lost: int, n_alive: int, is_broken: bool
) -> None:
    """Check how a task ended.

    Parameters
    ----------
    n_lost : int
        How many workers, and processes of tasks, were lost so far.
    n_alive : int
        How many workers are left.
    is_broken : bool
        Whether no worker is left.
    """
    what = f"task {item.number} ({item.kind.value})"
    if isinstance(error, WorkerLostError):
        enough = n_lost > RETRIES or n_alive < item.n_workers
        demand(enough, f"{what} was given up after {n_lost} losses, with {n_alive} workers left: {error}")
    elif error is not None and is_broken and type(error).__name__ == "ExecutorBrokenError":
        return
    elif item.kind is Kind.GOOD:
        demand(error is None and value == expected(item), f"{what} gave {value!r}, {error!r}")
    elif item.kind is Kind.POISON:
        demand(False, f"{what} gave {value!r}, {error!r}")
    else:
        demand(error is not None, f"{what} gave {value!r}")
