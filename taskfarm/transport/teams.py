"""The communicators of teams: the ranks that run a task together.

Making one takes a message between its ranks, so it is kept for the next task of the same team. That is right as long
as nothing is left in it: no message that nobody received, no operation that a rank has not finished. After a failure,
the ranks tidy up together: those that are behind come to the barriers that others wait in, then all tell each other how
many messages they have sent, and receive them. Only then can it be freed, for MPI gives its context to a later
communicator. What cannot be tidied up (a C library's messages are not counted) is never freed; libraries have some two
thousand contexts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from taskfarm.transport.guard import Guard
from taskfarm.transport.guarded import guarded

__all__ = ["Team", "alone", "open_team"]

logger = logging.getLogger(__name__)

TAG = 64  # of `Create_group`: no message of the parent's has it
TIDY_S = 5.0  # the other ranks have been told the same; if one is gone, nobody waits longer
PAUSE_S = 50e-6


class Team:
    """One rank's side of a communicator over the ranks of a team.

    Parameters
    ----------
    comm : MPI.Intracomm
        Owned.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self.guard: Guard | None = None

    @property
    def rank(self) -> int:
        """Rank of this process in the team."""
        return self._comm.rank

    def begin(self, look: Callable[[], None]) -> tuple[Guard, Any]:
        """Begin a task; return its guard, and the communicator for the user."""
        self.guard = Guard(look)
        return self.guard, guarded(self._comm, self.guard, is_own=True)

    def free(self) -> None:
        """Free the communicator, in which nothing is left."""
        self._comm.Free()

    def tidy(self, n_steps: int) -> None:
        """Finish what a failed task has left, together with the other ranks, and free the communicator.

        Parameters
        ----------
        n_steps : int
            Of the rank that has come farthest; see `Guard.n_steps`.
        """
        guard = self.guard
        if guard is None:
            return
        deadline = time.monotonic() + TIDY_S
        comm = self._comm
        try:
            rest = guard.catch_up(comm, n_steps)
        except Exception:  # it would have failed here, too; the others have begun it
            logger.warning("a failed task has left an operation that cannot be begun", exc_info=True)
            self.keep_for_ever()
            return
        sent = np.array([guard.n_sent_to.get(rank, 0) for rank in range(comm.size)])
        expected = np.zeros_like(sent)
        rest.append(comm.Ialltoall(sent, expected))
        if not _wait(lambda: MPI.Request.Testall(rest), deadline):
            logger.warning("a failed task has left its communicator in a state that cannot be tidied up")
            _KEPT.append((comm, guard, rest, sent, expected))
            return

        def is_empty() -> bool:
            status = MPI.Status()
            while guard.n_received < expected.sum():
                message = comm.Improbe(status=status)
                if message is None:
                    return False
                message.Recv([bytearray(status.Get_count(MPI.BYTE)), MPI.BYTE])
                guard.n_received += 1
            return MPI.Request.Testall(guard.unfinished)

        if _wait(is_empty, deadline):
            comm.Free()
        else:
            _KEPT.append((comm, guard))

    def keep_for_ever(self) -> None:
        """Use the communicator no more, and never free it."""
        _KEPT.append((self._comm, self.guard))


_KEPT: list[tuple[Any, ...]] = []  # what MPI may still refer to


def _wait(condition: Callable[[], bool], deadline: float) -> bool:
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE_S)
    return True


def open_team(parent: MPI.Intracomm, ranks: Sequence[int]) -> Team:
    """Return the communicator over `ranks` of `parent`; collective over these, whatever the others do."""
    group = parent.Get_group()
    chosen = group.Incl(list(ranks))
    comm = parent.Create_group(chosen, TAG)
    chosen.Free()
    group.Free()
    return Team(comm)


def alone() -> Team:
    """Return a team of this rank alone."""
    return Team(MPI.Intracomm.Dup(MPI.COMM_SELF))
