"""One rank's side of an open session: a controller on rank 0, a worker elsewhere, recorded or not."""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from taskfarm.errors import InternalError, UsageError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.endpoint import Endpoint, Surroundings
from taskfarm.runtime.isolation.asking import new_worker
from taskfarm.runtime.phases import Phase
from taskfarm.runtime.worker import Worker
from taskfarm.transport.base import Transport

if TYPE_CHECKING:
    from taskfarm.runtime.isolation.nursery import Nursery
    from taskfarm.runtime.session import Session
    from taskfarm.transport.world import PeerInfo

__all__ = ["Side", "new_side", "record"]

logger = logging.getLogger(__name__)


class Side(NamedTuple):
    """A transport, and what uses it: one of the two is None."""

    transport: Transport
    controller: Controller | None
    worker: Worker | None

    @property
    def endpoint(self) -> Endpoint:
        """The one that is not."""
        found = self.controller or self.worker
        if found is None:
            raise InternalError("a side without a controller and without a worker")
        return found


def new_side(
    transport: Transport,
    hosts: Mapping[int, str],
    surroundings: Surroundings,
    trace: str,
    nursery: Nursery | None = None,
    peers: Sequence[PeerInfo] = (),
) -> Side:
    """Return this rank's side.

    Parameters
    ----------
    transport : Transport
        Moves the frames.
    hosts : mapping of int to str
        Host of each worker rank.
    surroundings : Surroundings
        The rest of the rank.
    trace : str
        Where rank 0 writes what all ranks recorded; empty to record nothing. All ranks serve, or it is empty.
    nursery : Nursery, optional
        Forks the children in which a worker's tasks run.
    peers : sequence of PeerInfo
        What the ranks told of themselves.
    """
    if trace:
        side = _recorded_side(transport, hosts, surroundings, trace, nursery, peers)
    elif transport.rank == 0:
        side = Side(transport, Controller(transport, hosts, surroundings), None)
    else:
        side = Side(transport, None, new_worker(transport, surroundings, nursery, peers))
    config = surroundings.config
    if config.log or config.forward_logs:
        from taskfarm.runtime import logs

        logs.configure(config, side.transport, surroundings.host, side.worker)
        if side.controller is not None:
            side.controller.on_record = logs.handle_record
    if transport.rank == 0:
        logger.info("rank 0: %d workers on %d hosts are ready", len(hosts), len(set(hosts.values())))
    else:
        logger.info("rank %d: serves", transport.rank)
    return side


def _recorded_side(
    transport: Transport,
    hosts: Mapping[int, str],
    surroundings: Surroundings,
    trace: str,
    nursery: Nursery | None,
    peers: Sequence[PeerInfo],
) -> Side:
    from taskfarm.runtime.recording.recorded import RecordedController, new_recorded_worker, new_recorder
    from taskfarm.runtime.recording.recorded_transport import RecordedTransport
    from taskfarm.runtime.recording.recorder import Track

    recorder = new_recorder(transport.rank, transport.size, surroundings.host)
    if "taskfarm.transport.comm" in sys.modules:  # not without MPI
        from taskfarm.transport.comm import TimedTracker, TrackedComm

        on_left = partial(recorder.add, Track.COMM)
        TrackedComm.tracker = TimedTracker(TrackedComm.tracker.n_entries, recorder.clock, on_left)
    recorded = RecordedTransport(transport, recorder)
    if transport.rank > 0:
        return Side(recorded, None, new_recorded_worker(recorded, surroundings, recorder, nursery, peers))
    controller = RecordedController(recorded, hosts, surroundings, recorder, trace)
    controller.read_clocks()
    return Side(recorded, controller, None)


def record(session: Session, path: str | os.PathLike[str]) -> None:
    """Have everything recorded from the opening of `session` on; all ranks ask for it, or rank 0 alone.

    Raises
    ------
    UsageError
        If the ranks have begun to meet, or a trace of another name was asked for.
    """
    absolute = os.path.abspath(path)  # the program may change its directory
    if session.config.trace == absolute:
        return
    if session.config.trace:
        raise UsageError(f"trace={str(path)!r}: the trace of this job goes to {session.config.trace}")
    if session.phase is not Phase.IDLE:
        raise UsageError(
            f"trace={str(path)!r}: the ranks work together already; ask for the trace before the first use of a face, "
            "or with `taskfarm run --trace`"
        )
    session.config = dataclasses.replace(session.config, trace=absolute)
