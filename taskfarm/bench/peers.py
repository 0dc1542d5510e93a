"""The peers as contenders of a row: those that use MPI on the same ranks, those that do not beside them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import IO, Any

from taskfarm.bench.common import comm, meet, on_all_ranks
from taskfarm.bench.functions import noop
from taskfarm.bench.measure import ContenderLost, Contenders, Setting
from taskfarm.bench.pools import POOLS
from taskfarm.bench.works import NOOP, work_seconds

__all__ = ["PoolProcess", "contenders", "outside_mpi"]

_NOT_INSTALLED = "not installed (pip install 'taskfarm[bench]')"

# What launchers set for their ranks: a process that finds it may take itself for one.
_LAUNCHER_PREFIXES = ("PMI", "OMPI_", "PRTE_", "MPI", "HYDRA", "I_MPI_")

_ANSWER_S = 120.0  # a sample lasts a second at most; a pool may take long to start its workers
_END_S = 20.0  # dask takes some seconds to stop


def contenders(setting: Setting, work: str) -> Contenders:
    """Return the peers that are installed, at `work`; the others are noted in `setting.left_out`."""
    found: dict[str, Callable[[int], float]] = {}
    for name, fn in (("schwimmbad", _schwimmbad), ("mpi4py.futures", _mpi4py_futures)):
        if find_spec(name.partition(".")[0]) is None:
            setting.left_out[name] = _NOT_INSTALLED
        else:
            found[name] = on_all_ranks(fn, work)
    for name, (module, _) in POOLS.items():
        if find_spec(module) is None:
            setting.left_out[name] = _NOT_INSTALLED
        else:
            try:
                process = setting.cleanup.enter_context(PoolProcess(name, setting))
            except ContenderLost as exc:
                setting.left_out[name] = str(exc)
            else:
                found[name] = partial(process.seconds, work)
    return found


# On the ranks


@dataclass(frozen=True, slots=True)
class _SchwimmbadPool:
    pool: Any

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(fn, items))

    def map_best(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.pool.map(fn, items))  # it has no other way

    def one(self, fn: Callable[[Any], Any], item: Any) -> Any:
        return self.pool.map(fn, [item])[0]


def _schwimmbad(work: str, n: int) -> float | None:
    import schwimmbad

    meet()
    try:
        pool = schwimmbad.MPIPool(comm=comm())  # workers serve in there, and exit
    except SystemExit:
        return None
    seconds = work_seconds(_SchwimmbadPool(pool), work, n)
    pool.close()
    pool.workers = set()  # it would say good-bye once more when the interpreter ends
    return seconds


@dataclass(frozen=True, slots=True)
class _FuturesPool:
    executor: Any

    def map(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=1))

    def map_best(self, fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        return list(self.executor.map(fn, items, chunksize=100))

    def one(self, fn: Callable[[Any], Any], item: Any) -> Any:
        return self.executor.submit(fn, item).result()


def _mpi4py_futures(work: str, n: int) -> float | None:
    from mpi4py.futures import MPICommExecutor

    with MPICommExecutor(comm(), root=0) as executor:  # workers serve in there, until rank 0 leaves it
        if executor is None:
            return None
        pool = _FuturesPool(executor)
        pool.one(noop, None)  # its threads and connections stand
        return work_seconds(pool, work, n)


# Beside them


class PoolProcess:
    """A process without MPI that holds a pool; it sleeps while it is not asked."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-m", "taskfarm.bench.pools", name, str(max(setting.n_ranks - 1, 1))]
        self._process = subprocess.Popen(
            [*command, *(str(cpu) for cpu in setting.cpus)],
            env=outside_mpi(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            start_new_session=True,  # so that what it leaves can be found and killed
        )

    def __enter__(self) -> PoolProcess:
        self.seconds(NOOP, 1)  # its workers are started
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._close()

    def seconds(self, work: str, n: int) -> float:
        """Return the seconds that `n` repetitions of `work` take there.

        Raises
        ------
        ContenderLost
            If the process ended, or does not answer; the message holds the last of what it said.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        try:
            self._process.stdin.write(json.dumps([work, n]) + "\n")
            ready, _, _ = select.select([self._process.stdout], [], [], _ANSWER_S)
            if not ready:
                self._kill()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            pass  # it has ended: explained below
        if not answer:
            said = self._close().strip().splitlines()
            raise ContenderLost(f"its process ended or did not answer: {said[-1] if said else 'it said nothing'}")
        return float(json.loads(answer))

    def _kill(self) -> None:
        """Kill the process, which has not been waited for, and its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)

    def _close(self) -> str:
        """End the process and return the end of what it wrote to its error stream."""
        if self._errors.closed:
            return ""
        try:
            self._process.communicate(timeout=_END_S)  # closes its input, by which it ends
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.communicate()
        with self._errors:
            self._errors.seek(0)
            return self._errors.read()[-2000:].decode(errors="replace")


def outside_mpi(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what a launcher has set for its ranks."""
    return {name: value for name, value in environ.items() if not name.startswith(_LAUNCHER_PREFIXES)}
