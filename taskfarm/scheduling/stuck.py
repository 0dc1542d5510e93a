"""Decide when a failed collective call has to end the job.

A rank that raises leaves a collective call; ranks that wait for it inside a method of the user's communicator wait
for ever, in every MPI. From the first failure on, all ranks are asked where they are. A rank that has not left the
call

* and stays inside one `comm` method that needs a failed rank for `comm_s` seconds, ends the job;
* and is elsewhere (long local work, a C library's own collectives) is warned about, and ends the job after `other_s`.

Without a failure nothing is ever ended: healthy long work is left alone. But a call may have been given a time limit:
when that is over, all ranks are asked, and one that has not left the call, or does not answer, ends the job.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

__all__ = ["EndJob", "StuckJudge", "Warn", "Whereabouts"]

SILENT_S = 1.0  # a rank that can answer does so within milliseconds
WARN_AFTER_S = 5.0  # first warning about a rank that works on outside `comm` methods


@dataclass(frozen=True)
class Whereabouts:
    """Where a rank is.

    Attributes
    ----------
    call : int
        Number of the call that it runs; 0 if it runs none.
    done : int
        Number of the last call that it has left.
    method : str
        The `comm` method that it is inside of, or ``""``.
    entry : int
        Counts the entries into `comm` methods, so that two answers can be told apart.
    peer : int
        The one rank that the method waits for, or -1 for a collective method.
    place : str
        ``file:line in function`` of the user's code.
    stack : str
        What leads there, as a traceback has it, if that was asked for.
    """

    call: int
    done: int
    method: str = ""
    entry: int = 0
    peer: int = -1
    place: str = ""
    stack: str = ""


@dataclass(frozen=True)
class Warn:
    """Tell the user that ranks of a failed call are still at work."""

    text: str


@dataclass(frozen=True)
class EndJob:
    """End the job with this message."""

    text: str


@dataclass
class _Case:
    call: int
    since: float
    failed: dict[int, str] = field(default_factory=dict)  # ranks that have left the call, and how if by an exception
    arrived: dict[int, float] = field(default_factory=dict)  # rank: when it was first seen inside the call
    first_seen: dict[int, tuple[int, float]] = field(default_factory=dict)  # rank: its entry, and since when
    by_end: bool = False
    warned: bool = False
    late: tuple[str, float] | None = None  # what to say of the call's time limit, and when it was over


class StuckJudge:
    """Keeps the open cases and decides.

    Parameters
    ----------
    ranks : collection of int
        All ranks that take part in calls, rank 0 included.
    comm_s, other_s : float
        Limits inside and outside `comm` methods, in seconds.
    """

    def __init__(self, ranks: Collection[int], comm_s: float, other_s: float) -> None:
        self._ranks = frozenset(ranks)
        self._comm_s = comm_s
        self._other_s = other_s
        self._cases: dict[int, _Case] = {}
        self._where: dict[int, Whereabouts] = {}
        self._heard: dict[int, float] = {}

    @property
    def has_case(self) -> bool:
        """Whether any failed call still has ranks in it."""
        return bool(self._cases)

    def on_failure(self, rank: int, call: int, text: str, now: float) -> None:
        """Note that `rank` left call `call` by an exception that `text` describes."""
        case = self._cases.setdefault(call, _Case(call, now))
        case.failed[rank] = text

    def on_end(self, call: int, now: float) -> None:
        """Note that rank 0's program has ended, without an error, while workers are inside calls up to `call`.

        Their work may be healthy: only a rank that stays inside one `comm` method for ``other_s`` ends the job then.
        """
        case = self._cases.setdefault(call, _Case(call, now, by_end=True))
        case.failed[0] = "rank 0: its program has ended"

    def on_late(self, call: int, text: str, ranks_left: Collection[int], now: float) -> None:
        """Note that the time limit of a call is over, which `text` tells, and who is known to have left the call."""
        case = self._cases.setdefault(call, _Case(call, now))
        case.late = (text, now)
        for rank in ranks_left:
            case.failed.setdefault(rank, "")
        self._forget_left()

    @property
    def wants_stacks(self) -> bool:
        """Whether a time limit is over, so that ranks are to be asked for their stacks, too."""
        return any(case.late for case in self._cases.values())

    def on_answer(self, rank: int, where: Whereabouts, now: float) -> None:
        """Note where `rank` is."""
        self._where[rank] = where
        self._heard[rank] = now
        for case in list(self._cases.values()):
            if where.done >= case.call:
                case.failed.setdefault(rank, "")
            elif where.call >= case.call:  # one that is still in an earlier call is no part of this failure
                case.arrived.setdefault(rank, now)
                if case.first_seen.get(rank, (None, 0.0))[0] != where.entry:
                    case.first_seen[rank] = (where.entry, now)
        self._forget_left()

    def on_done(self, rank: int, done: int) -> None:
        """Note that `rank` is known to have left all calls up to `done`, from wherever that is known."""
        for case in self._cases.values():
            if done >= case.call:
                case.failed.setdefault(rank, "")
        self._forget_left()

    def _forget_left(self) -> None:
        for number in [case.call for case in self._cases.values() if self._ranks <= case.failed.keys()]:
            del self._cases[number]

    def _take_in_silent(self, case: _Case, now: float) -> None:
        """Count as inside a rank that does not answer: it is in code that holds the interpreter lock, or gone."""
        for rank in self._ranks - case.failed.keys():
            if self._heard.get(rank, case.since) <= case.since and now - case.since >= SILENT_S:
                case.arrived.setdefault(rank, case.since)
                case.first_seen.setdefault(rank, (0, case.since))
                self._where.setdefault(rank, Whereabouts(case.call, 0))

    def judge(self, now: float) -> list[Warn | EndJob]:
        """Return what has to be done now."""
        found: list[Warn | EndJob] = []
        for case in self._cases.values():
            if case.late:
                if self._can_tell(case, case.late[1], now):
                    return [EndJob(self._late_text(case, case.late[0]))]
                continue
            self._take_in_silent(case, now)
            inside = [rank for rank in case.first_seen if rank not in case.failed]
            for rank in inside:
                where, since = self._where[rank], case.first_seen[rank][1]
                needs_failed = where.method and (where.peer < 0 or where.peer in case.failed)
                if needs_failed and now - since >= (self._other_s if case.by_end else self._comm_s):
                    return [EndJob(self._text(case, inside, "cannot return from it; ending the job"))]
                if now - case.arrived[rank] >= self._other_s and not case.by_end:
                    limit = f"did not leave the call within {self._other_s:g} s (TASKFARM_STUCK_S); ending the job"
                    return [EndJob(self._text(case, inside, limit))]
            oldest = min((case.arrived[rank] for rank in inside), default=now)
            if inside and not case.warned and not case.by_end and now - oldest >= min(WARN_AFTER_S, self._other_s / 2):
                case.warned = True
                limit = f"still at work; the job ends {self._other_s:g} s after the failure (TASKFARM_STUCK_S)"
                found.append(Warn(self._text(case, inside, limit)))
        return found

    def _text(self, case: _Case, inside: Collection[int], verdict: str) -> str:
        how = "has ended on rank 0" if case.by_end else "failed on some ranks"
        lines = [f"call {case.call} {how} while others are inside it:"]
        lines += [f"  {text}" for _, text in sorted(case.failed.items()) if text]
        for rank in sorted(inside):
            where = self._where[rank]
            if self._heard.get(rank, case.since) <= case.since:
                lines.append(f"  rank {rank} does not answer: it is in code that holds the interpreter lock, or gone")
                continue
            method = f"inside comm.{where.method}" if where.method else "at work"
            lines.append(f"  rank {rank} is {method}" + (f" at {where.place}" if where.place else ""))
        lines.append(f"  {verdict}")
        return "\n".join(lines)

    def _can_tell(self, case: _Case, since: float, now: float) -> bool:
        """Tell whether all ranks have said where they are since the time limit of a call was over, or will not."""
        return now - since >= SILENT_S or all(self._heard.get(rank, since) > since for rank in self._inside(case))

    def _inside(self, case: _Case) -> list[int]:
        return sorted(self._ranks - case.failed.keys())

    def _late_text(self, case: _Case, text: str) -> str:
        assert case.late is not None
        lines = [f"{text}:"]
        lines += [f"  {failure}" for _, failure in sorted(case.failed.items()) if failure]
        for rank in self._inside(case):
            lines += self._whereabouts(case, rank, case.late[1])
        left = [str(rank) for rank, failure in sorted(case.failed.items()) if not failure]
        if left:
            lines.append(f"  ranks {', '.join(left)} have left it" if left[1:] else f"  rank {left[0]} has left it")
        return "\n".join([*lines, "  ending the job"])

    def _whereabouts(self, case: _Case, rank: int, since: float) -> list[str]:
        """Return lines that say where a rank is that has not left a call."""
        where = self._where.get(rank)
        if where is None or self._heard.get(rank, since) <= since:
            return [f"  rank {rank} does not answer: it is in code that holds the interpreter lock, or gone"]
        if not where.call:
            return [f"  rank {rank} is in no call: it has not got this one"]
        place = f"inside comm.{where.method}" if where.method else "at work"
        earlier = f" in call {where.call}, before this one" if where.call < case.call else ""
        stack = where.stack.rstrip() or (f"  {where.place}" if where.place else "")
        return [f"  rank {rank} is {place}{earlier}", *(f"  {line}" for line in stack.splitlines())]
