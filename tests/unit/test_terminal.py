"""Whether rank 0's standard error ends in a terminal, although the launcher passes it on."""

from __future__ import annotations

import io
import os
import pty

from taskfarm.runtime.launching.terminal import terminal_columns, terminal_variable


def test_a_pipe_is_no_terminal() -> None:
    """What is redirected stays free of progress bars, on all ranks."""
    told = terminal_variable(io.StringIO())
    assert terminal_columns(io.StringIO(), told) == 0
    assert terminal_columns(io.StringIO(), {}) == 0


def test_the_launching_process_tells_its_ranks() -> None:
    """Ranks whose output a launcher passes on know the width of the terminal behind it."""
    ours, theirs = pty.openpty()
    try:
        with open(theirs, "w") as terminal:
            told = terminal_variable(terminal)
            assert terminal_columns(terminal, {}) > 0
    finally:
        os.close(ours)
    assert terminal_columns(io.StringIO(), told) > 0
