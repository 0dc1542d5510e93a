"""Files that the command line is asked to write."""

from __future__ import annotations

from pathlib import Path

from taskfarm.errors import UsageError

__all__ = ["output_path"]


def output_path(option: str, name: str) -> Path:
    """Return the path of a file that can be written, by having opened it; one that is there keeps what it holds.

    Raises
    ------
    UsageError
        Names `option`, the file and the reason if it cannot.
    """
    path = Path(name)
    is_new = not path.exists()
    try:
        with path.open("a"):
            pass
        if is_new:
            path.unlink()
    except OSError as exc:
        raise UsageError(f"{option} {path}: cannot be written ({exc.strerror})") from exc
    return path
