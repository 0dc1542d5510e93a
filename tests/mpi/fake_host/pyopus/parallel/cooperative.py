"""A cooperative scheduler as such host packages have it: generators ask for tasks, a loop spawns and hands out results.

It relies on what callers of the layer rely on: exact message classes, result before exit, slots that are freed when
the exit is handed out, live sets of hosts and slots, an empty tuple for a time that is up, and statics on the class.
"""

from collections import deque

from .base import MsgTaskExit, MsgTaskResult


class Failed(Exception):
    """A task did not succeed."""


class Scheduler:
    """Runs jobs (generators that yield ``(function, args)`` or lists of such) to their ends."""

    def __init__(self):
        self.vm = None
        self.n_spawned = 0

    def set_vm(self, vm):
        self.vm = vm

    def run(self, *jobs):
        """Return what the jobs return, in order."""
        waiting, owners, values = deque(), {}, {}
        results = [None] * len(jobs)
        open_requests = {}

        def advance(number, value, first=False):
            try:
                request = next(jobs[number]) if first else jobs[number].send(value)
            except StopIteration as stop:
                results[number] = stop.value
                return
            many = isinstance(request, list)
            requests = request if many else [request]
            open_requests[number] = [many, [None] * len(requests), len(requests)]
            for position, (function, args) in enumerate(requests):
                waiting.append((number, position, function, args))

        for number in range(len(jobs)):
            advance(number, None, first=True)
        while waiting or owners:
            while waiting and (self.vm is not None and self.vm.freeSlots() > 0):
                if not set(self.vm.hosts()).intersection(self.vm.hostsWithFreeSlots()):
                    break
                number, position, function, args = waiting.popleft()
                tasks = self.vm.spawnFunction(function, args=args, kwargs={}, count=1)
                assert len(tasks) == 1
                owners[tasks[0]] = (number, position)
                self.n_spawned += 1
            if not owners:  # no worker at all: run it here
                number, position, function, args = waiting.popleft()
                self._deliver(open_requests, advance, number, position, function(*args))
                continue
            received = self.vm.receiveMessage(-1)
            if received is None or len(received) == 0:
                continue
            sender, message = received
            if sender not in owners:
                continue
            if type(message) is MsgTaskResult:
                values[sender] = message.returnValue if message.success else Failed(str(sender))
            elif type(message) is MsgTaskExit:
                number, position = owners.pop(sender)
                self._deliver(open_requests, advance, number, position, values.pop(sender))
        return results

    @staticmethod
    def _deliver(open_requests, advance, number, position, value):
        entry = open_requests[number]
        entry[1][position] = value
        entry[2] -= 1
        if entry[2] == 0:
            many, seen, _ = open_requests.pop(number)
            advance(number, seen if many else seen[0])


scheduler = Scheduler()
