"""Trying again what raises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from taskfarm.errors import TaskTimeoutError

__all__ = ["Retried", "with_retries"]

logger = logging.getLogger(__name__)


class Retried:
    """A function that is called again if it raises certain exceptions.

    Parameters
    ----------
    fn : callable
        The function. It should leave its arguments as they were when it raises.
    retries : int
        How often it is called again.
    kinds : tuple of exception classes
        What it may raise.
    """

    def __init__(self, fn: Callable[..., Any], retries: int, kinds: tuple[type[BaseException], ...]) -> None:
        self._fn = fn
        self._retries = retries
        self._kinds = kinds

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        for attempt in range(1, self._retries + 1):
            try:
                return self._fn(*args, **kwargs)
            except self._kinds as exc:
                logger.warning("attempt %d raised %r and is repeated", attempt, exc, extra={"event": "retry"})
        return self._fn(*args, **kwargs)


def with_retries(fn: Callable[..., Any], retries: int, kinds: tuple[type[BaseException], ...]) -> Callable[..., Any]:
    """Return `fn` as one that is tried again, if there is anything for which it would be."""
    raised = tuple(kind for kind in kinds if kind is not TaskTimeoutError)
    return Retried(fn, retries, raised) if retries and raised else fn
