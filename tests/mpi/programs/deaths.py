"""Workers die, one after the other, and the program goes on; run on 6 ranks with supervisors."""

import os
import signal
import sys
import time

from tf_checks import holds, raises

import taskfarm
from taskfarm import Executor, objects, vm
from taskfarm.vm import MPI

HEARTBEAT_S = float(os.environ["TASKFARM_HEARTBEAT_S"])


def square(x):
    time.sleep(0.002)
    return x * x


def pid_of_worker(_):
    time.sleep(0.05)
    return os.getpid()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def long_and_healthy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
    return os.getpid()


spawner = MPI()
holds(objects.call(lambda: objects.rank) == 0, "a call while all live")

# vm: the task of a rank that dies has failed, and its slot is gone
all_slots = MPI.slots()
[task] = spawner.spawnFunction(die, count=1)
sender, message = MPI.receiveMessage()
holds(isinstance(message, vm.MsgTaskResult) and not message.success, "a lost task has failed")
holds(sender == task and message.returnValue is None, "it is told like any failed task")
sender, message = MPI.receiveMessage()
holds(isinstance(message, vm.MsgTaskExit) and sender == task, "then it has exited")
holds(MPI.slots() == all_slots - 1 and MPI.freeSlots() == all_slots - 2, "its slot is gone")
holds(task.rank not in MPI.freeSlotsSet() and task.rank not in MPI.vmStatus["slots"], "from all tables")
holds(f"{task.rank}" not in MPI.formatSpawnerConfig().partition("free slots:")[2], "and from the text")
tasks = spawner.spawnFunction(square, args=[3])
holds(len(tasks) == all_slots - 2, "the others work")
for _ in tasks:
    MPI.receiveMessage()
    MPI.receiveMessage()
holds(not MPI.sendMessage(task, "hello"), "nothing is sent to the dead")

# the executor: killed while working, and stopped while working
with Executor() as executor:
    pids = set(executor.map(pid_of_worker, range(40)))
    holds(len(pids) == all_slots - 2, "four workers")
    futures = [executor.submit(square, x) for x in range(300)]
    results = executor.map(square, range(300))
    first, second, *others = pids
    next(results)
    began = time.monotonic()
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGSTOP)
    holds(list(results) == [x * x for x in range(1, 300)], "all results of the map")
    holds([future.result() for future in futures] == [x * x for x in range(300)], "all results of submit")
    took_s = time.monotonic() - began
    holds(took_s < HEARTBEAT_S + 20, f"within {took_s:.1f} s")
    alive = {executor.submit(long_and_healthy, 2.5 * HEARTBEAT_S).result()}
    holds(alive <= set(others), "a long task is not taken for a dead one")
    holds(set(executor.map(pid_of_worker, range(20))) <= set(others), "only the living work")

# objects: no collective call without all ranks
with raises(taskfarm.WorkerLostError, match="needs all ranks"):
    objects.call(lambda: objects.rank)
holds(MPI.slots() == all_slots - 3, "three have died")
print("THE END", flush=True)
sys.exit(7)
