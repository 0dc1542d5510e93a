"""What the `option` of a frame says, per kind."""

from __future__ import annotations

from enum import IntFlag

__all__ = ["CallOption", "ResultWanted"]


class CallOption(IntFlag):
    """What rank 0 wants to know of a call."""

    NOTHING = 0
    REPORT = 1  #: a report as soon as the call is done
    VALUE = 2  #: the return value
    PRINT = 4  #: failures are printed on their rank and not reported


class ResultWanted(IntFlag):
    """What the spawner wants of a task's result, and in the reply whether there is one."""

    NOTHING = 0
    MESSAGE = 1  #: a result message
    VALUE = 2  #: with the value in it
    FAILED = 4  #: the task failed; the body is the failure
