"""Starting MPI: the first look at the world, with a clear word where the launcher does not fit the library."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from taskfarm.errors import UsageError, WorkerLostError
from taskfarm.runtime.launching.launchers import wrong_launcher
from taskfarm.runtime.launching.libmpi import SearchPaths, find_library
from taskfarm.runtime.launching.surroundings import expected_world_size, explain_mismatch, leave_explaining_to_rank_0
from taskfarm.transport import prepare_mpi4py

if TYPE_CHECKING:
    from taskfarm.transport.world import Opening, PeerInfo, World

__all__ = ["cores_by_host", "find_world", "wait_for_ranks", "warn_of_versions"]

logger = logging.getLogger(__name__)

WAIT_WARNING_S = 10.0  # first word about ranks that do not come


def find_world(environ: Mapping[str, str]) -> tuple[World | None, ImportError | RuntimeError | None]:
    """Start MPI where nobody has, and return its world; or None and the reason where MPI cannot be loaded.

    Raises
    ------
    UsageError
        If the launcher that started this process belongs to another MPI than the library that mpi4py loads.
    SystemExit
        The same, on all but one of the processes: one says it for all.
    """
    expected = expected_world_size(environ)
    _check_launcher(environ)
    try:
        prepare_mpi4py()
        from taskfarm.transport.world import start_world

        world = start_world()
    except (ImportError, RuntimeError) as exc:  # RuntimeError: mpi4py is there, but no MPI library
        if expected is not None and expected > 1:
            raise UsageError(f"a launcher started {expected} ranks, but MPI cannot be loaded: {exc}") from exc
        return None, exc
    text = explain_mismatch(expected, world.size, world.library())
    if text is not None:
        _refuse(text, environ)
    return world, None


def _check_launcher(environ: Mapping[str, str]) -> None:
    """Explain the one wrong launcher under which starting MPI would end the process without a clear word."""
    if "OMPI_COMM_WORLD_SIZE" not in environ or "mpi4py.MPI" in sys.modules:
        return
    library = find_library(SearchPaths.of_this_interpreter(), environ)
    if library is not None and (text := wrong_launcher(environ, library)) is not None:
        _refuse(text, environ)


def _refuse(text: str, environ: Mapping[str, str]) -> NoReturn:
    leave_explaining_to_rank_0(environ, 1)
    raise UsageError(text)


def wait_for_ranks(opening: Opening, rank: int, timeout_s: float) -> None:
    """Return when every rank takes part in the opening; `WorkerLostError` names those that do not in time."""
    now = time.monotonic()
    if not opening.wait(min(now + timeout_s, now + WAIT_WARNING_S)):
        if timeout_s > WAIT_WARNING_S:
            missing = f"ranks {opening.missing()} to enter their loop" if rank == 0 else "rank 0"
            logger.warning("rank %d waits for %s", rank, missing)
        if timeout_s <= WAIT_WARNING_S or not opening.wait(now + timeout_s):
            missing_ranks = opening.missing()
            raise WorkerLostError(
                f"ranks {missing_ranks} did not report within {timeout_s:g} s: they never reached the point where "
                "workers enter their loop (spawnerBarrier, launch_event_loop), or are gone",
                missing_ranks,
            )


def cores_by_host(peers: Sequence[PeerInfo]) -> dict[str, int]:
    """Return how many cores the ranks of each host may use together."""
    from taskfarm.transport.world import cores_of_host  # starts MPI, which has started where there are peers

    names = dict.fromkeys(peer.host for peer in peers)
    return {name: cores_of_host([peer for peer in peers if peer.host == name]) for name in names}


def warn_of_versions(peers: Sequence[PeerInfo]) -> None:
    """Say on rank 0 which hosts have other versions than it has."""
    mine = peers[0].versions
    others = {peer.host: peer.versions for peer in peers if peer.versions != mine}
    for host, versions in others.items():
        logger.warning("rank 0: host %s has other versions: %s; rank 0 has %s", host, versions, mine)
