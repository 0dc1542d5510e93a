"""The code blocks of the pages: how they are marked, checked and run. See `build.py`.

A mark is a comment in the line before the block; every block has one::

    <!-- runs -->                       Python, in one process
    <!-- runs: taskfarm run -n 4 -->    Python, under this command
    <!-- runs: console -->              the lines that begin with "$ taskfarm"; what follows each is its output
    <!-- runs: notebook -->             a cell; tests/mpi/test_ipython.py runs it
    <!-- prints -->                     output of the block before; lines with a "$" are the command
    <!-- not run: REASON -->            and why not

``<!-- runs: console, needs sklearn -->`` leaves the block out where that module is not installed. In expected output,
``...`` stands for anything; durations, rates and round-off errors may differ. Commands that begin with ``taskfarm`` go
through the parser of the command line, whether they are run or not, those in running text by their options.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 180  # for one block; the examples take some seconds
FOLDERS = (".", "docs", "examples", "benchmarks")  # where the pages are

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (runs|prints)(?:: ([^\n,]*?))?(?:, needs (\w+))? -->\n\Z")
_NOT_RUN = re.compile(r"<!-- not run: (\S[^\n]*) -->\n\Z")
_GENERATED = re.compile(r"<!-- diagram: \w+ -->\n\Z")
COMMANDS_PAGE = "docs/api.md"
COMMANDS = ("run", "info", "bench", "script", "doctor", "trace")
_SHELL = ("console", "sh", "bash")


@dataclass
class Block:
    """A fenced block of a page: its language and text, how it is run, and what it shall print (None: not said).

    `needs` is a module without which it is left out, `not_run` why it is not run.
    """

    page: str
    line: int
    language: str
    text: str
    runs: str | None = None
    prints: str | None = None
    needs: str | None = None
    not_run: str | None = None
    is_generated: bool = False
    is_output: bool = False

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def needs_mpi(self) -> bool:
        return bool(self.runs) and self.runs not in ("python", "notebook")


def pages() -> list[Path]:
    """Return every page."""
    return [page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, each with its mark."""
    text = page.read_text()
    blocks: list[Block] = []
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page_name(page), line, match[1], match[2])
        mark = _MARK.search(text, 0, match.start())
        if mark is not None and mark[1] == "prints":
            blocks[-1].prints = re.sub(r"^\$ .*\n", "", block.text, flags=re.MULTILINE)
            block.is_output = bool(blocks[-1].runs)
        elif mark is not None:
            block.runs, block.needs = mark[2] or "python", mark[3]
        elif reason := _NOT_RUN.search(text, 0, match.start()):
            block.not_run = reason[1]
        block.is_generated = _GENERATED.search(text, 0, match.start()) is not None
        blocks.append(block)
    return blocks


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in read_blocks(page)]


def check_marks() -> Iterator[str]:
    """Check that every block is run, is the output of one that is, is generated, or says why it is not run."""
    for block in all_blocks():
        if not (block.runs or block.is_output or block.is_generated or block.not_run):
            yield f"{block.name}: the block has no mark; have it run, or say why not"
    for page in pages():
        for match in re.finditer(r"^ *(```|~~~).*$", FENCE.sub("", page.read_text()), re.MULTILINE):
            yield f"{page_name(page)}: {match[0]!r}: blocks begin and end with ``` at the beginning of a line"


def check_commands() -> Iterator[str]:
    """Check that the parser of the command line takes the commands that the pages show."""
    for block in all_blocks():
        if block.language in _SHELL:
            for command in shell_commands(block):
                yield from (f"{block.name}: {command}: {problem}" for problem in parse(command))
    for page in pages():
        for span in re.findall(rf"`(taskfarm (?:{'|'.join(COMMANDS)})\b[^`\n]*)`", page.read_text()):
            yield from (f"{page_name(page)}: {span}: {problem}" for problem in unknown_options(span))


def shell_commands(block: Block) -> list[str]:
    """Return the commands of a shell block that are ours."""
    prefix = "$ " if block.language == "console" else ""
    lines = [line.removeprefix(prefix) for line in block.text.splitlines() if line.startswith(prefix)]
    return [line for line in lines if line.startswith("taskfarm ")]


