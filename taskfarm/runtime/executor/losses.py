"""What becomes of items whose attempts were lost, with their worker or its task child, and the errors of them."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskfarm.errors import ProtocolError, TaskfarmError, TaskTimeoutError, WorkerLostError
from taskfarm.runtime.executor.jobs import Job
from taskfarm.runtime.options import LossCause
from taskfarm.scheduling.dealing import Batch, Dealer
from taskfarm.scheduling.pacing import Loss
from taskfarm.wire.frames import Buffer

__all__ = ["LostItem", "error_of_loss", "lose_worker", "note_retry", "pack_loss", "read_loss", "take_loss"]


logger = logging.getLogger(__name__)


class LostItem(NamedTuple):
    """What became of a batch.

    Attributes
    ----------
    position : int or None
        Which of its items was being run; None if that is not known.
    cause : LossCause
        Why its process ended.
    text : str
        The same for readers.
    """

    position: int | None
    cause: LossCause
    text: str


def pack_loss(loss: LostItem) -> bytes:
    """Return `loss` as bytes."""
    return pickle.dumps((loss.position, int(loss.cause), loss.text))


def read_loss(body: Buffer) -> LostItem:
    """Return what `pack_loss` made bytes of; raise `ProtocolError` if these are others."""
    try:
        position, cause, text = pickle.loads(body)
        return LostItem(None if position is None else int(position), LossCause(cause), str(text))
    except Exception as exc:
        raise ProtocolError(f"a report of a lost item that cannot be read: {type(exc).__name__}: {exc}") from exc


def error_of_loss(cause: LossCause, story: Sequence[Loss]) -> TaskfarmError:
    """Return the error of a task whose last attempt was lost: `story` has all of them."""
    last = story[-1]
    tale = "; ".join(f"attempt {number}, rank {loss.worker}: {loss.cause}" for number, loss in enumerate(story, 1))
    if cause is LossCause.TIMEOUT:
        return TaskTimeoutError(f"the task was killed on rank {last.worker}: {last.cause} ({tale})")
    times = "once" if len(story) == 1 else f"{len(story)} times"
    return WorkerLostError(
        f"the task was lost {times} with the process that ran it: {tale}", sorted({loss.worker for loss in story})
    )


def take_loss(dealer: Dealer, batch: Batch, job: Job | None, body: Buffer) -> None:
    """Take in that a batch was lost with a task child, as `body` says: its items are dealt again, or one has failed.

    Parameters
    ----------
    dealer : Dealer
        Deals them.
    batch : Batch
        It, which is under way.
    job : Job or None
        Whose it is, if anybody still waits for it.
    body : bytes-like
        The report, from `pack_loss`.
    """
    loss = read_loss(body)
    item = None if loss.position is None else batch.start + loss.position
    may_retry = loss.cause is LossCause.DEATH or (job is not None and item is not None and job.retries_late(item))
    _, story = dealer.on_item_lost(batch.number, loss.position, loss.text, may_retry=may_retry)
    if job is None:
        return
    if not story:
        note_retry(batch.worker, loss.text, 1)
    job.on_returned(batch.start, batch.stop)
    if story:
        item = batch.start if item is None else item
        job.on_item_failed(item, item + 1, error_of_loss(loss.cause, story))


def note_retry(worker: int, how: str, n: int) -> None:
    """Log that tasks are tried again."""
    tasks = "a task" if n == 1 else f"{n} tasks"
    logger.warning("rank 0: rank %d: %s; %s of it will be tried again", worker, how, tasks, extra={"event": "retry"})


def lose_worker(dealer: Dealer, jobs: Mapping[int, Job], worker: int, how: str) -> None:
    """Take in that a worker is gone: what it had is dealt to others, and what has used up its retries has failed.

    Parameters
    ----------
    dealer : Dealer
        Deals the items.
    jobs : mapping of int to Job
        Those of which something is waited for, by number.
    worker : int
        Its rank.
    how : str
        What happened to it.
    """
    n_again = 0
    for batch, failed in dealer.on_worker_lost(worker, how):
        n_again += batch.stop - batch.start - len(failed)
        if (job := jobs.get(batch.job)) is not None:
            job.on_returned(batch.start, batch.stop)
            for item, story in failed.items():
                job.on_item_failed(item, item + 1, error_of_loss(LossCause.DEATH, story))
    if n_again:
        note_retry(worker, how, n_again)
