"""One suite of checks for every transport: within one process, and on MPI with each way to receive.

The promises stand in ``support/check_transport.py``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import traceback
from pathlib import Path

import pytest
from harness import PROGRAMS, SUPPORT, Launch, Result, start_job

sys.path.insert(0, str(SUPPORT))

from check_transport import checks, run_check

from taskfarm.transport.local import LocalHub

NAMES = list(checks())
JOB_LIMIT_S = 150.0
MAX_RESTARTS = 4
THREAD_LIMIT_S = 60.0


# Within one process


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_local_transport(n: int, name: str) -> None:
    """Each check is one promise; the transport within one process keeps it, with a thread per rank."""
    barrier = threading.Barrier(n, timeout=THREAD_LIMIT_S)
    hub = LocalHub(n)
    transports = hub.transports()
    failures: list[str] = []

    def play(rank: int) -> None:
        try:
            run_check(name, transports[rank], lambda: barrier.wait() and None)
        except BaseException:  # noqa: BLE001 - shown below, with those of the other ranks
            failures.append(f"rank {rank}: {traceback.format_exc()}")
            barrier.abort()

    threads = [threading.Thread(target=play, args=(rank,), daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(THREAD_LIMIT_S)
    assert not failures, "\n".join(failures)
    assert not any(thread.is_alive() for thread in threads)
    assert all(not queue for queue in hub.queues)


# On MPI


@dataclasses.dataclass(frozen=True)
class Variant:
    """How the checks are run on MPI."""

    n: int
    env: tuple[tuple[str, str], ...] = ()
    chunk_bytes: int = 0


MATCHED, PLAIN = ("TASKFARM_RECEIVE", "matched"), ("TASKFARM_RECEIVE", "plain")
VARIANTS = {
    "1 rank": Variant(1),
    "2 ranks": Variant(2),
    "4 ranks": Variant(4),
    "4 ranks, matched probes": Variant(4, (MATCHED,)),
    "4 ranks, plain probes": Variant(4, (PLAIN,)),
    "2 ranks, small pieces": Variant(2, chunk_bytes=65_521),
    "2 ranks, small pieces, matched probes": Variant(2, (MATCHED,), 65_521),
    "2 ranks, spinning": Variant(2, (("TASKFARM_SPIN", "1"),)),
    "2 ranks, no bell": Variant(2, (("TASKFARM_DOORBELL", "0"), ("TASKFARM_SPIN", "0"))),
}


class Jobs:
    """Runs the checks of a variant in one job when the first of them is asked for, and keeps how they ended."""

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir
        self._outcomes: dict[str, dict[str, str]] = {}

    def outcome(self, variant: str, name: str) -> str:
        """Return what went wrong, or an empty string."""
        if variant not in self._outcomes:
            self._outcomes[variant] = self._run(variant)
        return self._outcomes[variant][name]

    def _run(self, key: str) -> dict[str, str]:
        variant = VARIANTS[key]
        outcomes: dict[str, str] = {}
        for attempt in range(MAX_RESTARTS):
            names = NAMES[len(outcomes) :]
            work_dir = self._base_dir / f"{key.replace(', ', '-').replace(' ', '-')}-{attempt}"
            args = [str(variant.chunk_bytes), *names]
            job = start_job(PROGRAMS / "transport.py", variant.n, work_dir=work_dir, args=args, env=dict(variant.env))
            try:
                text = job.finish(timeout_s=JOB_LIMIT_S).check(0).stderr
            except pytest.fail.Exception as exc:
                text = str(exc)
            finally:
                job.kill()
            logs = [_read(work_dir / "logs" / f"checks-{rank}.jsonl") for rank in range(variant.n)]
            for name in names:
                passed = all(log.get(name) == "" for log in logs)
                outcomes[name] = "" if passed else f"the job ended in this check\n{text}"
                if not passed:
                    break
            if len(outcomes) == len(NAMES):
                break
        return {name: outcomes.get(name, "not reached") for name in NAMES}


def _read(log: Path) -> dict[str, str]:
    lines = log.read_text().splitlines() if log.exists() else []
    return {event["name"]: event["text"] for event in map(json.loads, lines)}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Outcomes of the checks on MPI."""
    return Jobs(tmp_path_factory.mktemp("transport"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_mpi_transport(jobs: Jobs, variant: str, name: str) -> None:
    """The same promises on real MPI, whichever way probes, pieces and waiting are chosen."""
    text = jobs.outcome(variant, name)
    if text:
        pytest.fail(text, pytrace=False)


# More than 2 GiB

NEEDED_GIB = 14


def available_gib() -> float:
    """Memory that can be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kib,) = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kib / 2**20


@pytest.mark.slow
@pytest.mark.parametrize("form", ["array", "bytes"])
def test_more_than_2_gib(run_mpi: Launch[Result], form: str) -> None:
    """An array, and a pickled body, of more than 2 GiB arrive whole: no count overflows in any MPI library."""
    if available_gib() < NEEDED_GIB:
        pytest.skip(f"only {available_gib():.0f} GiB of memory are available, {NEEDED_GIB} GiB are needed")
    result = run_mpi(PROGRAMS / "huge_frames.py", 2, args=[form], timeout_s=300.0).check(0)
    assert result.stdout.count(f"{form} of 2147483649 bytes") == 2
