"""The exceptions of taskfarm: one root, and the class says who is to blame.

``UsageError`` (the caller), ``RemoteError`` (the user's function, on another rank), ``WorkerLostError`` (a process
or machine), ``ProtocolError`` (a peer's message), ``InternalError`` (taskfarm itself).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "InternalError",
    "JournalError",
    "ProtocolError",
    "RankFailure",
    "RemoteError",
    "TaskTimeoutError",
    "TaskfarmError",
    "UsageError",
    "WorkerLostError",
]


class TaskfarmError(Exception):
    """Root of all errors that taskfarm raises."""


class UsageError(TaskfarmError):
    """The caller asked for something that cannot be done; the message names the argument and the cure."""


class ProtocolError(TaskfarmError):
    """A message or an event that does not fit the protocol; nothing was changed by it."""


class InternalError(TaskfarmError):
    """A fault of taskfarm itself; please report it."""


@dataclass(frozen=True)
class RankFailure:
    """What is known of one failed execution of the user's function.

    Attributes
    ----------
    rank : int
        Rank that failed.
    host : str
        Name of that rank's host.
    type_name : str
        Qualified name of the exception's class.
    message : str
        ``str()`` of the exception.
    traceback : str
        The traceback as text, formatted on the rank that failed.
    place : str
        ``file:line in function`` of the innermost frame of the user's code, or ``""``.
    exception : BaseException or None
        The exception itself where it travels, else None.
    """

    rank: int
    host: str
    type_name: str
    message: str
    traceback: str
    place: str = ""
    exception: BaseException | None = None

    def headline(self) -> str:
        """Return one line: rank, host, exception and place."""
        where = f" at {self.place}" if self.place else ""
        return f"rank {self.rank} (host {self.host}): {self.type_name}: {self.message}{where}"


class RemoteError(TaskfarmError):
    """The user's function failed on one or more other ranks.

    The exception of the first failed rank is the ``__cause__`` where it could travel. The remote tracebacks are part
    of the message.

    Attributes
    ----------
    failures : tuple of RankFailure
        One entry per failure, in the order of the calls, then of the ranks; never empty.
    what : str
        What was run, e.g. ``call 7 (mymodule.f)``.
    rank, host, remote_traceback, exception
        Those of the first failure.
    """

    def __init__(self, what: str, failures: Sequence[RankFailure]) -> None:
        self.what = what
        self.failures: tuple[RankFailure, ...] = tuple(failures)
        first = self.failures[0]
        self.rank = first.rank
        self.host = first.host
        self.remote_traceback = first.traceback
        self.exception = first.exception
        lines = [f"{what} failed on {_ranks(self.failures)}"]
        for failure in self.failures:
            lines.append(failure.headline())
            lines.extend("  | " + line for line in failure.traceback.rstrip().splitlines())
        super().__init__("\n".join(lines))
        self.__cause__ = first.exception

    def __reduce__(self) -> tuple[type[RemoteError], tuple[str, tuple[RankFailure, ...]]]:
        return type(self), (self.what, self.failures)


def _ranks(failures: Sequence[RankFailure]) -> str:
    numbers = sorted({failure.rank for failure in failures})
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


class JournalError(TaskfarmError):
    """A journal cannot be used: it is damaged, or something else, or the disk is full, or a function has changed."""


class TaskTimeoutError(TaskfarmError, TimeoutError):
    """A task had not ended within its ``timeout_s``; its process was killed."""


class WorkerLostError(TaskfarmError):
    """Ranks that should be there are not, or a task was lost with the process that ran it, as often as it was tried.

    Attributes
    ----------
    ranks : tuple of int
        The ranks that are missing, or on which the task was lost.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.ranks = tuple(ranks)

    def __reduce__(self) -> tuple[type[WorkerLostError], tuple[str, tuple[int, ...]]]:
        return type(self), (self.message, self.ranks)
