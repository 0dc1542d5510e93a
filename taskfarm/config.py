"""Every option of taskfarm and the environment variable that sets it, in one typed place.

Nothing is read at import: a session calls `Config.from_environment` once, when it is created.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from taskfarm.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing since Python 3.11

__all__ = ["LOG_LEVELS", "Config", "OnError", "Receive", "parse_tag"]

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _Choice(Enum):
    """One of a few words."""

    @classmethod
    def parse(cls, value: str | Self, source: str) -> Self:
        """Return the member for `value`, or raise `UsageError` naming `source`."""
        try:
            return cls(value.value if isinstance(value, cls) else value)
        except ValueError:
            choices = ", ".join(repr(member.value) for member in cls)
            raise UsageError(f"{source}={value!r} is not one of {choices}") from None


class OnError(_Choice):
    """What happens when a worker raises in a collective call.

    ``DEFERRED``: rank 0 returns at once, the failure is raised at its next entry into the library.
    ``WAIT``: `call` returns when all ranks are done and raises there.
    ``PRINT``: the worker prints the traceback and rank 0 is not told.
    """

    DEFERRED = "deferred"
    WAIT = "wait"
    PRINT = "print"


class Receive(_Choice):
    """How small messages are taken from MPI.

    ``POSTED``: a receive for them waits in MPI at all times; the fastest, but MPICH hangs with it between hosts.
    ``MATCHED``: after a matched probe.
    ``PLAIN``: after a plain probe, for fabrics on which matched ones misbehave.
    """

    POSTED = "posted"
    MATCHED = "matched"
    PLAIN = "plain"


@dataclass(frozen=True)
class Config:
    """Options of one session; the defaults are right for nearly everybody.

    Attributes
    ----------
    on_error : OnError
        ``TASKFARM_ON_ERROR``: mode of failing collective calls.
    stuck_s : float
        ``TASKFARM_STUCK_S``: seconds that a rank may stay in a failed collective call outside `comm` methods, or inside
        one `comm` method after rank 0's program has ended, before the job is ended.
    stuck_comm_s : float
        ``TASKFARM_STUCK_COMM_S``: the same inside one `comm` method that waits for a rank that failed.
    open_s : float
        ``TASKFARM_OPEN_S``: seconds that the first `call` waits for all ranks to enter their loop.
    leave_s : float
        ``TASKFARM_LEAVE_S``: seconds that idle workers get to leave at the end, and busy ones after an error.
    spin : bool or None
        ``TASKFARM_SPIN``: 1 or 0 forces or forbids busy waiting; by default it is used only when the ranks of a host
        are not more than its usable cores.
    doorbell : bool
        ``TASKFARM_DOORBELL``: 0 replaces the same-host wake-up by sleep-polling.
    receive : Receive or None
        ``TASKFARM_RECEIVE``: how small messages are taken from MPI; by default posted where all ranks share a host,
        else matched.
    blas_threads : int or None
        ``TASKFARM_BLAS_THREADS``: threads that numerical libraries may use in a task of the executor; 0 leaves them
        alone, by default it is the worker's share of its host's cores.
    tags : frozenset of str
        ``TASKFARM_TAGS``: tags of this rank, separated by commas.
    rank_tags : mapping of int to frozenset of str
        ``TASKFARM_RANK_TAGS``: tags of ranks, as ``gpu=1,3;bigmem=4-7``; what ``taskfarm run --tag`` sets.
    heartbeat_s : float
        ``TASKFARM_HEARTBEAT_S``: seconds without a sign of life after which a rank that does nothing counts as dead,
        in a job with supervisors (``taskfarm run --survive``).
    hang_s : float or None
        ``TASKFARM_HANG_S``: the same for a rank that computes, but lets no other thread run; by default it may for
        ever.
    isolate : bool
        ``TASKFARM_ISOLATE``: 1 has tasks of `taskfarm.vm` and of executors run in a process of their own per worker.
    journal : str
        ``TASKFARM_JOURNAL``: file in which executors keep the results of all tasks; empty for none.
    trace : str
        ``TASKFARM_TRACE``: file into which rank 0 writes a trace of all ranks; empty for none.
    log : str
        ``TASKFARM_LOG``: level from which on log records are written to standard error, rank and host first.
    forward_logs : bool
        ``TASKFARM_FORWARD_LOGS``: 1 sends the log records of workers to rank 0.
    watch : str
        ``TASKFARM_WATCH``: terminal on which rank 0 shows how far the farm is; empty for none.
    group_size : int or None
        ``TASKFARM_GROUP_SIZE``: ranks of a group of the executor's workers, its controller included; 0: rank 0 feeds
        all workers itself. By default there are groups where workers are so many that it could not.
    """

    on_error: OnError = OnError.DEFERRED
    stuck_s: float = 60.0
    stuck_comm_s: float = 2.0
    open_s: float = 300.0
    leave_s: float = 5.0
    spin: bool | None = None
    doorbell: bool = True
    receive: Receive | None = None
    blas_threads: int | None = None
    tags: frozenset[str] = frozenset()
    rank_tags: Mapping[int, frozenset[str]] = field(default_factory=dict)
    heartbeat_s: float = 30.0
    hang_s: float | None = None
    isolate: bool = False
    journal: str = ""
    trace: str = ""
    log: str = ""
    forward_logs: bool = False
    watch: str = ""
    group_size: int | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Config:
        """Return the configuration that the ``TASKFARM_*`` variables of `environ` describe.

        Raises
        ------
        UsageError
            If a variable has a value that it cannot have; the message names the variable.
        """
        default = cls()
        on_error = environ.get("TASKFARM_ON_ERROR")
        receive = environ.get("TASKFARM_RECEIVE")
        spin = environ.get("TASKFARM_SPIN")
        return cls(
            on_error=OnError.parse(on_error, "TASKFARM_ON_ERROR") if on_error else default.on_error,
            stuck_s=_seconds(environ, "TASKFARM_STUCK_S", default.stuck_s),
            stuck_comm_s=_seconds(environ, "TASKFARM_STUCK_COMM_S", default.stuck_comm_s),
            open_s=_seconds(environ, "TASKFARM_OPEN_S", default.open_s),
            leave_s=_seconds(environ, "TASKFARM_LEAVE_S", default.leave_s),
            spin=None if not spin else _flag(environ, "TASKFARM_SPIN", False),
            doorbell=_flag(environ, "TASKFARM_DOORBELL", default.doorbell),
            receive=Receive.parse(receive, "TASKFARM_RECEIVE") if receive else default.receive,
            blas_threads=_count(environ, "TASKFARM_BLAS_THREADS"),
            tags=frozenset(filter(None, map(str.strip, environ.get("TASKFARM_TAGS", "").split(",")))),
            rank_tags=_rank_tags(environ.get("TASKFARM_RANK_TAGS", "")),
            heartbeat_s=_seconds(environ, "TASKFARM_HEARTBEAT_S", default.heartbeat_s),
            hang_s=_seconds(environ, "TASKFARM_HANG_S", 0.0) or None,
            isolate=_flag(environ, "TASKFARM_ISOLATE", default.isolate),
            journal=_path(environ, "TASKFARM_JOURNAL"),
            trace=_path(environ, "TASKFARM_TRACE"),
            log=_level(environ, "TASKFARM_LOG"),
            watch=environ.get("TASKFARM_WATCH") or default.watch,
            forward_logs=_flag(environ, "TASKFARM_FORWARD_LOGS", default.forward_logs),
            group_size=_count(environ, "TASKFARM_GROUP_SIZE"),
        )


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0:
        raise UsageError(f"{name}={text!r} is not a number of seconds above 0")
    return value


def _path(environ: Mapping[str, str], name: str) -> str:
    """Return a path as it is seen from anywhere, for the program may change its directory; empty for none."""
    return os.path.abspath(environ[name]) if environ.get(name) else ""


def _flag(environ: Mapping[str, str], name: str, default: bool) -> bool:
    text = environ.get(name)
    if not text:
        return default
    if text not in ("0", "1"):
        raise UsageError(f"{name}={text!r} is neither 0 nor 1")
    return text == "1"


def _level(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name) or ""
    if text and text.upper() not in LOG_LEVELS:
        raise UsageError(f"{name}={text!r} is not one of {', '.join(LOG_LEVELS)}")
    return text.upper()


def _count(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name}={text!r} is not a whole number from 0 up")
    return int(text)


def _rank_tags(text: str) -> dict[int, frozenset[str]]:
    found: dict[int, set[str]] = {}
    for part in filter(None, text.split(";")):
        tag, ranks = parse_tag(part, "TASKFARM_RANK_TAGS")
        for rank in ranks:
            found.setdefault(rank, set()).add(tag)
    return {rank: frozenset(tags) for rank, tags in found.items()}


def parse_tag(text: str, source: str) -> tuple[str, list[int]]:
    """Return the tag and the ranks of ``tag=1,3,5-7``, or raise `UsageError` naming `source`."""
    tag, _, numbers = text.partition("=")
    ranks: list[int] = []
    for part in numbers.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or not tag.strip() or set(tag) & set(",;"):
            raise UsageError(f"{source} {text!r} is not of the form tag=1,3,5-7 (ranks, and ranges of ranks)")
        ranks += range(int(first), int(last or first) + 1)
    return tag.strip(), ranks
