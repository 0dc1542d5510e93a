"""Check the documentation, and renew what is generated in it.

    python docs/build.py            renew the state diagrams, check everything, run the marked blocks
    python docs/build.py --check    the same, but write nothing
    python docs/build.py --no-mpi   leave out the blocks that need MPI

The exit status is 1 if anything is wrong or was out of date.

What is checked: links between pages lead to a page and a heading that exist; every Python block compiles; blocks that
are marked to run do so, and print what the page says; the state diagrams are those of the tables in the code; every
public name, its signature where one is shown, and every environment variable is documented; the error texts that the
list of questions begins with are in the code.

A mark is a comment in the line before the block::

    <!-- runs -->                       Python, in one process
    <!-- runs: taskfarm run -n 4 -->    Python, under this command
    <!-- runs: console -->              the lines that begin with "$ taskfarm"; what follows each is its output
    <!-- prints -->                     output of the Python block before

``<!-- runs: console, needs sklearn -->`` leaves the block out where that module is not installed. In expected output,
``...`` stands for anything; durations, rates and round-off errors may differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
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

# Where the names of each module are documented.
API_PAGES = {
    "taskfarm": "docs/api.md",
    "taskfarm.compat": "docs/api.md",
    "taskfarm.futures": "docs/api-futures.md",
    "taskfarm.objects": "docs/api-objects.md",
    "taskfarm.vm": "docs/api-vm.md",
    "taskfarm.vm.base": "docs/api-vm.md",
}
VARIABLES_PAGE = "docs/api.md"
INTERNAL_VARIABLES = {"TASKFARM_REPORT_STATUS"}  # set by `taskfarm run` for itself
ERRORS_PAGE = "docs/faq.md"
DIAGRAMS_PAGE = "docs/architecture.md"

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (runs|prints)(?:: ([^\n,]*?))?(?:, needs (\w+))? -->\n\Z")
_LINK = re.compile(r"(?<!\!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
_DIAGRAM = re.compile(r"(<!-- diagram: (\w+) -->\n)(.*?)(<!-- end of diagram -->)", re.DOTALL)


@dataclass
class Block:
    """A fenced block of a page: its language and text, how it is run, and what it shall print (None: not said).

    `needs` is a module without which it is left out.
    """

    page: str
    line: int
    language: str
    text: str
    runs: str | None = None
    prints: str | None = None
    needs: str | None = None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def needs_mpi(self) -> bool:
        return bool(self.runs) and self.runs != "python"


# Reading the pages


def pages() -> list[Path]:
    """Return every page."""
    return [page for folder in (".", "docs", "examples", "benchmarks") for page in sorted((ROOT / folder).glob("*.md"))]


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, each with its mark."""
    text = page.read_text()
    blocks: list[Block] = []
    for match in _FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page_name(page), line, match[1], match[2])
        mark = _MARK.search(text, 0, match.start())
        if mark is not None and mark[1] == "prints":
            blocks[-1].prints = block.text
        elif mark is not None:
            block.runs, block.needs = mark[2] or "python", mark[3]
        blocks.append(block)
    return blocks


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in read_blocks(page)]


# Checks; each yields what is wrong


