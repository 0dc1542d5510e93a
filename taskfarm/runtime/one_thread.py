"""Only one thread of a rank talks to MPI, and no forked child does."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import get_ident

from taskfarm.errors import UsageError

__all__ = ["OneThread"]


class OneThread:
    """A session, as far as it knows who may use it.

    Attributes
    ----------
    thread : int
        That opened the session, the only one that may talk to MPI; 0 before, -1 in a forked child, -2 while `share`d.
    """

    def __init__(self) -> None:
        self.thread = 0
        self._forked = False
        self._owner = 0
        self._before_entry: Callable[[], None] | None = None
        os.register_at_fork(after_in_child=self._note_fork)

    @property
    def rank(self) -> int:
        """Rank of this process."""
        raise NotImplementedError

    def _note_fork(self) -> None:
        self._forked = True
        self.thread = -1

    def check_caller(self, what: str) -> None:
        """Raise `UsageError` in a second thread and in a forked child: only one thread of a rank talks to MPI."""
        if self._forked:
            raise UsageError(f"{what} in a forked child of rank {self.rank}: only the rank itself can do that")
        thread = self._owner or self.thread
        if get_ident() != thread and thread:
            raise UsageError(
                f"{what} in another thread than the one that opened the session: one thread per process talks to MPI; "
                "hand the work to that thread (for example through queue.Queue)"
            )
        if self._before_entry is not None:
            self._before_entry()

    def share(self, before_entry: Callable[[], None] | None) -> None:
        """Have `before_entry` called at each entry of a face, as an executor uses the workers, too; None ends it."""
        owner = self._owner or self.thread
        self._owner, self.thread = (owner, -2) if before_entry else (0, owner)
        self._before_entry = before_entry
