"""What a row is, and how it is measured: contenders in turn, medians of rounds, ratios within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

__all__ = [
    "MS",
    "N_ROUNDS",
    "OURS",
    "PEERS",
    "RATE",
    "RAW",
    "US",
    "WITHOUT",
    "ContenderLost",
    "Contenders",
    "Row",
    "Setting",
    "Target",
    "Unit",
    "measure",
    "repetitions",
]

OURS = "ours"
RAW = "raw"  # mpi4py without anything of ours
WITHOUT = "without"  # ours, without what is measured
PEERS = ("schwimmbad", "mpi4py.futures", "ProcessPoolExecutor", "mp.Pool", "joblib", "dask")

N_ROUNDS = 11  # many short ones rather than few long ones: other jobs disturb some of them, the median stands
N_ROUNDS_QUICK = 5
SAMPLE_S = 0.1  # a sample lasts about that long: a thousand times the clock's resolution, a few time slices
SAMPLE_QUICK_S = 0.03
MAX_REPETITIONS = 10**6
ROW_S = 30.0  # on an undisturbed machine no row needs as much for its rounds, but those of five
_TOO_LONG = 3  # times as long as a sample should be
_WAKE_PART = 20  # so much of a sample comes before it: ranks and processes that slept meanwhile wake up
_GROWTH = 10  # of the repetitions per step while their number is sought

# Returns the seconds that so many repetitions take; in units that count nothing, the value itself.
Contender = Callable[[int], float]
Contenders = Mapping[str, Contender]


class ContenderLost(Exception):
    """Raised by a contender that cannot go on; the row is measured without it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit of a row.

    Attributes
    ----------
    name : str
        As it is shown.
    per_second : float
        Of a time: how many make a second. 0 if the unit is not a time.
    is_rate : bool
        Of repetitions per second.
    more_is_better : bool
        Whether a contender with more is the better one.
    """

    name: str
    per_second: float = 0.0
    is_rate: bool = False
    more_is_better: bool = False

    @property
    def repeats(self) -> bool:
        """Whether a sample is made of repetitions that can be counted; else a contender gives the value itself."""
        return self.is_rate or self.per_second > 0

    def value(self, measured: float, n: int) -> float:
        """Return what a contender measured for `n` repetitions, in this unit."""
        if self.is_rate:
            return n / measured
        return measured / n * self.per_second if self.per_second else measured


US = Unit("us", 1e6)
MS = Unit("ms", 1e3)
RATE = Unit("tasks/s", is_rate=True, more_is_better=True)


@dataclass(slots=True)
class Setting:
    """Where a row is measured, and what its contenders leave behind.

    Attributes
    ----------
    n_ranks : int
        Ranks of the job.
    quick : bool
        Fewer and shorter samples.
    cpus : collection of int
        Cores that the whole benchmark may use; some launchers bind ranks to fewer.
    mpiexec : str or None
        The user's launcher, for rows that launch.
    cleanup : ExitStack
        Closed when the row has been measured.
    left_out : dict
        Peers that do not take part, and why.
    """

    n_ranks: int
    quick: bool = False
    cpus: Sequence[int] = ()
    mpiexec: str | None = None
    cleanup: ExitStack = field(default_factory=ExitStack)
    left_out: dict[str, str] = field(default_factory=dict)

    def rounds(self, full: int) -> int:
        """Return the number of rounds where a full run has `full`."""
        return min(full, N_ROUNDS_QUICK) if self.quick else full

    @property
    def sample_s(self) -> float:
        """How long a sample shall last."""
        return SAMPLE_QUICK_S if self.quick else SAMPLE_S


@dataclass(frozen=True, slots=True)
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
    plus : float
        What ours may take beyond, in the row's unit.
    """

    limit: float
    against: str = RAW
    at_least: bool = False
    plus: float = 0.0

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        plus = f" + {self.plus:g}" if self.plus else ""
        return f"{sign} {self.limit:g}" + (f" x {self.against}" if self.against else "") + plus

    def judged(self, samples: Mapping[str, Sequence[float]]) -> list[float]:
        """Return what is compared with the limit, by round; empty where the contender is missing."""
        ours = [value - self.plus for value in samples[OURS]]
        if not self.against:
            return ours
        return [mine / other for mine, other in zip(ours, samples.get(self.against, ()), strict=False)]

    def is_met(self, reached: float) -> bool:
        """Tell whether what was reached is within the bound."""
        return reached >= self.limit if self.at_least else reached <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    name : str
        Short name; one row may be measured at several numbers of ranks.
    about : str
        What it measures, in a phrase.
    ranks : sequence of int
        Numbers of ranks of the jobs that measure it.
    unit : Unit
        Unit of a sample.
    contenders : callable
        Makes the contenders when the row's turn comes: on rank 0 of a job, or in the command itself if `launches`.
    target : Target or None
        What ours should reach.
    rounds : int
        Of a full run; fewer for rows of which one round takes seconds. A row of one round is measured cold, without
        a sample beforehand.
    launches : bool
        Whether its contenders start jobs of their own.
    least : int
        Repetitions in a sample, where they are done all at once: with few of them a rate would be a latency.
    """

    name: str
    about: str
    ranks: Sequence[int]
    unit: Unit
    contenders: Callable[[Setting], Contenders]
    target: Target | None = None
    rounds: int = N_ROUNDS
    launches: bool = False
    least: int = 1


def measure(row: Row, setting: Setting, clock: Callable[[], float] = perf_counter) -> dict[str, Any]:
    """Measure one row; return what goes into the JSON file.

    After five rounds it ends when `ROW_S` have passed on `clock`.

    Returns
    -------
    dict
        ``ours``, ``raw`` and further contenders by name: medians in ``unit``; ``ratio``: by contender, the median over
        the rounds of ours / contender; ``best``: by contender, the best round of ours / its best round, which is what
        remains where other jobs disturb most rounds; ``spread``: smallest and largest of each; ``samples``: all of
        them, in the order of the rounds; ``repetitions``: in the last sample; ``left_out``: contenders that took no
        part, and why; ``limit``, ``against``, ``plus``: the target, None where there is none; ``reached``: the median
        that the target judges, None where there is no target or its contender is left out; ``met``: the judgement.
    """
    with setting.cleanup:
        turns = {name: _Turn(contender, row, setting) for name, contender in row.contenders(setting).items()}
        for name in tuple(turns):
            with _losing(name, turns, setting):
                turns[name].prepare()
        start = clock()
        for index in range(setting.rounds(row.rounds)):
            if index >= N_ROUNDS_QUICK and clock() - start > ROW_S:
                break
            for name in tuple(turns) if index % 2 == 0 else reversed(tuple(turns)):
                with _losing(name, turns, setting):
                    turns[name].take()
    repeated = {name: turn.n for name, turn in turns.items()}
    return _summary(row, setting, {name: turn.samples for name, turn in turns.items()}) | {"repetitions": repeated}


class _Turn:
    """A contender of a row: how often it repeats, and its samples."""

    def __init__(self, contender: Contender, row: Row, setting: Setting) -> None:
        self._contender = contender
        self._row = row
        self._sample_s = setting.sample_s
        self.n = 1
        self.samples: list[float] = []

    def prepare(self) -> None:
        """Find the repetitions; the contender is warm afterwards, unless the row has a single round."""
        if self._row.unit.repeats:
            self.n = max(repetitions(self._contender, self._sample_s), self._row.least)
        elif self._row.rounds > 1:
            self._contender(1)

    def take(self) -> None:
        """Take a sample. Where the machine has become slower since `prepare`, the next one is shorter."""
        if self.n >= _WAKE_PART:
            self._contender(self.n // _WAKE_PART)
        measured = self._contender(self.n)
        self.samples.append(self._row.unit.value(measured, self.n))
        if self._row.unit.repeats and measured > _TOO_LONG * self._sample_s:
            self.n = max(round(self.n * self._sample_s / measured), self._row.least)


@contextmanager
def _losing(name: str, turns: dict[str, _Turn], setting: Setting) -> Iterator[None]:
    """Take a contender that is lost out of the row, and note why."""
    try:
        yield
    except ContenderLost as exc:
        del turns[name]
        setting.left_out[name] = str(exc)


def repetitions(contender: Contender, sample_s: float) -> int:
    """Return how many repetitions last about `sample_s`, at least 1; leaves the contender warm."""
    contender(1)  # the first use of a path: connections, page faults, imports
    n = 1
    while True:
        seconds = contender(n)
        if seconds < sample_s:
            seconds = min(seconds, contender(n))  # a disturbed time must not make all samples short
        if seconds >= sample_s / _GROWTH or n >= MAX_REPETITIONS:
            return min(max(round(n * sample_s / max(seconds, 1e-9)), 1), MAX_REPETITIONS)
        n *= _GROWTH


def _summary(row: Row, setting: Setting, samples: Mapping[str, list[float]]) -> dict[str, Any]:
    others = [name for name in samples if name != OURS]
    ratios = {name: [mine / other for mine, other in zip(samples[OURS], samples[name], strict=True)] for name in others}
    choose = max if row.unit.more_is_better else min
    spread = {**samples, **{f"ratio {name}": values for name, values in ratios.items()}}
    target = row.target
    judged = target.judged(samples) if target else []
    reached = statistics.median(judged) if judged else None
    return {
        "unit": row.unit.name,
        "more_is_better": row.unit.more_is_better,
        "n_ranks": setting.n_ranks,
        **{name: statistics.median(values) for name, values in samples.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "best": {name: choose(samples[OURS]) / choose(samples[name]) for name in others},
        "spread": {name: [min(values), max(values)] for name, values in spread.items()},
        "samples": dict(samples),
        "left_out": setting.left_out,
        "target": str(target) if target else None,
        "limit": target.limit if target else None,
        "against": target.against if target else None,
        "plus": target.plus if target else None,
        "reached": reached,
        "met": None if target is None or reached is None else target.is_met(reached),
    }
