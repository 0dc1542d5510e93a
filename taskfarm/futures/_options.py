"""What a task may ask for beside its arguments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from taskfarm.errors import UsageError
from taskfarm.scheduling.pacing import RETRIES

__all__ = ["OptionChanges", "TaskOptions", "check_retries", "check_timeout", "exception_classes"]


@dataclass(frozen=True)
class TaskOptions:
    """What tasks of `Executor.with_options` ask for; each value is checked when the object is made.

    Attributes
    ----------
    ranks : int
        How many workers run the task together, each of them the same function with the same arguments; they find each
        other by `taskfarm.task_comm`.
    results : "first" or "all"
        Whether the future's result is what the task's rank 0 returned, or the list of what all its ranks returned.
    hosts : tuple of str or None
        Only on these hosts; given as a name or several.
    ranks_in : frozenset of int or None
        Only on these ranks of the job; given as a rank or several.
    tags : frozenset of str or None
        Only on ranks that were given all of these tags; given as a tag or several.
    timeout_s : float or None
        Seconds after which a running task is killed; needs isolation.
    retries : int
        How often a task is tried again whose attempt was lost with its process, or ended as `retry_on` says.
    retry_on : tuple of exception classes
        Failures that are tried again, too; `TaskTimeoutError` stands for tasks that were killed
        because of `timeout_s`. Given as a class or several.

    Raises
    ------
    UsageError
        If a value cannot be; the message names it.
    """

    ranks: int = 1
    results: Literal["first", "all"] = "first"
    hosts: tuple[str, ...] | None = None
    ranks_in: frozenset[int] | None = None
    tags: frozenset[str] | None = None
    timeout_s: float | None = None
    retries: int = RETRIES
    retry_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if not _is_integer(self.ranks) or self.ranks < 1:
            raise UsageError(f"ranks={self.ranks!r}: a task runs on a whole number of ranks, at least 1")
        if self.results not in ("first", "all"):
            raise UsageError(f"results={self.results!r}: give 'first' (the task's rank 0) or 'all' (a list, by rank)")
        hosts = None if self.hosts is None else tuple(dict.fromkeys(_names("hosts", self.hosts)))
        object.__setattr__(self, "hosts", hosts)
        object.__setattr__(self, "ranks_in", None if self.ranks_in is None else _numbers("ranks_in", self.ranks_in))
        check_timeout(self.timeout_s)
        check_retries(self.retries)
        object.__setattr__(self, "retry_on", exception_classes(self.retry_on))
        object.__setattr__(self, "tags", None if self.tags is None else frozenset(_names("tags", self.tags)))

    @property
    def is_placed(self) -> bool:
        """Whether the task cannot run on just any one worker, and so needs a place of its own."""
        return self.ranks > 1 or self.results == "all" or self.is_restricted

    @property
    def limits(self) -> tuple[float, ...]:
        """The time limit, if there is one."""
        return () if self.timeout_s is None else (self.timeout_s,)

    @property
    def is_restricted(self) -> bool:
        """Whether some workers may not run the task."""
        return (self.hosts, self.ranks_in, self.tags) != (None, None, None)


class OptionChanges(TypedDict, total=False):
    """The keyword arguments of `Executor.with_options`: the fields of `TaskOptions`, as they may be given."""

    ranks: int
    results: Literal["first", "all"]
    hosts: str | Iterable[str] | None
    ranks_in: int | Iterable[int] | None
    tags: str | Iterable[str] | None
    timeout_s: float | None
    retries: int
    retry_on: type[BaseException] | Iterable[type[BaseException]]


def check_timeout(value: float | None) -> None:
    """Raise `UsageError` if `value` is no time limit."""
    if value is not None and not (isinstance(value, (int, float)) and value > 0):
        raise UsageError(f"timeout_s={value!r}: give a number of seconds above 0, or None for no limit")


def check_retries(value: int) -> None:
    """Raise `UsageError` if `value` is no number of retries."""
    if not _is_integer(value) or value < 0:
        raise UsageError(f"retries={value!r}: give a whole number from 0 up")


def exception_classes(value: type[BaseException] | Iterable[type[BaseException]]) -> tuple[type[BaseException], ...]:
    """Return one exception class, or several, as a tuple."""
    classes = (value,) if isinstance(value, type) else tuple(_listed("retry_on", value))
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in classes):
        raise UsageError(f"retry_on={value!r}: give an exception class, or several")
    return classes


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names(option: str, value: str | Iterable[str]) -> list[str]:
    names = [value] if isinstance(value, str) else _listed(option, value)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise UsageError(f"{option}={value!r}: give a name, or several; None for any")
    return names


def _numbers(option: str, value: int | Iterable[int]) -> frozenset[int]:
    numbers = [value] if isinstance(value, int) else _listed(option, value)
    if not numbers or not all(_is_integer(number) and number >= 0 for number in numbers):
        raise UsageError(f"{option}={value!r}: give a rank of the job, or several; None for any")
    return frozenset(numbers)


def _listed(option: str, value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        raise UsageError(f"{option}={value!r}: give one value, or a collection of values") from None
