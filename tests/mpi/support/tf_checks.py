"""Runs the checks of a program on rank 0 and writes down how each ended, one JSON line per event.

A check is a function ``check_<promise>()``; ``check<K>_<promise>()`` needs at least K ranks. It fails by raising. A
check that does not come back within ``CHECK_LIMIT_S`` ends the process with its stacks on stderr. ``$TF_CHECKS_AFTER``
names the last check of an earlier, broken run (the harness goes on behind it), ``$TF_CHECKS_ONLY`` the wanted ones.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

CHECK_LIMIT_S = 25.0


def run_checks(namespace: dict[str, Any], n_ranks: int, after_each: Callable[[], None] | None = None) -> None:
    """Run every check of `namespace` that `n_ranks` suffice for, in the order of the source text."""
    names = selected(list(namespace), n_ranks)
    if (after := os.environ.get("TF_CHECKS_AFTER")) in names:
        names = names[names.index(after) + 1 :]
    if only := os.environ.get("TF_CHECKS_ONLY"):
        names = [name for name in names if name in only.split(",")]
    with open(os.path.join(os.environ["TF_LOG_DIR"], "checks.jsonl"), "w") as log:

        def write(name: str, event: str, text: str = "") -> None:
            log.write(json.dumps({"name": name, "event": event, "text": text}) + "\n")
            log.flush()

        for name in names:
            faulthandler.dump_traceback_later(CHECK_LIMIT_S, exit=True)
            write(name, "start")
            try:
                namespace[name]()
                if after_each is not None:
                    after_each()
            except BaseException:  # noqa: BLE001
                write(name, "fail", traceback.format_exc())
            else:
                write(name, "pass")
        faulthandler.cancel_dump_traceback_later()


def selected(names: list[str], n_ranks: int) -> list[str]:
    """Names among `names` that are checks for `n_ranks` ranks."""
    matches = ((name, re.fullmatch(r"check(\d*)_\w+", name)) for name in names)
    return [name for name, match in matches if match and int(match[1] or 1) <= n_ranks]


def equal(seen: object, expected: object) -> None:
    """Assert equality and show both values."""
    if seen != expected:
        raise AssertionError(f"seen {seen!r}, expected {expected!r}")


def holds(condition: object, text: object) -> None:
    """Assert `condition`; `text` explains."""
    if not condition:
        raise AssertionError(str(text))


class Caught:
    """Holder of the exception that `raises` saw."""

    exception: Any = None


@contextlib.contextmanager
def raises(*classes: type[BaseException], match: str = "") -> Iterator[Caught]:
    """Assert that the body raises one of `classes`, with `match` (a regular expression) somewhere in its text."""
    caught = Caught()
    try:
        yield caught
    except classes as exc:
        caught.exception = exc
        if not re.search(match, str(exc), re.DOTALL):
            raise AssertionError(f"{match!r} not in {exc!r}") from exc
    else:
        raise AssertionError(f"nothing raised, expected {classes}")


def eventually(condition: Callable[[], Any], text: str, timeout_s: float = 10.0) -> Any:
    """Poll `condition` until it is true and return its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        holds(time.monotonic() < deadline, f"not within {timeout_s} s: {text}")
        time.sleep(0.01)
    return value


def cpu_seconds(pid: int) -> float:
    """CPU time that all threads of a process have used so far, to the nanosecond."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/schedstat") as file:
            total += int(file.read().split()[0])
    return total * 1e-9


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