def check_links() -> Iterator[str]:
    """Check that links to files and headings of this repository lead somewhere."""
    anchors = {page: heading_anchors(page) for page in pages()}
    for page in pages():
        prose = _FENCE.sub("", page.read_text())
        prose = re.sub(r"`[^`\n]*`", "", prose)
        for match in _LINK.finditer(prose):
            target = match[1] or match[2]
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                yield f"{page_name(page)}: link to {target}, which is not there"
            elif anchor and anchor not in anchors.get(file, set()):
                yield f"{page_name(page)}: link to {target}: that page has no such heading"


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors that the headings of a page get."""
    found: set[str] = set()
    for title in re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        n_same = sum(1 for other in found if re.fullmatch(re.escape(anchor) + r"(-\d+)?", other))
        found.add(f"{anchor}-{n_same}" if n_same else anchor)
    return found


def check_python_blocks() -> Iterator[str]:
    """Check that every Python block compiles."""
    for block in all_blocks():
        if block.language == "python":
            try:
                compile(block.text, block.name, "exec")
            except SyntaxError as exc:
                yield f"{block.name}: line {exc.lineno} of the block: {exc.msg}"


def check_names() -> Iterator[str]:
    """Check that every public name is documented, and that signatures in headings are right."""
    for module_name, page in API_PAGES.items():
        module = importlib.import_module(module_name)
        text = (ROOT / page).read_text()
        for name in module.__all__:
            if not name.startswith("_") and not re.search(rf"`(?:\w+\.)*{name}\b", text):
                yield f"{page}: {module_name}.{name} is not documented"
    machine = importlib.import_module("taskfarm.vm").MPI
    text = (ROOT / API_PAGES["taskfarm.vm"]).read_text()
    for name in (name for name in dir(machine) if not name.startswith("_")):
        if not re.search(rf"`(?:MPI\.)?{name}\b", text):
            yield f"{API_PAGES['taskfarm.vm']}: MPI.{name} is not documented"
    for page, owners in {
        "docs/api-futures.md": ["taskfarm.futures"],
        "docs/api-objects.md": ["taskfarm.objects"],
        "docs/api-vm.md": ["taskfarm.vm:MPI", "taskfarm.vm", "taskfarm.vm.base"],
        "docs/api.md": ["taskfarm.compat", "taskfarm"],
    }.items():
        for name, shown in re.findall(r"^###+ `(\w+)(\(.*\))`$", (ROOT / page).read_text(), re.MULTILINE):
            actual = signature_of(name, owners)
            if actual is None:
                yield f"{page}: {name} is documented, but is not there"
            elif actual != shown:
                yield f"{page}: {name}{shown} is really {name}{actual}"


def signature_of(name: str, owners: Sequence[str]) -> str | None:
    """Return the signature, without annotations, of a function or class of the first of `owners` that has it."""
    for owner in owners:
        module_name, _, class_name = owner.partition(":")
        holder = importlib.import_module(module_name)
        holder = getattr(holder, class_name) if class_name else holder
        thing = inspect.getattr_static(holder, name, None)
        if thing is None:
            continue
        is_method = class_name and not isinstance(thing, staticmethod)
        signature = inspect.signature(getattr(holder, name))
        parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        return str(inspect.Signature(parameters[1:] if is_method else parameters))
    return None


def check_modules() -> Iterator[str]:
    """Check that the modules which the description of the architecture names are there."""
    text = (ROOT / DIAGRAMS_PAGE).read_text()
    for layer, module in sorted(set(re.findall(r"`(wire|scheduling|transport|runtime)[./](\w+)", text))):
        if not (ROOT / "taskfarm" / layer / f"{module}.py").exists():
            yield f"{DIAGRAMS_PAGE}: taskfarm.{layer}.{module} is not there"


def check_variables() -> Iterator[str]:
    """Check that the environment variables of the code are documented, and that no others are."""
    pattern = re.compile(r"\b(?:TASKFARM|PARALLEL)_[A-Z_]+\b")
    source = "\n".join(path.read_text() for path in sorted((ROOT / "taskfarm").rglob("*.py")))
    known = set(pattern.findall(source)) - INTERNAL_VARIABLES
    documented = set(pattern.findall((ROOT / VARIABLES_PAGE).read_text()))
    for name in sorted(known - documented):
        yield f"{VARIABLES_PAGE}: {name} is not documented"
    for page in pages():
        for name in sorted(set(pattern.findall(page.read_text())) - known - INTERNAL_VARIABLES):
            yield f"{page_name(page)}: {name} is not known to the code"


def check_error_texts() -> Iterator[str]:
    """Check that the error texts that stand in headings are in the code."""
    source = "\n".join(path.read_text() for path in sorted((ROOT / "taskfarm").rglob("*.py")))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # literals that continue in the next line
    for heading in re.findall(r"^#+ `(.+)`$", (ROOT / ERRORS_PAGE).read_text(), re.MULTILINE):
        for piece in heading.split("..."):
            if piece.strip(" :,") and piece.strip() not in source:
                yield f"{ERRORS_PAGE}: {piece.strip()!r} of {heading!r} is not a text of the code"


# Running


def check_runs(with_mpi: bool) -> Iterator[str]:
    """Run the marked blocks."""
    for block in all_blocks():
        if not block.runs or (block.needs_mpi and not with_mpi):
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


# The diagrams


def diagrams() -> dict[str, str]:
    """Return the state diagrams by name."""
    from taskfarm.runtime.session import PHASE_TABLE, Phase
    from taskfarm.scheduling.calls import CALL_TABLE, CallState
    from taskfarm.scheduling.farm import SLOT_TABLE, TASK_TABLE, SlotState, TaskState
    from taskfarm.scheduling.machine import to_mermaid

    return {
        "session": to_mermaid(PHASE_TABLE, Phase.IDLE),
        "slot": to_mermaid(SLOT_TABLE, SlotState.FREE),
        "task": to_mermaid(TASK_TABLE, TaskState.RUNNING),
        "call": to_mermaid(CALL_TABLE, CallState.RUNNING),
    }


def check_diagrams(write: bool) -> Iterator[str]:
    """Compare the diagrams of the page with the tables, and write them anew if they differ and `write`."""
    page = ROOT / DIAGRAMS_PAGE
    text = page.read_text()
    fresh = diagrams()
    shown = {match[2] for match in _DIAGRAM.finditer(text)}
    for name in sorted(shown ^ fresh.keys()):
        yield f"{DIAGRAMS_PAGE}: diagram {name!r} is {'unknown' if name in shown else 'missing'}"

    def renew(match: re.Match[str]) -> str:
        diagram = fresh.get(match[2])
        return match[0] if diagram is None else f"{match[1]}```mermaid\n{diagram}\n```\n{match[4]}"

    renewed = _DIAGRAM.sub(renew, text)
    if renewed != text:
        if write:
            page.write_text(renewed)
        yield f"{DIAGRAMS_PAGE}: the diagrams were out of date" + (" and have been renewed" if write else "")


def main() -> int:
    """Run the command line; the exit status is 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="Check the documentation, and renew what is generated in it.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--no-mpi", action="store_true", help="leave out the blocks that need MPI")
    options = parser.parse_args()
    problems = [
        *check_diagrams(write=not options.check),
        *check_links(),
        *check_python_blocks(),
        *check_names(),
        *check_modules(),
        *check_variables(),
        *check_error_texts(),
        *check_runs(with_mpi=not options.no_mpi),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(pages())} pages, {len(all_blocks())} blocks, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
