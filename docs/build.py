"""Check the documentation, and renew what is generated in it.

    python docs/build.py            renew the state diagrams, check everything, run the marked blocks
    python docs/build.py --check    the same, but write nothing
    python docs/build.py --no-mpi   leave out the blocks that need MPI

The exit status is 1 if anything is wrong or was out of date. `make docs` runs this, and then `website.py`.

What is checked: links between pages lead to a page and a heading that exist; every page is in the list of pages; every
block is run or says why it is not, and prints what the page says (`blocks.py`); commands and options are those of the
command line; the state diagrams are those of the tables in the code; every public name, its signature where one is
shown, and every environment variable is documented; every error text of the code can be found in the list of
questions (`messages.py`).
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent)) if path not in sys.path]

from blocks import (  # noqa: E402 - found only now
    FENCE,
    ROOT,
    all_blocks,
    check_commands,
    check_marks,
    check_options,
    check_python_blocks,
    check_runs,
    page_name,
    pages,
)
from messages import check_error_texts, check_errors_are_listed  # noqa: E402
from website import check_page_list  # noqa: E402

# Where the names of each module are documented.
API_PAGES = {
    "taskfarm": "docs/api.md",
    "taskfarm.compat": "docs/api.md",
    "taskfarm.futures": "docs/api-futures.md",
    "taskfarm.objects": "docs/api-objects.md",
    "taskfarm.testing": "docs/testing.md",
    "taskfarm.vm": "docs/api-vm.md",
    "taskfarm.vm.base": "docs/api-vm.md",
}
VARIABLES_PAGE = "docs/api.md"
INTERNAL_VARIABLES = {"TASKFARM_REPORT_STATUS", "TASKFARM_WATCHDOG"}  # set by `taskfarm run` for itself
DIAGRAMS_PAGE = "docs/architecture.md"

_LINK = re.compile(r"(?<!\!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")
_DIAGRAM = re.compile(r"(<!-- diagram: (\w+) -->\n)(.*?)(<!-- end of diagram -->)", re.DOTALL)


def check_links() -> Iterator[str]:
    """Check that links to files and headings of this repository lead somewhere."""
    anchors = {page: heading_anchors(page) for page in pages()}
    for page in pages():
        prose = FENCE.sub("", page.read_text())
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
    for title in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        n_same = sum(1 for other in found if re.fullmatch(re.escape(anchor) + r"(-\d+)?", other))
        found.add(f"{anchor}-{n_same}" if n_same else anchor)
    return found


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
    for name in sorted(set(re.findall(r"`((?:wire|scheduling|transport|runtime)(?:[./]\w+)+)", text))):
        path = ROOT.joinpath("taskfarm", *re.split("[./]", name.removesuffix(".py")))
        if not (path.with_suffix(".py").exists() or path.is_dir()):
            yield f"{DIAGRAMS_PAGE}: taskfarm.{name} is not there"


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
    """Compare the diagrams of the pages with the tables, and write them anew if they differ and `write`."""
    fresh = diagrams()
    shown: set[str] = set()

    def renew(match: re.Match[str]) -> str:
        diagram = fresh.get(match[2])
        return match[0] if diagram is None else f"{match[1]}```mermaid\n{diagram}\n```\n{match[4]}"

    for page in pages():
        text = page.read_text()
        shown |= {match[2] for match in _DIAGRAM.finditer(text)}
        renewed = _DIAGRAM.sub(renew, text)
        if renewed != text:
            if write:
                page.write_text(renewed)
            yield f"{page_name(page)}: the diagrams were out of date" + (" and have been renewed" if write else "")
    for name in sorted(shown ^ fresh.keys()):
        yield f"diagram {name!r} is {'unknown' if name in shown else 'missing'}"


def main() -> int:
    """Run the command line; the exit status is 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="Check the documentation, and renew what is generated in it.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--no-mpi", action="store_true", help="leave out the blocks that need MPI")
    options = parser.parse_args()
    problems = [
        *check_diagrams(write=not options.check),
        *check_links(),
        *check_page_list(),
        *check_marks(),
        *check_commands(),
        *check_options(),
        *check_python_blocks(),
        *check_names(),
        *check_modules(),
        *check_variables(),
        *check_error_texts(),
        *check_errors_are_listed(),
        *check_runs(with_mpi=not options.no_mpi),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(pages())} pages, {len(all_blocks())} blocks, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
