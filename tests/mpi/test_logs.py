"""``taskfarm run --log``, ``--forward-logs`` and ``--tag-output``: who said what."""

from __future__ import annotations

import re

import pytest
from harness import Launch, Result, is_openmpi

PROGRAM = """
    import logging
    import sys
    import threading

    from taskfarm import Executor

    logger = logging.getLogger("mine")


    def work(x):
        logger.info("item %d", x)
        thread = threading.Thread(target=logger.warning, args=("aside %d", x))
        thread.start()
        thread.join()
        return x


    if __name__ == "__main__":
        logger.info("starts")
        with Executor() as executor:
            list(executor.map(work, range(3)))
        print("done")
"""


@pytest.mark.parametrize("forwarded", [False, True])
def test_lines_of_all_ranks(run_mpi: Launch[Result], forwarded: bool) -> None:
    """Every record is one line that begins with rank and host; forwarded, none is lost, and all are rank 0's."""
    options = " --forward-logs --tag-output" if forwarded else ""
    result = run_mpi(PROGRAM, 3, launcher=f"taskfarm run --log info{options}").check(0)
    text = result.stderr if not forwarded or is_openmpi() else result.output
    found = re.findall(r"^(.*?)rank (\d) (\S+) [\d:.]+ (\w+) ([\w.]+): (.*)$", text, re.MULTILINE)
    said = [(int(rank), level, message) for _, rank, _, level, name, message in found if name == "mine"]
    assert sorted((level, message) for _, level, message in said if message != "starts") == sorted(
        [("INFO", f"item {x}") for x in range(3)] + [("WARNING", f"aside {x}") for x in range(3)]
    )
    assert {rank for rank, _, message in said if message != "starts"} <= {1, 2}
    ready = [(int(rank), message) for _, rank, _, _, name, message in found if name == "taskfarm.runtime.sides"]
    assert (0, "2 workers on 1 hosts are ready") in ready
    assert {(1, "serves"), (2, "serves")} <= set(ready)
    if forwarded:
        tags = {tag for tag, *_, name, _ in found if name.startswith("taskfarm") or name == "mine"}
        assert len(tags) == 1, "a tag of the launcher for rank 0 alone"
        assert "0" in tags.pop()
        (line,) = [line for line in result.stdout.splitlines() if line.endswith("done")]
        assert re.match(r"\[(\w+,)?0\]", line) or re.match(r"\[.*0\]<stdout>", line)


@pytest.mark.parametrize("unbuffered", ["1", None])
def test_tags_stand_before_whole_lines(run_mpi: Launch[Result], unbuffered: str | None) -> None:
    """However Python buffers: a launcher tags what it reads, which may be half a line."""
    program = """
        for number in range(1500):
            print("line", number, "x" * (number % 50))
    """
    result = run_mpi(program, 2, launcher="taskfarm run --tag-output", env={"PYTHONUNBUFFERED": unbuffered}).check(0)
    lines = [re.fullmatch(r"\[.*?(\d)\]\D*(line \d+ x*)", line) for line in result.stdout.splitlines()]
    expected = [f"line {number} {'x' * (number % 50)}" for number in range(1500)]
    for rank in "01":
        assert [found[2] for found in lines if found is not None and found[1] == rank] == expected
