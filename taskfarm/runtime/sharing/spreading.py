"""Rank 0's part in bringing a block of shared memory to every host; see `taskfarm.runtime.sharing.receiving`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from taskfarm.errors import InternalError, UsageError, WorkerLostError
from taskfarm.runtime.controller import Controller
from taskfarm.runtime.executor.crews import hall_of
from taskfarm.runtime.session import Session
from taskfarm.runtime.sharing.handles import Shared
from taskfarm.runtime.sharing.receiving import ShareOption
from taskfarm.scheduling.tree import children
from taskfarm.transport.blocks import Block
from taskfarm.wire.frames import Frame, Kind

__all__ = ["other_holders", "spread"]

PIECE_BYTES = 1 << 24  # 16 MB: on the way along the tree, the last host has them so many later as it is deep


def other_holders(session: Session) -> list[int]:
    """Return the ranks that hold blocks for their hosts, one for each but rank 0's: the lowest that lives."""
    lost = session.controller.lost if session.controller is not None else {}
    first = {peer.memory_key: peer.rank for peer in reversed(session.peers) if peer.rank not in lost}
    return sorted(rank for rank in first.values() if rank)


def spread(session: Session, handle: Shared[object], block: Block, others: list[int]) -> None:
    """Bring `block` to the ranks `others`, which hold it for their hosts; returns when all have it.

    Raises
    ------
    UsageError
        If a host has no memory for it; in another thread than the session's.
    WorkerLostError
        If one of these ranks dies meanwhile.
    """
    session.check_caller("share")
    crew, controller = hall_of(session, None).crew, session.controller
    if controller is None:
        raise InternalError("an open session without a controller on rank 0")
    holders = [0, *others]
    ours = [holders[place] for place in children(0, len(holders))]
    answers: dict[int, str] = {}
    controller.add_handler(Kind.SHARED, partial(_on_shared, block.number, answers))
    handle.announce(crew)
    memory = memoryview(block.map())
    with crew.paused():
        transport = controller.transport
        ranks = np.array(holders, np.int64).tobytes()
        transport.send_to(ours, Frame(Kind.SHARE, block.number, block.size_bytes, ShareOption.BEGIN, ranks))
        for start in range(0, block.size_bytes, PIECE_BYTES):
            piece = memory[start : start + PIECE_BYTES]
            transport.send_to(ours, Frame(Kind.SHARE, block.number, start, ShareOption.PIECE, b"", [piece]))
        controller.serve_until(lambda: len(answers) == len(others) or bool(_died(controller, others)), math.inf)
    if len(answers) < len(others):
        handle.release()
        rank, how = _died(controller, others)[0]
        raise WorkerLostError(f"share: rank {rank} {how} while it took in the data; call share again", [rank])
    failures = {rank: text for rank, text in answers.items() if text}
    if failures:
        handle.release()
        rank, text = min(failures.items())
        raise UsageError(f"share: host {session.peers[rank].host} has no memory for {block.size_bytes} bytes: {text}")


def _died(controller: Controller, holders: Sequence[int]) -> list[tuple[int, str]]:
    return [(rank, controller.lost[rank]) for rank in holders if rank in controller.lost]


def _on_shared(number: int, answers: dict[int, str], source: int, frame: Frame) -> None:
    if frame.a == number:
        answers[source] = bytes(frame.body).decode(errors="replace")
