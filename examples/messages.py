"""Large arrays between tasks: every worker passes 50 MB to the next one in a ring, all at the same time.

A blocking send would deadlock here: every task sends before anybody receives. `sendMessage` copies large arrays and
returns; MPI moves them while the tasks wait in `receiveMessage`.

    taskfarm run -n 4 examples/messages.py
"""

import argparse
import sys
import time

import numpy as np

from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult


def pass_on(size_mb, n_rounds):
    """Send my array to the next task and receive one from the task before me, `n_rounds` times.

    Returns
    -------
    seconds : float
        From the start signal until the last array was here.
    first, last : float
        First and last entry of the array that I hold at the end: its maker's rank plus one per journey.
    """
    array = np.full(int(size_mb * 1e6) // 8, float(MPI.taskID().rank))
    _, following = MPI.receiveMessage(fromDestination=0)  # the spawner says who is next: the start signal
    start = time.perf_counter()
    for _ in range(n_rounds):
        MPI.sendMessage(following, array)
        _, array = MPI.receiveMessage()  # writable, and ours: it landed in fresh memory
        array += 1.0
    return time.perf_counter() - start, float(array[0]), float(array[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=float, default=50.0, metavar="MB", help="of an array (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="default: once around the ring")
    options = parser.parse_args()

    vm = MPI()
    tasks = []
    if vm.slots() > 1:
        n_rounds = options.rounds or vm.slots() - 1
        tasks = vm.spawnFunction(pass_on, args=(options.size, n_rounds))
    if not tasks:
        parser.exit(2, "messages: there are no workers; start it with: taskfarm run -n 4 ...\n")
    ring = dict(zip(tasks, tasks[1:] + tasks[:1], strict=True))
    for task, following in ring.items():
        vm.sendMessage(task, following)

    outcomes = {}
    running = set(tasks)
    while running:
        task, message = vm.receiveMessage()
        if type(message) is MsgTaskResult:
            if not message.success:
                raise RuntimeError(f"task {task} failed\n{message.traceback}")
            outcomes[task] = message.returnValue
        elif type(message) is MsgTaskExit:
            running.discard(task)
    vm.finalize()

    moved_mb = options.size * n_rounds * len(tasks)
    seconds = max(outcome[0] for outcome in outcomes.values())
    n_right = 0
    for position, task in enumerate(tasks):
        maker = tasks[(position - n_rounds) % len(tasks)].rank
        n_right += outcomes[task][1:] == (maker + n_rounds, maker + n_rounds)
    print(f"{len(tasks)} tasks in a ring, {n_rounds} rounds, arrays of {options.size:g} MB")
    print(f"moved {moved_mb:g} MB in {seconds:.2f} s: {moved_mb / seconds:.0f} MB/s over all tasks")
    print(f"arrays that arrived as expected: {n_right} of {len(tasks)}")
    return 0 if n_right == len(tasks) else 1


if __name__ == "__main__":
    MPI.spawnerBarrier()  # the workers stay in here until `finalize`
    sys.exit(main())
