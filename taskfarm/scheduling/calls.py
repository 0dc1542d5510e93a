"""Collective calls as rank 0 sees them: numbers, outcomes, failures, object ids.

Theory of operation. Rank 0 numbers its calls and sends them without waiting. Each worker works them off in order and
says so now and then (`on_done_up_to`); a failure is told at once (`on_failed`), on the same ordered path, so that a
worker's report "done up to k" comes after all its failures up to k. A call is

* RUNNING while rank 0 runs its own part,
* RETURNED or RAISED when rank 0 is through,
* SETTLED when every rank is through; only then is it known whether the outcomes differ.

Failures of calls that rank 0 returned from are *pending* until they are raised. Those of a call in which rank 0 raised
belong to that exception and are never raised by themselves.

Ids: rank 0's counter of managed objects goes out with every call, so no rank can fall out of step. An id that some
rank did not create is an orphan and must be removed everywhere: rank 0 knows its own counter after each call, and a
failed rank tells its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType

from taskfarm.errors import ProtocolError, RankFailure
from taskfarm.scheduling.machine import Fact, Table, advance

__all__ = ["CALL_TABLE", "MAX_AHEAD", "REPORT_EVERY", "CallBook", "CallEvent", "CallRecord", "CallState"]

REPORT_EVERY = 32  # calls between two "done up to" reports of a worker: under 1 % of the traffic
MAX_AHEAD = 256  # calls that rank 0 may be ahead of the slowest worker; bounds the memory of unsent and unread frames


class CallState(Fact):
    """States of a collective call on rank 0."""

    RUNNING = "running"
    RETURNED = "returned"
    RAISED = "raised"
    SETTLED = "settled"


class CallEvent(Fact):
    """What happens to a collective call."""

    LOCAL_RETURN = "local return"
    LOCAL_RAISE = "local raise"
    ALL_DONE = "all done"


CALL_TABLE: Table[CallState, CallEvent] = {
    (CallState.RUNNING, CallEvent.LOCAL_RETURN): CallState.RETURNED,
    (CallState.RUNNING, CallEvent.LOCAL_RAISE): CallState.RAISED,
    (CallState.RETURNED, CallEvent.ALL_DONE): CallState.SETTLED,
    (CallState.RAISED, CallEvent.ALL_DONE): CallState.SETTLED,
}


_RUNNING = CallState.RUNNING  # hot path: see `taskfarm.fast`
_LOCAL_RETURN, _LOCAL_RAISE, _ALL_DONE = CallEvent.LOCAL_RETURN, CallEvent.LOCAL_RAISE, CallEvent.ALL_DONE


class CallRecord:
    """One call that is not settled, or whose failures are still to be told.

    Attributes
    ----------
    number : int
        Number of the call, from 1.
    what : object
        What was called; its text is made only when somebody is told.
    first_id : int
        Rank 0's object counter before the call.
    state : CallState
        Its state.
    failures : mapping of int to RankFailure
        By rank; one shared empty one until a rank fails.
    failed_ids : mapping of int to int
        Object counters after the call of the ranks that failed; likewise.
    nested : collection of range
        Ids that calls inside this one have made.
    end_id : int
        Rank 0's object counter after the call.
    n_told : int
        How many of the failures the caller has been told of.
    raised : bool
        Whether rank 0 itself raised.
    """

    # One is made per call, so what most calls leave as it is belongs to the class.
    failures: Mapping[int, RankFailure] = MappingProxyType({})
    failed_ids: Mapping[int, int] = MappingProxyType({})
    nested: Collection[range] = ()
    end_id = 0
    n_told = 0
    raised = False

    def __init__(self, number: int, what: object, first_id: int) -> None:
        self.number = number
        self.what = what
        self.first_id = first_id
        self.state = _RUNNING

    def orphans(self) -> list[int]:
        """Return the ids that rank 0 made in this call and another rank did not.

        What a worker made beyond rank 0's counter it forgets by itself when the next call comes.
        """
        first = max(self.first_id, min((self.end_id, *self.failed_ids.values())))
        return [number for number in range(first, self.end_id) if not any(number in ids for ids in self.nested)]


class CallBook:
    """Rank 0's book of collective calls.

    Parameters
    ----------
    workers : collection of int
        The other ranks.

    Attributes
    ----------
    last : int
        Number of the last call; 0 before the first.
    done_everywhere : int
        Number of the last call that every worker is known to be through with.
    diverged : bool
        Whether the ranks' outcomes differed in a settled call since `on_repaired`: data of one call may then wait in
        the user's communicator and would be taken for data of a later one.
    """

    def __init__(self, workers: Collection[int]) -> None:
        self._done_up_to = dict.fromkeys(workers, 0)
        self._n_at = Counter(self._done_up_to.values())  # how many workers are at each number
        self.done_everywhere = 0
        self._open: dict[int, CallRecord] = {}
        self._running: list[CallRecord] = []  # rank 0 is inside of them; more than one where calls are nested
        self._untold: list[CallRecord] = []
        self._raised: CallRecord | None = None  # the last call in which rank 0 raised
        self._n_entries = {0: 0, **dict.fromkeys(workers, 0)}  # uses of the communicator, by rank
        self._n_entries_before = dict(self._n_entries)
        self._troubled: set[int] = set()
        self._orphans: set[int] = set()
        self.last = 0
        self.diverged = False

    # Queries

    @property
    def done_up_to(self) -> Mapping[int, int]:
        """The last call that each worker is known to be through with."""
        return self._done_up_to

    def must_wait(self) -> bool:
        """Tell whether rank 0 is too far ahead of the slowest worker to send another call."""
        return self.last - self.done_everywhere >= MAX_AHEAD

    def behind(self, number: int) -> list[int]:
        """Return the workers that are not known to be through with call `number`."""
        return [rank for rank, done in self._done_up_to.items() if done < number]

    @property
    def has_trouble(self) -> bool:
        """Whether a call failed somewhere and is not settled."""
        return bool(self._troubled)

    @property
    def has_untold(self) -> bool:
        """Whether a worker failed in a call from which rank 0 returned, and nobody has been told."""
        return bool(self._untold)

    @property
    def is_calm(self) -> bool:
        """Whether nothing stands in the way of the next call: no failure, nothing to repair, not too far ahead."""
        return not (
            self._untold
            or self._troubled
            or self._orphans
            or self.diverged
            or self.last - self.done_everywhere >= MAX_AHEAD
        )

    @property
    def is_settled(self) -> bool:
        """Whether every call has ended everywhere and every failure was told."""
        return self.done_everywhere == self.last and not self._untold

    # Events

    def begin(self, what: object, counter: int) -> int:
        """Open the next call and return its number; `what` is called, `counter` is rank 0's object counter."""
        self.last += 1
        if not self._done_up_to:  # nobody to wait for
            self.done_everywhere = self.last
        record = CallRecord(self.last, what, counter)
        self._open[self.last] = record
        self._running.append(record)
        return self.last

    def on_local_end(self, number: int, counter: int, *, raised: bool) -> None:
        """Note that rank 0 is through with its own part, and its object counter then."""
        record = self._open.get(number)
        if record is None:
            raise ProtocolError(f"call {number} ended on rank 0, but is not open")
        record.state = advance(CALL_TABLE, record.state, _LOCAL_RAISE if raised else _LOCAL_RETURN, "call {}", number)
        record.end_id = counter
        self._running.remove(record)
        if self._running:
            outer = self._running[-1]
            outer.nested = [*outer.nested, range(record.first_id, counter)]
        if raised:
            record.raised = True
            self._raised = record
            self._troubled.add(number)
        elif record.failures:
            self._untold.append(record)
        if number <= self.done_everywhere:
            self._settle()

    def on_failed(self, number: int, counter: int, failure: RankFailure) -> None:
        """Note that a worker's part of call `number` failed, and that worker's object counter after it."""
        record = self._open.get(number)
        if record is None or failure.rank in record.failures or self._done_up_to.get(failure.rank, number) >= number:
            raise ProtocolError(f"rank {failure.rank} reported a failure of call {number}, which is not open there")
        record.failures = {**record.failures, failure.rank: failure}
        record.failed_ids = {**record.failed_ids, failure.rank: counter}
        self._troubled.add(number)
        if record.state is CallState.RETURNED and record not in self._untold:
            self._untold.append(record)

    def on_done_up_to(self, rank: int, number: int, n_comm_entries: int = 0) -> None:
        """Note that a worker is through with all calls up to `number`, and how often it has used the communicator."""
        before = self._done_up_to.get(rank)
        if before is None or not before <= number <= self.last:
            raise ProtocolError(f"rank {rank} reported the end of call {number}; the last one was {self.last}")
        self._done_up_to[rank] = number
        self._n_entries[rank] = n_comm_entries
        self._n_at[number] += 1
        self._n_at[before] -= 1
        if not self._n_at[before]:
            del self._n_at[before]
            if before == self.done_everywhere:
                self.done_everywhere = min(self._n_at)
        self._settle()

    def take_untold(self) -> list[tuple[int, object, list[RankFailure]]]:
        """Return, once, the failures of calls that rank 0 returned from: number, what was called, who failed."""
        untold, self._untold = self._untold, []
        return [(record.number, record.what, self._tell(record)) for record in untold]

    def take_failures_of(self, number: int) -> list[RankFailure]:
        """Return, once, the failures known of call `number`, in which rank 0 raised; later ones are never told."""
        record = self._raised
        return [] if record is None or record.number != number else self._tell(record)

    def take_orphans(self) -> list[int]:
        """Return, once, the ids that were not created on every rank, in order."""
        orphans, self._orphans = self._orphans, set()
        return sorted(orphans)

    def has_used_comm(self, n_comm_entries: int) -> bool:
        """Tell whether any rank has used the communicator since the last repair; only then can data wait in it.

        `n_comm_entries` is how often rank 0 has used it, ever.
        """
        self._n_entries[0] = n_comm_entries
        return self._n_entries != self._n_entries_before

    def on_repaired(self) -> None:
        """Note that no data of the settled calls can wait in the communicator any more."""
        self.diverged = False
        self._n_entries_before = dict(self._n_entries)

    # Helpers

    def _tell(self, record: CallRecord) -> list[RankFailure]:
        untold = list(record.failures.values())[record.n_told :]
        record.n_told = len(record.failures)
        return sorted(untold, key=lambda failure: failure.rank)

    def _settle(self) -> None:
        limit = self.done_everywhere
        while self._open:
            number, record = next(iter(self._open.items()))
            if number > limit or record.state is _RUNNING:
                return
            record.state = advance(CALL_TABLE, record.state, _ALL_DONE, "call {}", number)
            del self._open[number]
            if number in self._troubled:
                self._troubled.discard(number)
                self._orphans.update(record.orphans())
                self.diverged |= not (record.raised and len(record.failures) == len(self._done_up_to))
