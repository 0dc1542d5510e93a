"""Rank 0: spawns tasks, hands out what they send, and ends the session.

The controller has no thread of its own. Every entry into the library takes in what has arrived; between entries the
transport's memory holds it. Collective calls are the business of its `Caller`. Tasks and calls share the workers by
one rule: a call is sent only when no task is running, so a collective never meets a task.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from taskfarm.errors import ProtocolError, UsageError, WorkerLostError
from taskfarm.fast import new_tuple
from taskfarm.runtime.caller import Caller
from taskfarm.runtime.endpoint import TASK_ENDED, Endpoint, Surroundings
from taskfarm.runtime.options import LogOption, ResultWanted
from taskfarm.runtime.runner import encode_failure, failure_of
from taskfarm.scheduling.farm import Assignment, Farm
from taskfarm.scheduling.mailbox import Letter
from taskfarm.scheduling.quiescence import Inquiry
from taskfarm.transport.base import Transport
from taskfarm.wire.codec import Packed
from taskfarm.wire.frames import Buffer, Frame, Kind

if TYPE_CHECKING:
    from taskfarm.runtime.executor.crew import Crew

__all__ = ["Controller"]

logger = logging.getLogger(__name__)

QUIT_S = 0.5  # an idle worker leaves within milliseconds
INQUIRY_PAUSE_S = 0.02  # between two rounds of questions while tasks are drained
_SPAWN = Kind.SPAWN  # hot path: see `taskfarm.fast`
_RESULT_WANTED = ResultWanted.MESSAGE
WARN_AFTER_S = 10.0  # first word about tasks or calls that keep rank 0 waiting


class Controller(Endpoint):
    """The session on rank 0.

    Parameters
    ----------
    transport : Transport
        Moves the frames.
    hosts : mapping of int to str
        Host of each worker rank.
    surroundings : Surroundings
        The rest of the rank.

    Attributes
    ----------
    hosts : dict of int to str
        Host of each worker rank.
    tags : dict of int to frozenset of str
        The tags that worker ranks were given.
    before_end : callable or None
        Called before the session ends, while its workers still serve.
    loss_listeners : list of callable
        Called with the rank of a worker that died, and how.
    lost : dict of int to str
        How the workers died that did.
    crew : Crew or None
        Runs the items of executors, where there are any.
    on_record : callable
        Takes a worker's log record; called with its rank and the pickled record.
    """

    def __init__(self, transport: Transport, hosts: Mapping[int, str], surroundings: Surroundings) -> None:
        super().__init__(transport, surroundings, 0)
        self.hosts = dict(hosts)
        self.tags: dict[int, frozenset[str]] = {}
        self.farm = Farm(hosts, [surroundings.host])
        self.caller = self._new_caller(sorted(hosts))
        self._workers = sorted(hosts)
        self._inquiry = Inquiry(range(transport.size))
        self._byes: set[int] = set()
        self.before_end: Callable[[], None] | None = None
        self.loss_listeners: list[Callable[[int, str], None]] = []
        self.lost: dict[int, str] = {}
        self._n_told: dict[int, int] = {}  # by worker: of how many losses it knows
        self._wanted: dict[int, int] = {}  # by task number, where workers may be lost: what the spawner wants of it
        self.crew: Crew | None = None
        self.on_record: Callable[[int, Buffer], None] = _drop_record
        self._handlers.update(
            {
                Kind.DONE: self.on_done,
                Kind.CALL_FAILED: self.caller.on_failed,
                Kind.CALL_VALUE: self.caller.on_value,
                Kind.CALLS_DONE: self.caller.on_done,
                Kind.STATUS: self.on_status,
                Kind.LOG: self.on_log,
                Kind.BYE: self.on_bye,
                Kind.LOST: self.on_lost,
            }
        )

    def _new_caller(self, workers: Sequence[int]) -> Caller:
        return Caller(self, workers, self._surroundings, self._drain_for_call)

    @property
    def done_call(self) -> int:
        """Number of the last call that rank 0 has left."""
        return self.caller.done

    # Frames

    def on_done(self, source: int, frame: Frame) -> None:
        """Turn the end of a task, and its result if wanted, into letters."""
        self.farm.on_ended(frame.a, source)
        if self._wanted:
            self._wanted.pop(frame.a, None)
        if frame.option & _RESULT_WANTED:
            self.mailbox.put(new_tuple(Letter, (source, frame.a, 0, frame)))
        self.mailbox.put(new_tuple(Letter, (source, frame.a, 0, TASK_ENDED)))

    def on_status(self, source: int, frame: Frame) -> None:
        """Take in what a rank waits for."""
        self._inquiry.on_answer(source, frame.a, self.read_status(frame.body))

    def on_log(self, source: int, frame: Frame) -> None:
        """Print a worker's debug text, or log its record."""
        if frame.option == LogOption.RECORD:
            self.on_record(source, frame.body)
            return
        print(bytes(frame.body).decode(errors="replace"), flush=True)

    def on_bye(self, source: int, frame: Frame) -> None:
        """Note that a worker has left its loop."""
        self._byes.add(source)

    def on_lost(self, source: int, frame: Frame) -> None:
        """Go on without a worker that died: its task has failed, its slot is gone, the others are told."""
        if not self.may_lose:  # without supervisors the transport makes no such frame
            raise ProtocolError("no rank can be lost in this job")
        if frame.a != source:
            raise ProtocolError(f"rank {source} cannot tell of the death of rank {frame.a}")
        if source in self.lost:
            return
        how = bytes(frame.body).decode(errors="replace")
        self.lost[source] = how
        running = [f"{source}:{number}" for rank, number in self.farm.running() if rank == source]
        text = "rank 0: rank %d %s; going on without it%s"
        logger.error(text, source, how, _lost_tasks(running), extra={"event": "lost"})
        self._workers.remove(source)
        self.count_out([source])
        self.caller.on_lost(source, how)
        self.arrays.on_lost(source)
        for _, number in self.farm.on_worker_lost(source):
            self._report_lost_task(source, number, how)
        for rank, _ in self.farm.running():
            self.tell_losses(rank)
        for listener in self.loss_listeners:
            listener(source, how)

    def tell_losses(self, rank: int) -> None:
        """Tell a worker who died, as far as it does not know: its task must not send anything there."""
        for lost, how in list(self.lost.items())[self._n_told.get(rank, 0) :]:
            self.transport.send(rank, Frame(Kind.LOST, lost, body=how.encode()))
        self._n_told[rank] = len(self.lost)

    def _report_lost_task(self, rank: int, number: int, how: str) -> None:
        """Hand out the end of a task as its worker would have done, had the task failed."""
        wanted = self._wanted.pop(number, ResultWanted.MESSAGE)
        if wanted & _RESULT_WANTED:
            text = f"task {rank}:{number} is lost, since rank {rank} {how}"
            failure = failure_of(WorkerLostError(text, [rank]), rank, self.farm.host_of(rank))
            option = wanted | ResultWanted.FAILED
            self.mailbox.put(Letter(rank, number, 0, Frame(Kind.DONE, number, 1, option, encode_failure(failure))))
        self.mailbox.put(Letter(rank, number, 0, TASK_ENDED))

    # Tasks

    def spawn(self, packed: Packed, count: int | None, hosts: Collection[str] | None, wanted: int) -> list[Assignment]:
        """Run `packed` work as a task in up to `count` free slots; its raw buffers are sent when this returns."""
        if self.current_call:
            raise UsageError(f"spawnFunction inside call {self.current_call}: the workers are busy with the call")
        self.caller.before_task()
        assigned = self.farm.assign(count, hosts)
        if self.may_lose:
            self._wanted.update((number, wanted) for _, number in assigned)
        body, buffers = packed
        for rank, number in assigned:
            if self.lost:
                self.tell_losses(rank)
            self.transport.send(rank, new_tuple(Frame, (_SPAWN, number, 1, wanted, body, buffers)), borrowed=True)
        if buffers:
            self.transport.complete_sends(math.inf, self.handle)
        return assigned

    def spawn_group(
        self,
        pack: Callable[[int, Sequence[int]], Packed],
        count: int,
        hosts: Collection[str] | None,
        wanted: Callable[[int], int],
    ) -> list[Assignment]:
        """Run work as tasks in exactly `count` free slots, or not at all.

        Parameters
        ----------
        pack : callable
            ``pack(number, ranks)`` returns the work, given the number of the first task and the ranks.
        count, hosts
            See `Farm.assign_group`.
        wanted : callable
            What is wanted of the result of the task with this rank in the group.
        """
        if self.current_call:
            raise UsageError(f"spawnGroup inside call {self.current_call}: the workers are busy with the call")
        self.caller.before_task()
        assigned = self.farm.assign_group(count, hosts)
        if assigned:
            body, buffers = pack(assigned[0].number, [rank for rank, _ in assigned])
        for index, (rank, number) in enumerate(assigned):
            frame = Frame(_SPAWN, number, 1, wanted(index), body, buffers)
            self.transport.send(rank, frame, borrowed=True)
        self.transport.complete_sends(math.inf, self.handle)
        return assigned

    def take_letter(self, deadline: float, rank: int | None = None) -> Letter | None:
        """Hand out the next letter; handing out a task's end frees its slot."""
        if self.current_call:
            raise UsageError(f"receiveMessage inside call {self.current_call}: no task runs while the call does")
        letter = self.receive_letter(deadline, rank)
        if letter is not None and letter.content is TASK_ENDED:
            self.farm.on_handed_out(letter.number)
        return letter

    def is_reachable(self, rank: int, number: int) -> bool:
        """Tell whether the main program or a running task is meant."""
        return self.farm.is_running(number, rank) or (rank == 0 and number == 0)

    def may_send(self, rank: int | None, number: int | None) -> bool:
        """Tell whether a task that `rank` and `number` allow (None: any) is running."""
        if rank is not None and number is not None:
            return self.farm.is_running(number, rank)
        return any(rank in (None, slot.rank) for slot in self.farm.running())

    def drain_tasks(self, deadline: float, what: str, *, at_end: bool = False) -> list[tuple[int, int]]:
        """Serve messages until every task has reported its end.

        With `at_end`, tasks that wait for another one only for some time count as stuck too.

        Returns
        -------
        list of tuple of int
            (rank, number) of the tasks that are still running: all of them wait for others who will not come,
            or `deadline` has passed.
        """
        if at_end and self.before_end is not None:
            self.before_end()
        started = time.monotonic()
        warned = False
        asked_at = -math.inf
        inquiry = self._inquiry = Inquiry([0, *self._workers], self._inquiry.round)
        n_lost = len(self.lost)
        while self.farm.n_running:
            now = time.monotonic()
            if len(self.lost) != n_lost:  # who died does not answer
                n_lost = len(self.lost)
                inquiry = self._inquiry = Inquiry([0, *self._workers], inquiry.round)
                asked_at = -math.inf
            running = [(slot.rank, slot.number) for slot in self.farm.running()]
            if now >= deadline:
                return running
            if not warned and now - started > WARN_AFTER_S:
                warned = True
                logger.warning("rank 0: %s waits for running tasks %s", what, _names(running))
            if (inquiry.complete or asked_at < started) and now - asked_at >= INQUIRY_PAUSE_S:
                if stuck := inquiry.stuck_tasks(running, or_waiting=at_end):
                    return stuck
                asked_at = now
                self._ask_all()
            item = self.transport.receive(min(deadline, now + INQUIRY_PAUSE_S))
            if item is not None:
                self.handle(*item)
        return []

    def _drain_for_call(self) -> None:
        if self.farm.n_running and (stuck := self.drain_tasks(math.inf, "call")):
            raise UsageError(
                f"call: {_names(stuck)} wait in receiveMessage and nobody will send them anything "
                "(or in sendArray or receiveArray, and nobody does the other half); "
                "send what they wait for, or let them end, before the collective call"
            )

    def _ask_all(self) -> None:
        round_ = self._inquiry.start_round()
        self._inquiry.on_answer(0, round_, self.status())
        for rank in self._workers:
            self.transport.send(rank, Frame(Kind.QUERY, round_))

    # The end

    def count_out(self, ranks: Collection[int]) -> None:
        """Wait no longer for the good-bye of workers that are gone."""
        self._byes.update(ranks)

    def set_worker_debug(self, level: int) -> None:
        """Set the debug level of all workers."""
        for rank in self._workers:
            self.transport.send(rank, Frame(Kind.DEBUG, level))

    def quit_workers(self, deadline: float) -> list[int]:
        """Tell every worker to leave its loop; return the ranks that have not by `deadline`."""
        self.caller.settle(deadline)  # calls on their way through the tree come before the end
        logger.info("rank 0: sends %d workers away", len(self._workers))
        for rank in self._workers:
            self.transport.send(rank, Frame(Kind.QUIT, bool(self.lost)))
        deadline = max(deadline, time.monotonic() + QUIT_S)  # even if the calls have used up the time
        self.serve_until(lambda: self._byes.issuperset(self._workers), deadline)
        return [rank for rank in self._workers if rank not in self._byes]

    def leftover_objects(self) -> list[int]:
        """Return the ids of managed objects that are still owned; those of dead handles are forgotten."""
        self._registry.forget_dead()
        return sorted(self._registry.objects)


def _lost_tasks(names: Sequence[str]) -> str:
    return f"; it was running task {', '.join(names)}" if names else ""


def _drop_record(source: int, body: Buffer) -> None: ...


def _names(tasks: Sequence[tuple[int, int]]) -> str:
    plural = "task" if len(tasks) == 1 else "tasks"
    return f"{plural} {', '.join(f'{rank}:{number}' for rank, number in tasks)}"
