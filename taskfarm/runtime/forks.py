"""Whose process this is: a forked child has its parent's objects, but must not use its parent's connections."""

from __future__ import annotations

import os

from taskfarm.errors import UsageError

__all__ = ["Home"]

_getpid = os.getpid  # hot path: see `taskfarm.fast`


class Home:
    """The process in which something was made.

    Parameters
    ----------
    what : str
        What was made, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._pid = os.getpid()

    @property
    def is_left(self) -> bool:
        """Whether this process is a forked child of that one."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raise `UsageError` in a forked child: its messages would mix with those of its parent."""
        if _getpid() != self._pid:
            raise UsageError(
                f"{self._what} is used in a forked child of the process that made it: only that process can talk to "
                "the workers; have the child return what is to be submitted, or make it in the child only"
            )
