"""Message classes of the host, as its other modules import them. Importing this parts nothing."""


class Msg:
    """A message."""


class MsgTaskExit(Msg):
    """A task has ended."""

    def __init__(self, taskID):
        self.taskID = taskID


class MsgTaskResult(Msg):
    """A task has returned."""

    def __init__(self, success, returnValue):
        self.success = success
        self.returnValue = returnValue
