"""What ``taskfarm run`` does for the launcher before it becomes one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import Launch, Result, is_openmpi

N_IDS = 300  # process ids from that of this program on, one of which the launcher gets
# Leaves what killed launchers with these ids would have left, then becomes `taskfarm run`.
LITTER = f"""
import os, sys
from pathlib import Path

for number in range(os.getpid(), os.getpid() + {N_IDS}):
    folder = Path(os.environ["PRTE_MCA_prte_tmpdir_base"], f"ompi.{{number}}")
    folder.mkdir()
    folder.joinpath(f"pmix.{{os.uname().nodename}}.tool").touch()
os.execv(sys.executable, [sys.executable, "-m", "taskfarm", "run", *sys.argv[1:]])
"""


@pytest.mark.skipif(not is_openmpi(), reason="its launcher only")
@pytest.mark.parametrize("options", [[], ["--survive"]], ids=["exec", "watched"])
def test_what_a_killed_launcher_left_is_no_obstacle(
    run_mpi: Launch[Result], tmp_path: Path, options: Sequence[str]
) -> None:
    """By itself Open MPI's launcher ends with status 213 if one with its process id was killed."""
    base = tmp_path / "base"
    base.mkdir()

    def command(n: int, target: Sequence[str]) -> Sequence[str]:
        return [sys.executable, "-c", LITTER, *options, "-n", str(n), *target]

    result = run_mpi("print('here')", 2, launcher=command, env={"PRTE_MCA_prte_tmpdir_base": str(base)}).check(0)
    assert result.stdout.split() == ["here", "here"]
    assert len(list(base.glob("ompi.*"))) == N_IDS - 1  # of all but the launcher, which removes its own
