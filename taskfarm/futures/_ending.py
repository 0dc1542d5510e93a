"""How executors end: when they are broken, when they are shut down, and when the process ends."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterable
from typing import Protocol

from taskfarm.futures._maps import MapJob
from taskfarm.futures._tasks import TaskJob
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.crews import catch_up

__all__ = ["end_work", "finish", "note_broken"]

logger = logging.getLogger(__name__)


class Breakable(Protocol):
    """An executor, as far as this module knows it."""

    _broken: BaseException | None


def note_broken(executor: weakref.ref[Breakable], error: BaseException) -> None:
    """Have an executor, if it is still there, refuse all work from now on."""
    found = executor()
    if found is not None and found._broken is None:
        found._broken = error
        logger.critical("an executor can run nothing any more: %s", error)


def finish(tasks: TaskJob, maps: Iterable[MapJob], crew: Crew, deadline: float) -> None:
    """Return when all futures have ended and all items of maps were run, or `deadline` has passed."""
    catch_up(crew, deadline)
    for job in list(maps):
        job.drain(deadline)
    crew.wait(lambda: tasks.is_idle, deadline)


def end_work(tasks: TaskJob, maps: Iterable[MapJob], crew: Crew, deadline: float) -> None:
    """Finish what is under way at the end of the process: all of it, or after an error what has begun."""
    if deadline < math.inf:
        crew.post(tasks.cancel_waiting)
        for job in list(maps):
            job.cancel()
    finish(tasks, maps, crew, deadline)
