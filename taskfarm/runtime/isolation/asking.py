"""Asking for task children: when that is possible, and what is said when it is not."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskfarm.errors import UsageError
from taskfarm.runtime.endpoint import Surroundings
from taskfarm.runtime.launching.surroundings import expected_world_size, leave_explaining_to_rank_0, promised_rank
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Transport

if TYPE_CHECKING:
    from taskfarm.runtime.isolation.nursery import Nursery
    from taskfarm.runtime.session import Session
    from taskfarm.transport.world import PeerInfo

__all__ = ["isolate", "isolate_if_possible", "new_worker"]

logger = logging.getLogger(__name__)


def isolate(session: Session) -> None:
    """Have tasks of this session run in task children; before MPI starts, on every rank. May be repeated.

    Raises
    ------
    UsageError
        If it is too late; the message names the cure.
    SystemExit
        The same, on all ranks but one: that one says it for all.
    """
    if session.isolated:
        return
    try:
        _start(session)
    except UsageError:
        leave_explaining_to_rank_0(os.environ, 1)
        raise


def isolate_if_possible(session: Session) -> None:
    """As `isolate`, but only warn where it is too late: the environment asks for it, whatever the program does."""
    try:
        _start(session)
    except UsageError as exc:
        if promised_rank(os.environ) == 0:
            logger.warning("TASKFARM_ISOLATE=1 has no effect: %s", exc)


def _start(session: Session) -> None:
    from taskfarm.runtime.isolation.nursery import Nursery, check_possible  # needs what only isolated sessions need
    from taskfarm.runtime.isolation.task_child import main

    if session.worker is not None or session.controller is not None:
        raise UsageError(
            "isolate: the workers serve already; ask for it where they part, with the first executor or MPI"
        )
    size = expected_world_size(os.environ)
    if size is None or size == 1:  # workers are processes that this one starts, or there are none
        session.isolated = True
        return
    check_possible()
    if promised_rank(os.environ) != 0:
        session.nursery = Nursery(main)
    session.isolated = True


def new_worker(
    transport: Transport, surroundings: Surroundings, nursery: Nursery | None, peers: Sequence[PeerInfo]
) -> Worker:
    """Return the worker of a rank, whose tasks run in children of `nursery` if there is one."""
    if nursery is None:
        return Worker(transport, surroundings)
    from taskfarm.runtime.isolation.isolated_worker import IsolatedWorker

    return IsolatedWorker(transport, surroundings, nursery, peers)
