"""A program in the style of the host packages of the spawner layer: it imports only the host's names.

An evolutionary search over a quadratic function, several searches at once on a cooperative scheduler; plus what such
programs do by hand with messages and slots. Prints ``host ok`` and the number of slots.
"""

import math
import os
import random
import sys

import pyopus.optimizer
from pyopus.parallel.base import MsgTaskExit, MsgTaskResult
from pyopus.parallel.cooperative import Failed, scheduler
from pyopus.parallel.mpi import MPI


def cost(point):
    return sum((x - k) ** 2 for k, x in enumerate(point))


def broken(point):
    raise ValueError(point)


def search(seed, n_points=8, n_rounds=12):
    rng = random.Random(seed)
    best, spread = [5.0] * 3, 3.0
    best_cost = math.inf
    for _ in range(n_rounds):
        points = [[x + spread * rng.uniform(-1, 1) for x in best] for _ in range(n_points)]
        costs = yield [(cost, (p,)) for p in points]
        k = min(range(n_points), key=costs.__getitem__)
        if costs[k] < best_cost:
            best, best_cost = points[k], costs[k]
        spread *= 0.8
    failed = yield (broken, (best,)) if MPI.slots() > 1 else (cost, (best,))
    assert isinstance(failed, Failed) or MPI.slots() == 1
    return best_cost


def serve(n):
    """A task that answers messages until it is told to stop."""
    vm = MPI()
    seen = 0
    while True:
        sender, message = vm.receiveMessage()
        assert sender == MPI.parentTaskID()
        if message == "stop":
            return seen, os.getpid()
        vm.sendMessage(sender, (n, message))
        seen += 1


def talk(vm):
    initial = vm.freeSlots()
    tasks = vm.spawnFunction(serve, args=(7,), count=initial)
    assert len(tasks) == initial and vm.freeSlots() == 0
    for k in range(3):
        for task in tasks:
            assert vm.sendMessage(task, k)
        answers = dict(vm.receiveMessage() for _ in tasks)
        assert answers == dict.fromkeys(tasks, (7, k))
    for task in tasks:
        vm.sendMessage(task, "stop")
    results = {}
    while vm.freeSlots() != initial:
        received = vm.receiveMessage(1.0)
        if not received:
            continue
        sender, message = received
        if type(message) is MsgTaskResult:
            assert message.success
            results[sender] = message.returnValue
        else:
            assert type(message) is MsgTaskExit
    assert pyopus.optimizer.scheduler is scheduler
    assert {task: n for task, (n, _) in results.items()} == dict.fromkeys(tasks, 3)
    assert len({pid for _, pid in results.values()}) == initial


if __name__ == "__main__":
    vm = MPI(debug=0)
    print(vm.formatSpawnerConfig())
    scheduler.set_vm(vm)
    costs = scheduler.run(search(1), search(2), search(3))
    assert all(c < 1.0 for c in costs), costs
    if MPI.slots() > 1:
        talk(vm)
        assert scheduler.n_spawned == 3 * (8 * 12 + 1)
    print("host ok", MPI.slots(), sys.argv[1:])
    if "finalize" in sys.argv:
        MPI.finalize()
