"""What Linux tells of a process: CPU time, resident memory and its peak."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cpu_seconds", "peak_bytes", "proportional_bytes", "reset_peak", "resident_bytes"]

_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process.

    In nanoseconds from the scheduler where the kernel keeps that, else from ``/proc/<pid>/stat`` in clock ticks, of
    which one in 2 s is 0.5 %.
    """
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) * 1e-9
    except OSError:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _status("VmRSS")


def proportional_bytes() -> int:
    """Return the memory of this process, a page that n processes share counted as one n-th."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def peak_bytes() -> int:
    """Return the peak of the resident memory of this process."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let the peak of this process start anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise LookupError(f"/proc/self/status has no {name}")
