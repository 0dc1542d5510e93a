"""What a row of the benchmark is, and how it is measured: contenders in turn, medians of rounds, ratios within rounds.

A row compares ours with others in the same job: one sample of each contender is a round, and a ratio is taken within
its round, so that whatever else the machine does meets all contenders alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["OURS", "RAW", "Contenders", "Row", "Scale", "Target", "measure"]

OURS = "ours"
RAW = "raw"  # mpi4py without anything of ours
N_ROUNDS = 15  # many short ones rather than few long ones: other jobs disturb some of them, the median stands


@dataclass(frozen=True)
class Scale:
    """How much to do.

    Attributes
    ----------
    quick : bool
        A tenth of the repetitions.
    n_ranks : int
        Ranks of this job.
    """

    quick: bool
    n_ranks: int

    def times(self, n: int) -> int:
        """Return how often to repeat what a full run repeats `n` times."""
        return max(n // 10, 1) if self.quick else n

    def seconds(self, full_s: float, quick_s: float) -> float:
        """Return how long to wait."""
        return quick_s if self.quick else full_s


# A contender's name, and a function that gives one sample in the row's unit.
Contenders = Mapping[str, Callable[[], float]]


@dataclass(frozen=True)
class Target:
    """What a row should reach.

    Attributes
    ----------
    limit : float
        The bound, of ours itself or of the ratio of ours to `against`.
    against : str
        A contender; ``""`` bounds ours itself, in the row's unit.
    at_least : bool
        Whether the bound is from below.
    """

    limit: float
    against: str = RAW
    at_least: bool = False

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.limit:g}" + (f" x {self.against}" if self.against else "")

    def is_met(self, value: float) -> bool:
        """Tell whether `value`, of ours or of the ratio, is within the bound."""
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : str
        Short name; one row may be measured at several numbers of ranks.
    ranks : sequence of int
        Numbers of ranks of the jobs that measure it.
    unit : str
        Unit of a sample.
    contenders : callable
        Makes the contenders, on rank 0, when the row's turn comes.
    target : Target or None
        What ours should reach.
    rounds : int
        Fewer for rows of which one round takes seconds.
    more_is_better : bool
        For rates.
    """

    name: str
    ranks: Sequence[int]
    unit: str
    contenders: Callable[[Scale], Contenders]
    target: Target | None = None
    rounds: int = N_ROUNDS
    more_is_better: bool = False


def measure(row: Row, scale: Scale) -> dict[str, Any]:
    """Measure one row; return what goes into the JSON file.

    Returns
    -------
    dict
        ``ours``, ``raw`` and further contenders by name: medians in ``unit``; ``ratio``: by contender, the median over
        the rounds of ours / contender; ``best``: by contender, the best round of ours / its best round, which is what
        remains where other jobs disturb most rounds; ``spread``: smallest and largest of each; ``samples``: all of
        them, in the order of the rounds; ``met``: whether the median meets the target, None where there is no target
        or its contender is not installed.
    """
    contenders = row.contenders(scale)
    for sample in contenders.values():
        sample()  # warm: first use of a path, page faults, connections
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(row.rounds):
        names = list(contenders)
        for name in names if index % 2 == 0 else reversed(names):
            samples[name].append(contenders[name]())
    others = [name for name in samples if name != OURS]
    ratios = {name: [mine / other for mine, other in zip(samples[OURS], samples[name], strict=True)] for name in others}
    medians = {name: statistics.median(values) for name, values in samples.items()}
    ratio = {name: statistics.median(values) for name, values in ratios.items()}
    choose = max if row.more_is_better else min
    best = {name: choose(samples[OURS]) / choose(samples[name]) for name in others}
    spread = samples | {f"ratio {name}": values for name, values in ratios.items()}
    return {
        "unit": row.unit,
        "n_ranks": scale.n_ranks,
        **medians,
        "ratio": ratio,
        "best": best,
        "spread": {name: [min(values), max(values)] for name, values in spread.items()},
        "samples": samples,
        "target": str(row.target) if row.target else None,
        "met": _is_met(row.target, medians, ratio),
    }


def _is_met(target: Target | None, medians: Mapping[str, float], ratio: Mapping[str, float]) -> bool | None:
    if target is None:
        return None
    value = ratio.get(target.against) if target.against else medians[OURS]
    return None if value is None else target.is_met(value)
