"""What a task may ask for beside its arguments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from taskfarm.errors import UsageError

__all__ = ["OptionChanges", "TaskOptions"]


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

    def __post_init__(self) -> None:
        if not _is_integer(self.ranks) or self.ranks < 1:
            raise UsageError(f"ranks={self.ranks!r}: a task runs on a whole number of ranks, at least 1")
        if self.results not in ("first", "all"):
            raise UsageError(f"results={self.results!r}: give 'first' (the task's rank 0) or 'all' (a list, by rank)")
        hosts = None if self.hosts is None else tuple(dict.fromkeys(_names("hosts", self.hosts)))
        object.__setattr__(self, "hosts", hosts)
        object.__setattr__(self, "ranks_in", None if self.ranks_in is None else _numbers("ranks_in", self.ranks_in))
        object.__setattr__(self, "tags", None if self.tags is None else frozenset(_names("tags", self.tags)))

    @property
    def is_placed(self) -> bool:
        """Whether the task cannot run on just any one worker, and so needs a place of its own."""
        return self.ranks > 1 or self.results == "all" or self.is_restricted

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
