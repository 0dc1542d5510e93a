"""What one simulated farm does and suffers; all of it follows from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["Plan"]

ISOLATED = 0.3  # of the farms


@dataclass(frozen=True)
class Plan:
    """A farm, its work and its faults. Times are seconds of the virtual clock.

    Attributes
    ----------
    seed : int
        Decides everything that the plan leaves open.
    n_workers : int
        Number of workers.
    n_tasks : int
        Number of tasks, some by `map`, some by `submit`.
    task_s : float
        Mean time of a task; single ones take much longer.
    latency_s : float
        Mean time of a message, one way.
    p_death : float
        Probability that a worker dies.
    p_stall : float
        Probability that a worker stops for a while.
    p_duplicate : float
        Probability that a reply arrives twice.
    p_torn : float
        Probability that the last reply of a worker that dies arrives in part.
    p_poison : float
        Probability that a task kills whoever runs it.
    p_bad : float
        Probability that a task raises, or that its argument or its result cannot be read.
    p_cancel : float
        Probability that a future is cancelled.
    p_placed : float
        Probability that tasks ask for several workers, each on its own.
    is_isolated : bool
        Whether tasks run in processes of their own: a poisonous one costs its process, and the worker lives on.
    p_child_death : float
        Probability that such a process dies of itself when an item begins.
    heartbeat_s : float
        After which time a stopped worker is given up, although its replies may still come.
    horizon_s : float
        Deaths and stalls happen before this time.
    """

    seed: int
    n_workers: int
    n_tasks: int
    task_s: float = 1e-3
    latency_s: float = 20e-6
    p_death: float = 0.0
    p_stall: float = 0.0
    p_duplicate: float = 0.0
    p_torn: float = 0.0
    p_poison: float = 0.0
    p_bad: float = 0.0
    p_cancel: float = 0.0
    p_placed: float = 0.0
    is_isolated: bool = False
    p_child_death: float = 0.0
    heartbeat_s: float = 0.1
    horizon_s: float = 0.1

    @classmethod
    def from_seed(cls, seed: int, *, n_workers: int | None = None, n_tasks: int | None = None) -> Plan:
        """Return the plan that belongs to a seed; what is given is not drawn.

        Parameters
        ----------
        n_workers : int, optional
            Mostly a few, sometimes hundreds.
        n_tasks : int, optional
            166 on average.
        """
        draw = random.Random(seed)
        workers = draw.choice((1, 2, 2, 3, 4, 5, 8, 16, draw.randint(20, 300)))
        tasks = draw.choice((0, 1, 30, 100, 200, 200, 300, 500))
        task_s = draw.choice((0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1.0))
        workers = workers if n_workers is None else n_workers
        tasks = tasks if n_tasks is None else n_tasks
        busy_s = max(tasks * task_s / workers, 1e-3)
        often = (0.0, 0.0, 0.05, 0.3)
        return cls(
            seed,
            workers,
            tasks,
            task_s,
            latency_s=draw.choice((1e-6, 20e-6, 20e-6, 1e-3)),
            p_death=draw.choice((0.0, 0.1, 0.5, 0.9, 1.0)),
            p_stall=draw.choice(often),
            p_duplicate=draw.choice(often),
            p_torn=draw.choice((0.0, 0.5)),
            p_poison=draw.choice((0.0, 0.0, 0.01, 0.1)),
            p_bad=draw.choice(often),
            p_cancel=draw.choice(often),
            heartbeat_s=draw.choice((0.1, 1.0)) * busy_s,
            horizon_s=draw.choice((0.1, 1.0, 2.0)) * busy_s,
            p_placed=draw.choice((0.0, 0.0, 0.3, 0.6)),
            is_isolated=draw.random() < ISOLATED,
            p_child_death=draw.choice((0.0, 0.01, 0.2)),
        )
