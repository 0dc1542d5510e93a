"""``taskfarm run --ipython``: a session as a notebook has it. Cells call, spawn, fail, are interrupted, and go on."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Job, start_job
from test_readme import DOCS

jupyter_client = pytest.importorskip("jupyter_client")

N_RANKS = 3
LIMIT_S = 60.0


class Notebook:
    """A client of the kernel on rank 0."""

    def __init__(self, job: Job, connection_file: Path) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not (connection_file.exists() and connection_file.read_text().endswith("}")):
            assert time.monotonic() < deadline, "the kernel does not come up"
            time.sleep(0.05)
        self.job = job
        self.client = jupyter_client.BlockingKernelClient(connection_file=str(connection_file))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT_S)

    def run(self, code: str) -> str:
        """Run a cell; return what it printed, and the exception that ended it."""
        return self.result(self.client.execute(code))

    def result(self, request: str) -> str:
        """Return what the cell of `request` printed and raised."""
        reply = self.client.get_shell_msg(timeout=LIMIT_S)
        assert reply["parent_header"]["msg_id"] == request
        text = ""
        while True:
            message: dict[str, Any] = self.client.get_iopub_msg(timeout=LIMIT_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
            elif message["msg_type"] == "execute_result":
                text += content["data"]["text/plain"]
            elif message["msg_type"] == "error":
                text += f"{content['ename']}: {content['evalue']}"
            elif message["msg_type"] == "status" and content["execution_state"] == "idle":
                return re.sub(r"\x1b\[[\d;]*m", "", text)

    def interrupt(self) -> None:
        """Do what the button does."""
        message = self.client.session.msg("interrupt_request", content={})
        self.client.control_channel.send(message)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    work_dir = tmp_path_factory.mktemp("ipython") / "job"
    command = ["run", "-n", str(N_RANKS), "--ipython", "--connection-file", "kernel.json"]

    def launcher(n: int, target: object) -> list[str]:
        return [sys.executable, "-m", "taskfarm", *command]

    job = start_job("", N_RANKS, work_dir=work_dir, launcher=launcher)
    book: Notebook | None = None
    try:
        book = Notebook(job, work_dir / "kernel.json")
        yield book
        book.client.shutdown()
        result = job.finish(timeout_s=LIMIT_S)
        assert result.status == 0, result.describe()
    finally:
        if book is not None:
            book.client.stop_channels()
        job.kill()


def test_calls_reach_all_ranks(notebook: Notebook) -> None:
    """A function that a cell has defined runs everywhere."""
    notebook.run("from taskfarm import Executor, objects\ndef where():\n    return objects.comm.rank\n")
    assert notebook.run("print(objects.call_all(where))") == "[0, 1, 2]\n"


def test_tasks_of_cells_run_on_workers(notebook: Notebook) -> None:
    notebook.run("executor = Executor()\ndef square(x):\n    return x * x\n")
    assert notebook.run("print(list(executor.map(square, range(5))))") == "[0, 1, 4, 9, 16]\n"
    notebook.run("def square(x):\n    return -x * x\n")
    assert notebook.run("print(executor.submit(square, 3).result())") == "-9\n"


def test_a_failure_ends_its_cell_only(notebook: Notebook) -> None:
    text = notebook.run("executor.submit(lambda: 1 / 0).result()")
    assert "ZeroDivisionError: division by zero" in text
    assert notebook.run("print(executor.submit(square, 2).result())") == "-4\n"


def test_an_interrupt_ends_its_cell_only(notebook: Notebook) -> None:
    """While it waits for a task; the task goes on, and so does the farm."""
    notebook.run("import time; future = executor.submit(time.sleep, 1.5)")
    request = notebook.client.execute("future.result()")
    time.sleep(0.5)
    notebook.interrupt()
    assert "KeyboardInterrupt" in notebook.result(request)
    assert notebook.run("print(future.result())") == "None\n"
    assert (
        notebook.run("print(list(executor.map(square, range(3))), objects.call_all(where))")
        == "[0, -1, -4] [0, 1, 2]\n"
    )


def test_a_cell_that_waits_in_the_library_may_be_interrupted_often(notebook: Notebook) -> None:
    """No message is lost by it."""
    for _ in range(5):
        request = notebook.client.execute("while True:\n    list(executor.map(square, range(200)))")
        time.sleep(0.2)
        notebook.interrupt()
        assert "KeyboardInterrupt" in notebook.result(request)
    assert notebook.run("print(sum(executor.map(square, range(1000))))") == f"{-sum(x * x for x in range(1000))}\n"


def test_a_collective_cell_runs_on_all_ranks(notebook: Notebook) -> None:
    """Each rank keeps its names from cell to cell; on rank 0 they are those of the session."""
    notebook.run("%%collective\nfrom taskfarm import objects\nmine = [objects.rank] * 2\n")
    notebook.run("mine.append('session')")
    notebook.run("%%collective\nmine.append(objects.comm.allreduce(1))\n")
    assert notebook.run("%%collective\nobjects.comm.gather(mine)\n") == ("[[0, 0, 'session', 3], [1, 1, 3], [2, 2, 3]]")
    assert notebook.run("mine") == "[0, 0, 'session', 3]"


def test_a_collective_cell_is_plain_python(notebook: Notebook) -> None:
    """Definitions mean what they mean in a script: settings of our own modules do not leak into them."""
    notebook.run("%%collective\nimport dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int\n")
    assert notebook.run("%%collective\nobjects.comm.gather(Point(objects.rank).x)\n") == "[0, 1, 2]"
    assert notebook.run("%%collective --all\nPoint.__annotations__['x']\n").count("<class 'int'>") == 2


def test_a_collective_cell_shows_what_rank_0_prints_and_on_request_the_others(notebook: Notebook) -> None:
    cell = "print('one', objects.rank)\nprint('two')\nobjects.rank + 10\n"
    assert notebook.run(f"%%collective\n{cell}") == "one 0\ntwo\n10"
    assert notebook.run(f"%%collective --all\n{cell}") == (
        "one 0\ntwo\n10[1] one 1\n[1] two\n[1] 11\n[2] one 2\n[2] two\n[2] 12\n"
    )


def test_a_failure_in_a_collective_cell_is_shown_with_its_rank(notebook: Notebook) -> None:
    """The farm stays usable, whichever rank it was; its lines are in the traceback."""
    text = notebook.run("%%collective\nif objects.rank == 1:\n    1 / (objects.rank - 1)  # the culprit\n")
    assert "RemoteError" in text
    assert "failed on rank 1" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "# the culprit" in text
    assert "rank 2" not in text
    assert "KeyError: 'zero'" in notebook.run("%%collective\nif objects.rank == 0:\n    raise KeyError('zero')\n")
    assert "NameError" in notebook.run("%%collective\nno_such_name\n")
    assert notebook.run("%%collective\nobjects.comm.allgather(len(mine))\n") == "[4, 3, 3]"
    assert notebook.run("print(list(executor.map(square, range(3))))") == "[0, -1, -4]\n"


def test_a_wrong_collective_cell_is_not_sent(notebook: Notebook) -> None:
    assert "SyntaxError" in notebook.run("%%collective\nmine = 1\ndef :\n")
    assert "UsageError: %%collective --quiet: the one option is --all" in notebook.run(
        "%%collective --quiet\nmine = 1\n"
    )
    assert notebook.run("%%collective\nobjects.comm.allgather(len(mine))\n") == "[4, 3, 3]"


def test_an_interrupt_ends_a_collective_cell(notebook: Notebook) -> None:
    """On rank 0 at once; the others come to the end of theirs."""
    request = notebook.client.execute("%%collective\nimport time\ntime.sleep(1.5 if objects.rank else 20)\n")
    time.sleep(0.5)
    notebook.interrupt()
    assert "KeyboardInterrupt" in notebook.result(request)
    assert notebook.run("%%collective\nobjects.comm.allreduce(1)\n") == "3"


def test_the_cell_of_the_documentation(notebook: Notebook) -> None:
    """It prints what the page says."""
    (block,) = [block for block in DOCS.all_blocks() if block.runs == "notebook"]
    assert DOCS.output_matches(block.prints, notebook.run(block.text).replace("66[1]", "66\n[1]"))
