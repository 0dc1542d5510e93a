"""Code of the user's that results call for, done when the crew's lock is free."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from taskfarm.runtime.runner import run

__all__ = ["Deliveries"]

logger = logging.getLogger(__name__)


class Deliveries:
    """What is to be delivered; any thread may add and run."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._here = threading.local()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def run_here(self) -> bool:
        """Whether this thread is inside of `run`."""
        return getattr(self._here, "running", False)

    def add(self, delivery: Callable[[], None]) -> None:
        """Have `delivery` run later."""
        self._waiting.append(delivery)

    def run(self) -> None:
        """Run what waits, in order; what a delivery raises is logged, but an interrupt is raised."""
        before = self.run_here
        self._here.running = True
        try:
            while self._waiting:
                try:
                    delivery = self._waiting.popleft()
                except IndexError:  # another thread was faster
                    break
                exception = run(delivery).exception
                if exception is None:
                    continue
                if not isinstance(exception, Exception):
                    raise exception
                logger.error("a result could not be delivered", exc_info=exception)
        finally:
            self._here.running = before
