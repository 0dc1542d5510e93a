"""``taskfarm script``: print a batch script for a cluster, from the templates beside this file.

A template is the script itself, with ``@NAME@`` where something is put in. Where nothing is, the line is left out, and
with it the comments before it that begin with ``#:``.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from taskfarm.errors import UsageError

__all__ = ["execute", "fill"]

_FOLDER = Path(__file__).parent / "templates"
_PLACE = re.compile(r"@([A-Z_]+)@")
_TIME = re.compile(r"(\d+):([0-5]\d)(?::([0-5]\d))?")
_NAME = re.compile(r"[A-Za-z][\w.-]*")

_REQUEUE_SLURM = """\
# Once more after a failure (2 is a wrong command line), up to {n} times: this script starts from its beginning.
if [ $status -ne 0 ] && [ $status -ne 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {n} ]; then
    echo "status $status: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
"""
# Not by qrerun, which PBS keeps for its operators (qrerun.1B of OpenPBS).
_AGAIN_PBS = """\
# Once more after a failure (2 is a wrong command line), up to {n} times, on the same hosts.
attempt=1
while [ $status -ne 0 ] && [ $status -ne 2 ] && [ $attempt -le {n} ]; do
    attempt=$((attempt + 1))
    echo "status $status: attempt $attempt"
    {command}
    status=$?
done
"""


def execute(options: argparse.Namespace, program: Sequence[str]) -> int:
    """Print the script.

    Raises
    ------
    UsageError
        If something is missing, or cannot be.
    """
    print(fill((_FOLDER / f"{options.system}.sh").read_text(), _values(options, program)), end="")
    return 0


def _values(options: argparse.Namespace, program: Sequence[str]) -> dict[str, str]:
    if not program or program == ["-m"]:
        raise UsageError("nothing to run: give a script, or -m and a module (see taskfarm script --help)")
    if options.ranks < options.nodes:
        raise UsageError(f"-n {options.ranks}: fewer ranks than the {options.nodes} hosts of -N")
    name = options.name or (program[1].split(".")[-1] if program[0] == "-m" else Path(program[0]).stem)
    if not _NAME.fullmatch(name):
        raise UsageError(f"--name {name!r}: batch systems want a letter, then letters, digits, dots, dashes")
    match = _TIME.fullmatch(options.time)
    if match is None:
        raise UsageError(f"--time {options.time!r} is not HH:MM:SS")
    per_node = math.ceil(options.ranks / options.nodes)
    run_options = [f"--{flag}" for flag in ("survive", "isolate") if getattr(options, flag)]
    for option in ("journal", "trace"):
        if path := getattr(options, option):
            run_options += [f"--{option}", path]
    words = shlex.join([*run_options, *program])
    return {
        "NAME": name,
        "NODES": str(options.nodes),
        "RANKS": str(options.ranks),
        "RANKS_PER_NODE": str(per_node),
        "CORES": str(options.cores) if options.cores > 1 else "",
        "CORES_PER_NODE": str(per_node * options.cores),
        "THREADS": str(options.cores),
        "TIME": f"{int(match[1]):02d}:{match[2]}:{match[3] or '00'}",
        "TIME_HM": f"{int(match[1])}:{match[2]}",
        "QUEUE": options.queue or "",
        "ACCOUNT": options.account or "",
        "SOFTWARE": "\n".join(_software(options.module, options.venv)),
        "WORDS": words,
        **_requeue(options.system, options.requeue, f"taskfarm run -n {options.ranks} {words}"),
    }


def _software(modules: Sequence[str], venv: str | None) -> list[str]:
    lines = [f"module load {shlex.quote(module)}" for module in modules]
    if lines:
        lines.insert(0, "module purge")
    if venv:
        lines.append(f". {shlex.quote(os.path.join(os.path.expanduser(venv), 'bin', 'activate'))}")
    return lines


def _requeue(system: str, n: int, command: str) -> dict[str, str]:
    if not n:
        return {"REQUEUE_FLAG": "", "REQUEUE": ""}
    if system == "slurm":
        return {"REQUEUE_FLAG": "--requeue", "REQUEUE": _REQUEUE_SLURM.format(n=n)}
    if system == "pbs":
        return {"REQUEUE_FLAG": "-r y", "REQUEUE": _AGAIN_PBS.format(n=n, command=command)}
    return {"REQUEUE_FLAG": '-r -Q "75 137"', "REQUEUE": ""}


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return `template` with `values` in their places."""
    text = "\n".join(_filled_lines(template.splitlines(), values)) + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def _filled_lines(lines: Sequence[str], values: Mapping[str, str]) -> Iterator[str]:
    comments: list[str] = []
    for line in lines:
        if line.startswith("#: "):
            comments.append("# " + line[3:])
            continue
        names = _PLACE.findall(line)
        if names and not any(values[name] for name in names):
            comments = []
            continue
        yield from comments
        comments = []
        yield _PLACE.sub(lambda match: values[match[1]], line)
