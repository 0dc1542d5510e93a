"""Programs that hold many checks: run each once per number of ranks, report every check as a test of its own.

A check that hangs or ends its job is reported as failed; the checks behind it are run in a new job, so that one
fault does not hide the rest.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from harness import PROGRAMS, SUPPORT, start_job

sys.path.insert(0, str(SUPPORT))

from tf_checks import selected

MAX_RESTARTS = 6
JOB_LIMIT_S = 150.0
JOB_END = "job_ends"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a check ended; `text` explains a failure."""

    passed: bool
    text: str = ""


class Checklist:
    """Runs programs on demand and keeps the outcomes."""

    def __init__(self, base_dir: Path) -> None:
        self._base_dir = base_dir
        self._outcomes: dict[tuple[str, int, str, frozenset[tuple[str, str]]], dict[str, Outcome]] = {}

    def verify(
        self, program: str, n: int, name: str, *, launcher: str = "mpiexec", env: Mapping[str, str] | None = None
    ) -> None:
        """Fail unless the check `name` of `program` passed on `n` ranks, with `env` in the environment."""
        key = (program, n, launcher, frozenset((env or {}).items()))
        if key not in self._outcomes:
            self._outcomes[key] = self._run(program, n, launcher, env or {})
        outcomes = self._outcomes[key]
        not_reached = Outcome(False, "the job ended before this check\n" + outcomes.get(JOB_END, Outcome(False)).text)
        outcome = outcomes.get(name, not_reached)
        if not outcome.passed:
            pytest.fail(f"{program} on {n} ranks: {name}\n{outcome.text}", pytrace=False)

    def _run(self, program: str, n: int, launcher: str, added: Mapping[str, str]) -> dict[str, Outcome]:
        names = check_names(program, n)
        outcomes: dict[str, Outcome] = {}
        after = ""
        for attempt in range(MAX_RESTARTS):
            name = "-".join([Path(program).stem, str(n), launcher.split()[0], *sorted(added), str(attempt)])
            work_dir = self._base_dir / name
            env = {
                **added,
                "TF_CHECKS_AFTER": after,
                "PARALLEL_LOCAL_STORAGE": str(work_dir / "local"),
                "PARALLEL_MIRRORED_STORAGE": str(work_dir / "mirror"),
            }
            job = start_job(PROGRAMS / program, n, work_dir=work_dir, env=env, launcher=launcher)
            end = Outcome(True)
            try:
                result = job.finish(timeout_s=JOB_LIMIT_S)
                if result.status != 0:
                    end = Outcome(False, result.describe())
            except pytest.fail.Exception as exc:
                end = Outcome(False, str(exc))
            finally:
                job.kill()
            running = _read(work_dir / "logs" / "checks.jsonl", outcomes)
            if running is None:
                outcomes[JOB_END] = end
                break
            outcomes[running] = Outcome(False, f"the job broke off in this check\n{end.text}")
            if running == names[-1]:
                break
            after = running
        return outcomes


def check_names(program: str, n: int) -> list[str]:
    """Names of the checks in `program` for `n` ranks, in the order of the source text."""
    tree = ast.parse((PROGRAMS / program).read_text())
    return selected([node.name for node in tree.body if isinstance(node, ast.FunctionDef)], n)


def cases(program: str, sizes: Iterable[int] = (1, 2, 4)) -> list[tuple[int, str]]:
    """Parameters ``(n, name)`` of the test that reports `program`; the last one of each size is the end of the job."""
    return [(n, name) for n in sizes for name in [*check_names(program, n), JOB_END]]


def _read(log: Path, outcomes: dict[str, Outcome]) -> str | None:
    """Add the outcomes of one job; return the check that was running when the job broke off, if it did."""
    running = None
    for line in log.read_text().splitlines() if log.exists() else []:
        event = json.loads(line)
        running = event["name"] if event["event"] == "start" else None
        if running is None:
            outcomes[event["name"]] = Outcome(event["event"] == "pass", event["text"])
    return running
