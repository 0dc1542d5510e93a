"""Beginnings of the programs in the tests of faults."""

from __future__ import annotations

import pytest

OBJECTS = """
    import os, signal, sys, time, threading
    import numpy as np
    from taskfarm import objects
    from taskfarm.errors import RemoteError, UsageError, TaskfarmError
    objects.launch_event_loop()
    if not objects.rank0:
        sys.exit(0)
    def note(name, text="x"):
        path = os.environ["TF_LOG_DIR"] + "/" + name
        with open(path + "~", "w") as file:
            file.write(str(text))
        os.rename(path + "~", path)
    pids = objects.call_all(os.getpid)
"""
VM = """
    import os, signal, sys, time, threading
    import numpy as np
    from taskfarm.vm import MPI, MPITaskID, MsgTaskExit, MsgTaskResult
    from taskfarm.errors import UsageError, TaskfarmError
    vm = MPI()
    initial = vm.freeSlots()
    def note(name, text="x"):
        path = os.environ["TF_LOG_DIR"] + "/" + name
        with open(path + "~", "w") as file:
            file.write(str(text))
        os.rename(path + "~", path)
    def drain():
        seen = []
        while vm.freeSlots() != initial:
            seen.append(vm.receiveMessage(10))
        return seen
    pids = [MPI.vmStatus["slots"][rank]["pid"] for rank in range(MPI.slots())]
"""
FACES = pytest.mark.parametrize("face", [OBJECTS, VM], ids=["objects", "vm"])
