"""``taskfarm run --watch`` on a terminal, and where there is none."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from harness import environment

PROGRAM = """
import time
from taskfarm import Executor


if __name__ == "__main__":
    with Executor() as executor:
        list(executor.map(time.sleep, [0.2] * 12))
    print("result")
"""
LIMIT_S = 60.0


@pytest.mark.parametrize("on_terminal", [True, False])
def test_the_view(tmp_path: Path, on_terminal: bool) -> None:
    """A terminal shows workers, what is done and what is ahead; a pipe nothing. The program's output is its own."""
    (tmp_path / "prog.py").write_text(PROGRAM)
    ours, theirs = os.openpty() if on_terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "taskfarm", "run", "-n", "3", "--watch", "prog.py"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    parts: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(ours, parts), daemon=True)
    reader.start()
    output, _ = process.communicate(timeout=LIMIT_S)
    reader.join(LIMIT_S)
    os.close(ours)
    text = b"".join(parts).decode()
    assert process.returncode == 0, text
    assert output.decode() == "result\n"
    if not on_terminal:
        assert text == ""
        return
    lines = text.split("\r\x1b[K")
    assert any("2 of 2 workers busy" in line and " ahead" in line for line in lines), lines
    assert any(re.search(r"\d/s", line) for line in lines), lines
    assert "12 done" in lines[-1], lines
    assert re.search(r"\d\.\d GB", text), lines


def read_all(descriptor: int, parts: list[bytes]) -> None:
    """Read until nobody writes any more; a terminal says that by an error."""
    with contextlib.suppress(OSError):
        while part := os.read(descriptor, 65536):
            parts.append(part)
