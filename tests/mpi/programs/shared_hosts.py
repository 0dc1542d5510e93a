"""Checks of ``taskfarm.share`` where the ranks are on several hosts: two on each, or so they believe."""

from __future__ import annotations

import functools
import gc
import os
import time

import numpy as np
from mpi4py import MPI
from tf_checks import equal, eventually, holds, raises, run_checks

from taskfarm.transport import blocks, world

HERE = f"host {MPI.COMM_WORLD.rank // 2}"
for module in (blocks, world):
    module.memory_key = lambda: HERE

import taskfarm  # noqa: E402
from taskfarm import Executor, UsageError  # noqa: E402
from taskfarm.runtime.session import current  # noqa: E402
from taskfarm.runtime.sharing import handles, receiving  # noqa: E402

handles.memory_key = lambda: HERE
EX: Executor


def look(handle, _):
    """Return rank, a number that depends on all of the data, and which process' memory was opened."""
    value = handle.value
    found = float(value[::1000].sum()), bool(value.flags.writeable)
    time.sleep(0.3)
    return MPI.COMM_WORLD.rank, found


def held(_):
    """Return rank and how many blocks this process holds or has mapped."""
    time.sleep(0.2)
    names = []
    for name in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return MPI.COMM_WORLD.rank, sum("taskfarm-" in name and "memfd:" in name for name in names)


def on_all(fn):
    return dict(EX.map(fn, range(EX.num_workers), chunksize=1))


def check4_every_host_has_the_data():
    array = np.arange(5_000_000.0)
    with taskfarm.share(array) as shared:
        expected = float(array[::1000].sum()), False
        equal(on_all(functools.partial(look, shared)), dict.fromkeys(range(1, EX.num_workers + 1), expected))


def check4_one_rank_of_each_host_holds_it_until_the_last_handle_is_gone():
    EX.submit(abs, 1).result()
    shared = taskfarm.share(np.ones(100_000))
    seen = on_all(held)
    equal(seen, {rank: 1 - rank % 2 for rank in range(1, EX.num_workers + 1)})
    del shared
    gc.collect()
    equal(EX.submit(abs, -1).result(), 1)
    eventually(lambda: not any(on_all(held).values()), "all have let go")


def check4_tasks_under_way_end_first():
    futures = [EX.submit(time.sleep, 0.2) for _ in range(EX.num_workers)]
    with taskfarm.share(np.ones(100_000)):
        holds(all(future.done() for future in futures), "the ranks that take the data have to be free")


def check4_host_without_memory():
    for future in [EX.submit(spoil_host, 2) for _ in range(EX.num_workers)]:
        future.result()
    with raises(UsageError, match="no memory for .* GB are left"):
        taskfarm.share(np.ones(100_000))
    equal(EX.submit(abs, -1).result(), 1)
    eventually(lambda: not any(on_all(held).values()), "the others have let go")
    for future in [EX.submit(spoil_host, -1) for _ in range(EX.num_workers)]:
        future.result()
    with taskfarm.share(np.ones(100_000)) as shared:
        equal(EX.submit(look, shared, 0).result()[1], (100.0, False))


def spoil_host(rank):
    """Let rank `rank` believe that it has hardly any memory."""
    if MPI.COMM_WORLD.rank == rank or rank < 0:
        receiving.free_memory_bytes = (lambda: 1000) if rank > 0 else lambda: None
    time.sleep(0.1)


def check4_what_ranks_tell_of_themselves_is_held_once():
    peers = current().peers
    equal([peer.rank for peer in peers], list(range(MPI.COMM_WORLD.size)))
    equal([peer.memory_key for peer in peers], [f"host {rank // 2}" for rank in range(len(peers))])
    holds(all(peer.serves is True and peer.cpus is peers[0].cpus for peer in peers), peers)


def check4_no_written_arrays():
    with raises(UsageError, match="no memory in common"):
        taskfarm.shared_array(10)


if __name__ == "__main__":
    EX = Executor()
    run_checks(globals(), MPI.COMM_WORLD.size)
    EX.shutdown()
