"""Whether somebody looks at rank 0's standard error: a launcher passes it on through a pipe, which is no terminal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import TextIO

__all__ = ["terminal_columns", "terminal_variable"]

_VARIABLE = "TASKFARM_TERMINAL_COLUMNS"


def terminal_variable(stream: TextIO) -> dict[str, str]:
    """Return what a launching process tells its ranks: how wide the terminal is that `stream` is, or 0 for none."""
    return {_VARIABLE: str(shutil.get_terminal_size().columns if stream.isatty() else 0)}


def terminal_columns(stream: TextIO, environ: Mapping[str, str] = os.environ) -> int:
    """Return the width of the terminal where `stream` ends, 0 if it does not end in one.

    Parameters
    ----------
    stream : text stream
        Standard error of this process.
    environ : mapping of str to str
        What the launching process has said.
    """
    if stream.isatty():
        return shutil.get_terminal_size().columns
    told = environ.get(_VARIABLE, "")
    return int(told) if told.isdecimal() else 0
