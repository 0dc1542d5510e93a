"""What becomes of items whose attempts were lost, and the errors of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskfarm.errors import WorkerLostError
from taskfarm.runtime.jobs import Job
from taskfarm.scheduling.dealing import Dealer
from taskfarm.scheduling.pacing import Loss

__all__ = ["error_of_loss", "lose_worker"]


def error_of_loss(story: Sequence[Loss]) -> WorkerLostError:
    """Return the error of a task whose last attempt was lost: `story` has all of them."""
    tale = "; ".join(f"attempt {number}, rank {loss.worker}: {loss.cause}" for number, loss in enumerate(story, 1))
    times = "once" if len(story) == 1 else f"{len(story)} times"
    return WorkerLostError(
        f"the task was lost {times} with the process that ran it: {tale}", sorted({loss.worker for loss in story})
    )


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
    for batch, failed in dealer.on_worker_lost(worker, how):
        if (job := jobs.get(batch.job)) is not None:
            job.on_returned(batch.start, batch.stop)
            for item, story in failed.items():
                job.on_item_failed(item, item + 1, error_of_loss(story))
