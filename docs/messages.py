"""The error texts of the code, and whether a user finds them on the page of questions. See `build.py`.

A text is looked up by the page's *keys*: the code in its headings, and that in the first column of its tables. A key
fits a text if its pieces, which ``...`` separates, stand in the text in this order, so it may leave out what an error
interpolates.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from blocks import FENCE, ROOT

ERRORS_PAGE = "docs/faq.md"
MIN_PIECE = 8  # letters, of the longest piece of a key: shorter ones would fit anything
GAP = "\N{HORIZONTAL ELLIPSIS}"  # for what a text interpolates

# The exceptions whose texts users get to see. `ProtocolError` and `InternalError` ask for a report, by their names.
SHOWN = {
    "ArgumentTypeError", "ImportError", "JournalError", "KeyError", "NotImplementedError", "RemoteError",
    "RuntimeError", "TaskTimeoutError", "TypeError", "UnknownObjectError", "UsageError", "ValueError",
    "WorkerLostError",
}  # fmt: skip

# Whose texts are not for users of the library, by the beginning of the file's name.
NOT_SHOWN = {
    "taskfarm/bench/": "about the benchmark itself",
    "taskfarm/testing/": "tasks of the simulator, which are meant to fail",
    "taskfarm/cli/_watch.py": "caught where strangers connect",
    "taskfarm/runtime/survival/hub.py": "caught where strangers connect",
    "taskfarm/runtime/lines.py": "caught where strangers connect",
    "taskfarm/runtime/watcher.py": "caught where strangers connect",
}

# Texts that need no entry: whose words they are, or why nobody meets them.
NO_ENTRY = {
    "chunksize must be >= 1.": "concurrent.futures",
    "buffersize must be an integer or None": "concurrent.futures",
    "buffersize must be None or > 0": "concurrent.futures",
    "buffersize must be None if unordered": "mpi4py.futures",
    "max_workers must be greater than 0": "concurrent.futures",
    "initializer must be a callable": "concurrent.futures",
    f"{GAP} object is not callable": "the interpreter",
    f"{GAP} not ready": "multiprocessing",
    "n_jobs == 0 in Parallel has no meaning": "joblib",
    "communicator is not accessible": "mpi4py.futures",
    "__enter__": "mpi4py.futures",
    "cannot bootup after shutdown": "mpi4py.futures",
    "expecting an intracommunicator": "mpi4py.futures",
    "expecting root in range(comm.size)": "mpi4py.futures",
    f"expecting {GAP} items, one per rank": "mpi4py",
    f"journal {GAP}: {GAP}": "SQLite",
    f"ranks={GAP}: {GAP}": "the reason is a text of runtime/executor/teams.py, which has an entry",
    f"dest={GAP} is not another rank of {GAP}": "the callers have checked it",
    f"dest={GAP} is not connected to rank {GAP}": "the callers have checked it",
    "an executor is made on rank 0": "inside calls and tasks executors work with threads",
    "an executor without workers": "the callers have checked it",
    "a group of tasks inside a task": "the callers have checked it",
}

# Errors whose whole text is made elsewhere, by file: a part of each such text.
MADE_ELSEWHERE = {
    "taskfarm/cli/run.py": ["separate worlds of one rank"],
    "taskfarm/futures/_placed.py": ["no task like this can ever run"],
    "taskfarm/runtime/caller.py": [" failed on "],
    "taskfarm/runtime/controller.py": [" is lost, since rank "],
    "taskfarm/runtime/launching/launchers.py": ["needs a launcher of that family"],
    "taskfarm/runtime/runner.py": [" failed on "],
    "taskfarm/runtime/launching/start.py": ["separate worlds of one rank"],
    "taskfarm/runtime/executor/team_desk.py": ["no workers are left that could run the task"],
    "taskfarm/runtime/work.py": [" cannot be pickled ", "the arguments cannot be pickled together"],
    "taskfarm/transport/arrays.py": ["part has rows of shape", "has no rows (it is 0-dimensional)", "array has shape"],
    "taskfarm/vm/_sides.py": ["taskfarm.vm.MPI needs MPI, which cannot be loaded"],
    "taskfarm/vm/_status.py": [],  # the name of a host, as of any dictionary
}


@dataclass(frozen=True)
class Text:
    """What one ``raise`` says; `text` has a gap for each value, and is only a gap if it is made elsewhere."""

    file: str
    line: int
    exception: str
    text: str


def raised_texts() -> list[Text]:
    """Return the texts of all errors of the package, in the order of the files."""
    found = []
    for path in sorted((ROOT / "taskfarm").rglob("*.py")):
        tree = ast.parse(path.read_text())
        constants = _constants(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := _name_of(node.func)) in SHOWN and node.args:
                text = _text_of(node.args[0], constants)
                found.append(Text(path.relative_to(ROOT).as_posix(), node.lineno, name, text))
    return found


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module gives names to."""
    return {
        target.id: _text_of(node.value, {})
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant | ast.JoinedStr | ast.BinOp)
    }


def _name_of(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _text_of(node: ast.expr, constants: dict[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(value, constants) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text_of(node.value, constants) if isinstance(node.value, ast.Name) else GAP
    if isinstance(node, ast.Name):
        return constants.get(node.id, GAP)
    if isinstance(node, ast.BinOp):
        return _text_of(node.left, constants) + _text_of(node.right, constants)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{.*?\}", GAP, _text_of(node.func.value, constants))
    return GAP


def keys() -> list[str]:
    """Return what errors are found by on the page of questions."""
    text = FENCE.sub("", (ROOT / ERRORS_PAGE).read_text())
    headings = re.findall(r"^#+ (.*`.*)$", text, re.MULTILINE)
    cells = re.findall(r"^\| (`.*?`) \| ", text, re.MULTILINE)
    return [key for place in [*headings, *cells] for key in re.findall(r"`([^`]+)`", place)]


def pieces(key: str) -> list[str]:
    return [piece.strip() for piece in key.split("...") if piece.strip(" :,")]


def fits(key: str, text: str) -> bool:
    """Tell whether a key names a text."""
    position = 0
    for piece in pieces(key):
        position = text.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return max(map(len, pieces(key)), default=0) >= MIN_PIECE


def check_errors_are_listed() -> Iterator[str]:
    """Check that whoever searches the page for the text of an error finds it."""
    known = keys()
    named = "\n".join(known)
    for file, parts in MADE_ELSEWHERE.items():
        yield from (f"{ERRORS_PAGE}: nothing about {part!r} ({file})" for part in parts if part.strip() not in named)
    for found in raised_texts():
        words = found.text.replace(GAP, "").strip(" :()'")
        if found.text in NO_ENTRY or found.file.startswith(tuple(NOT_SHOWN)):
            continue
        if not words and found.file in MADE_ELSEWHERE:
            continue
        if not any(fits(key, found.text) for key in known):
            yield f"{ERRORS_PAGE}: nothing about {found.exception}: {found.text!r} ({found.file}:{found.line})"


def check_error_texts() -> Iterator[str]:
    """Check that the texts on the page are in the code."""
    source = "\n".join(path.read_text() for path in sorted((ROOT / "taskfarm").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # literals that continue in the next line
    for key in keys():
        for piece in pieces(key):
            if piece not in source:
                yield f"{ERRORS_PAGE}: {piece!r} of {key!r} is not a text of the code"
