"""What the `option` of a frame says, per kind."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CallOption", "ResultWanted"]


class CallOption(IntEnum):
    """What rank 0 wants to know of a call; bits.

    Not an `IntFlag`: each ``&`` with one of those takes 0.7 us, with a plain integer 0.02 us.
    """

    NOTHING = 0
    REPORT = 1  #: a report as soon as the call is done
    VALUE = 2  #: the return value
    PRINT = 4  #: failures are printed on their rank and not reported


class ResultWanted(IntEnum):
    """What the spawner wants of a task's result, and in the reply whether there is one; bits."""

    NOTHING = 0
    MESSAGE = 1  #: a result message
    VALUE = 2  #: with the value in it
    FAILED = 4  #: the task failed; the body is the failure
