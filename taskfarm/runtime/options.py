"""What the `option` of a frame says, per kind."""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "BatchOption",
    "CallOption",
    "FunctionOption",
    "LogOption",
    "LossCause",
    "Meet",
    "ResultWanted",
    "TeamForget",
    "TeamReply",
    "TraceOption",
]


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


class FunctionOption(IntEnum):
    """What a FUNCTION frame carries."""

    FUNCTION = 0
    INITIALIZER = 1  #: (function, arguments), to be run at once; if it fails, so do all batches of its job


class BatchOption(IntEnum):
    """How a batch is packed, and how it is to be run; bits.

    Without `TASKS` the items are pickled together, and the job's function is applied to each.
    """

    NOTHING = 0
    STAR = 1  #: an item is the function's positional arguments
    TASKS = 2  #: each item is work of its own, (function, args, kwargs), in a pickle of its own
    BUFFERS = 4  #: tasks with raw buffers: the body says how many belong to each
    CHUNKS = 8  #: the items come with a number, so many of them stay together
    ONE_TASK = 16  #: the body is the pickle of a single task
    LONG = 32  #: the batch is expected to take long
    FRESH = 64  #: rank 0 knows that the worker was late
    PIECES = 128  #: pieces of a portion, each with the numbers of its items and of its raw buffers


class TeamReply(IntEnum):
    """How a rank's part in a task of several ranks ended; `UNCOUNTED` is a bit, with one of the others."""

    VALUE = 0  #: the body is the result
    FAILED = 1  #: the body is the failure
    ENDED = 2  #: because another rank has failed
    BROKEN = 3  #: the initializer had failed; the body is that failure
    UNCOUNTED = 8  #: the communicator may hold what was not counted


class Meet(IntEnum):
    """What TEAM_MEET says."""

    READY = 0  #: to the first rank: this one is there
    GO = 1  #: from the first rank: all are there


class TeamForget(IntEnum):
    """What TEAM_FORGET is about."""

    FREE = 0  #: nothing is left in the team's communicator: free it
    TIDY = 1  #: finish what is left, together with the others, and free it [team, how often ranks met; body: run]
    KEEP = 2  #: use it no more [team, -; body: run]
    OBJECT = 3  #: forget an object [object, -]


class LossCause(IntEnum):
    """Why an attempt of an item was lost."""

    DEATH = 0  #: its process died
    TIMEOUT = 1  #: it was killed, since it had had its time
    CANCELLED = 2  #: it was killed, since nobody wants it any more


class TraceOption(IntEnum):
    """What a TRACE frame asks for, and what the reply to it holds."""

    CLOCK = 0  #: the rank's clock
    SPANS = 1  #: all that it has recorded


class LogOption(IntEnum):
    """What a LOG frame holds."""

    TEXT = 0  #: debug text, to be printed
    RECORD = 1  #: a log record
