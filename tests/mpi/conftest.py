"""Fixtures of the tests that launch real MPI jobs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checklist import Checklist
from harness import Job, Launch, Result, remove_dead_segments, start_job


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mpi)


@pytest.fixture(scope="session", autouse=True)
def _no_segments_left() -> Iterator[None]:
    """Remove the shared memory that the MPI libraries leave behind in jobs that were aborted or killed."""
    started = time.time()
    yield
    remove_dead_segments(started)


@pytest.fixture
def start_mpi(tmp_path: Path) -> Iterator[Launch[Job]]:
    """Start a job and return it while it runs; whatever is left of it is killed after the test."""
    jobs: list[Job] = []

    def start(program: str | Path, n: int, **options: object) -> Job:
        job = start_job(program, n, work_dir=tmp_path / f"job{len(jobs)}", **options)  # type: ignore[arg-type]
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture
def run_mpi(start_mpi: Launch[Job]) -> Launch[Result]:
    """Run a job to its end; a hang or a left-over process fails the test."""

    def run(program: str | Path, n: int, *, timeout_s: float = 60.0, **options: object) -> Result:
        return start_mpi(program, n, **options).finish(timeout_s=timeout_s)

    return run


@pytest.fixture(scope="session")
def checklist(tmp_path_factory: pytest.TempPathFactory) -> Checklist:
    """Outcomes of the programs that hold many checks; each program runs once per number of ranks."""
    return Checklist(tmp_path_factory.mktemp("checks"))