def parse(command: str) -> Iterator[str]:
    """Yield what the parser has against a command."""
    from taskfarm.cli._arguments import new_parser, split_program

    words = shlex.split(command, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    n_words = {"run": 1, "script": 2}.get(words[0], 0)
    options, program = split_program(words[n_words:]) if n_words else (words, [])
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            new_parser().parse_args([*words[:n_words], *options])
    except SystemExit as exc:
        if exc.code:
            yield said.getvalue().strip().splitlines()[-1]
    if n_words and not program and "--ipython" not in options:
        yield "there is no program"


def options_of(command: str) -> list[list[str]]:
    """Return the options of a command, each with all its spellings."""
    from taskfarm.cli._arguments import new_parser

    for action in new_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [inner.option_strings for inner in action.choices[command]._actions if inner.option_strings]
    return []


def unknown_options(span: str) -> Iterator[str]:
    """Yield the options of a command in running text that the command does not have."""
    command, *words = span.split()[1:]
    known = {spelling for option in options_of(command) for spelling in option}
    for word in words:
        if word.endswith(".py") or word == "-m":
            return  # the rest belongs to the program
        if re.fullmatch(r"--?[a-zA-Z][a-z-]*", word) and word not in known:
            yield f"there is no {word}"


def check_options() -> Iterator[str]:
    """Check that every option of the command line stands on the page about it, where its command is."""
    page = (ROOT / COMMANDS_PAGE).read_text()
    for command in COMMANDS:
        grammar = re.search(rf"^taskfarm {command} .*?(?=^taskfarm|^```)", page, re.MULTILINE | re.DOTALL)
        section = re.search(rf"^\*\*{command}\*\* .*?(?=^\*\*|^#)", page, re.MULTILINE | re.DOTALL)
        text = "".join(part[0] for part in (grammar, section) if part)
        for option in options_of(command):
            if "--help" not in option and not any(re.search(rf"{word}(?![\w-])", text) for word in option):
                yield f"{COMMANDS_PAGE}: taskfarm {command} {option[-1]} is not documented"


def check_python_blocks() -> Iterator[str]:
    """Check that every Python block compiles."""
    for block in all_blocks():
        if block.language == "python":
            try:
                compile(block.text, block.name, "exec")
            except SyntaxError as exc:
                yield f"{block.name}: line {exc.lineno} of the block: {exc.msg}"


def check_runs(with_mpi: bool) -> Iterator[str]:
    """Run the marked blocks."""
    for block in all_blocks():
        if not block.runs or block.runs == "notebook" or (block.needs_mpi and not with_mpi):
            continue
        if block.needs and importlib.util.find_spec(block.needs) is None:
            print(f"leaving out {block.name}: it needs {block.needs}")
            continue
        print(f"running {block.name}", flush=True)
        yield from run_block(block)


def run_block(block: Block) -> Iterator[str]:
    """Run one block; yield what is wrong."""
    if block.runs == "console":
        for command, expected in console_commands(block.text):
            yield from _run(block.name, [sys.executable, "-m", *shlex.split(command)], ROOT, expected)
        return
    launcher = [] if block.runs == "python" else ["-m", *shlex.split(block.runs or "")]
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "block.py"
        script.write_text(block.text)
        yield from _run(block.name, [sys.executable, *launcher, str(script)], Path(folder), block.prints)


def console_commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of a console block that are ours, and the output of each."""
    parts = re.split(r"^\$ (.+)\n", text, flags=re.MULTILINE)[1:]
    return [(c, out) for c, out in zip(parts[::2], parts[1::2], strict=True) if c.startswith("taskfarm ")]


def _run(name: str, command: Sequence[str], folder: Path, expected: str | None) -> Iterator[str]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TASKFARM_")}
    if folder != ROOT:
        environ["TMPDIR"] = str(folder)  # what a block leaves goes with its folder
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        yield f"{name}: still running after {TIMEOUT_S} s"
        return
    shown = f"\n--- stdout\n{done.stdout}--- stderr\n{done.stderr}"
    if done.returncode:
        yield f"{name}: exit status {done.returncode}{shown}"
    elif expected is not None and not output_matches(expected, done.stdout):
        yield f"{name}: the output is not what the page says{shown}"


def output_matches(expected: str, actual: str) -> bool:
    """Tell whether `actual` is the output that the page shows."""
    pieces = [re.escape(_normal(piece)) for piece in _normal(expected).split("...")]
    return re.fullmatch(".*?".join(pieces), _normal(actual), re.DOTALL) is not None


def _normal(text: str) -> str:
    text = re.sub(r"\b\d+(\.\d+)? (s|ms|MB/s)\b", r"# \2", text)
    text = re.sub(r" *\b\d\.\de[-+]\d\d\b", " #", text)  # round-off, and the blanks that align it
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
