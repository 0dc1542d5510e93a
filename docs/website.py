"""Build the website from the pages and the docstrings.

    python docs/website.py [FOLDER]     by default build/docs, of which html/ is the site

The list of pages, `docs/README.md`, is the navigation: its headings are the captions, its links the entries. Pages are
copied with all that they link to, so that links hold as they do on a Git host; pages with the docstrings of all public
names are added. Sphinx then has no warning to give, and every link of the result leads somewhere, or this fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(HERE), str(HERE.parent)) if path not in sys.path]

from blocks import FENCE, ROOT, page_name, pages  # noqa: E402 - found only now

from taskfarm.objects._live import LIVE  # noqa: E402

PAGE_LIST = "docs/README.md"
HOME = "README.md"
REFERENCE = "docs/reference"  # made here, not in the repository
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")

# Whose public names are documented, each name under the first module that has it; the exceptions under the last.
MODULES = (
    "taskfarm.futures", "taskfarm.objects", "taskfarm.vm", "taskfarm.vm.base", "taskfarm.testing", "taskfarm.compat",
    "taskfarm",
)  # fmt: skip
FOREIGN_BASES = ("BaseException", "Exception", "Executor", "Future", "Generic", "int", "object", "tuple")


def sections() -> dict[str, list[str]]:
    """Return the headings of the list of pages, each with the pages below it, as paths from the repository's root."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / PAGE_LIST).read_text().splitlines():
        if line.startswith("## "):
            found[line[3:]] = []
        elif line.startswith("- ") and (link := LINK.search(line)):
            page = ((ROOT / PAGE_LIST).parent / link[1]).resolve()
            found[list(found)[-1]].append(page.relative_to(ROOT).as_posix())
    return found


def check_page_list() -> Iterator[str]:
    """Check that every page is in the list once."""
    listed = [page for group in sections().values() for page in group]
    for page in map(page_name, pages()):
        if page not in (HOME, PAGE_LIST) and listed.count(page) != 1:
            yield f"{PAGE_LIST}: {page} is there {listed.count(page)} times"


NOT_PUBLIC = {"taskfarm.Shared": "announce"}  # methods for the runtime


# The sources


def prepare(folder: Path) -> None:
    """Write the sources of the site to `folder`, which is not there yet."""
    for page in pages():
        _copy(page, folder)
        for match in LINK.finditer(FENCE.sub("", page.read_text())):
            target = (page.parent / match[1]).resolve()
            if target.is_file() and target.is_relative_to(ROOT):
                _copy(target, folder)
    shutil.copy(HERE / "conf.py", folder)
    for module in MODULES:
        path = folder / REFERENCE / f"{module}.rst"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reference_page(module))
    entries = "".join(f"   {module}\n" for module in sorted(MODULES))
    (folder / REFERENCE / "index.rst").write_text(f"{_title('Docstrings')}.. toctree::\n   :maxdepth: 2\n\n{entries}")
    with open(folder / HOME, "a") as home:
        home.write(navigation())


def _copy(file: Path, folder: Path) -> None:
    target = folder / file.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


def navigation() -> str:
    """Return the navigation, to be put at the end of the home page."""
    groups = {"": [PAGE_LIST], **sections()}
    groups["Reference"] = [*groups["Reference"], f"{REFERENCE}/index.rst"]
    text = ""
    for caption, entries in groups.items():
        option = f":caption: {caption}\n" if caption else ""
        names = "\n".join("/" + entry.rpartition(".")[0] for entry in entries)
        text += f"\n```{{toctree}}\n:hidden:\n{option}\n{names}\n```\n"
    return text


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n\n"


def reference_page(module: str) -> str:
    """Return the page that has the docstrings of a module's public names."""
    text = _title(module) + f".. automodule:: {module}\n\n"
    elsewhere = []
    for name in importlib.import_module(module).__all__:
        thing, home = look_up(module, name), home_of(module, name)
        if home != module:
            elsewhere.append(f":obj:`{name} <{home}.{name}>`")
        elif inspect.isclass(thing) or inspect.isroutine(thing):
            text += _directive(f"{module}.{name}", thing)
    if elsewhere:
        text += f"Also here: {', '.join(elsewhere)}.\n"
    return text


def look_up(module: str, name: str) -> object:
    """Return a public thing; None for the live attributes of `taskfarm.objects`, some of which would start MPI."""
    if module == "taskfarm.objects" and name in LIVE:
        return None
    return getattr(importlib.import_module(module), name)


def home_of(module: str, name: str) -> str:
    """Return the module under which a public name is documented."""
    thing = look_up(module, name)
    origin = str(getattr(thing, "__module__", None) or "taskfarm")
    if origin.partition(".")[0] != "taskfarm":
        return origin.removesuffix("._base")  # the standard library's
    if origin == "taskfarm.errors" and name in importlib.import_module("taskfarm").__all__:
        return "taskfarm"
    for other in MODULES[: MODULES.index(module)]:
        if thing is not None and name in importlib.import_module(other).__all__ and look_up(other, name) is thing:
            return other
    return module


def _directive(name: str, thing: object) -> str:
    if not inspect.isclass(thing):
        return f".. autofunction:: {name}\n\n"
    # Methods of bases of our own, which have no page, but not those of the standard library's.
    options = f"   :members:\n   :inherited-members: {', '.join(FOREIGN_BASES)}\n"
    if name in NOT_PUBLIC:
        options += f"   :exclude-members: {NOT_PUBLIC[name]}\n"
    if issubclass(thing, BaseException):
        options += "   :show-inheritance:\n"
    return f".. autoclass:: {name}\n{options}\n"


# The site


def build(folder: Path) -> Iterator[str]:
    """Build the site in ``folder/html``; yield what is wrong."""
    for part in ("source", "doctrees", "html"):
        shutil.rmtree(folder / part, ignore_errors=True)
    prepare(folder / "source")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(folder / "doctrees"),
         str(folder / "source"), str(folder / "html")],
        capture_output=True, text=True,
    )  # fmt: skip
    yield from (line for line in done.stderr.splitlines() if line.strip())
    if done.returncode:
        yield f"sphinx: exit status {done.returncode}"
        return
    shutil.copyfile(folder / "html" / "README.html", folder / "html" / "index.html")
    yield from check_site(folder / "html")


class _Page(HTMLParser):
    """Collects where a page of the site links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value and tag != "link":
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def check_site(html: Path) -> Iterator[str]:
    """Check that links within the site lead to a file, and to a place in it, that exist."""
    found = {path.resolve(): _Page(path.read_text()) for path in sorted(html.rglob("*.html"))}
    for path, page in found.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists():
                yield f"{path.relative_to(html.resolve())}: link to {link}, which is not there"
            elif anchor and target in found and anchor not in found[target].anchors:
                yield f"{path.relative_to(html.resolve())}: link to {link}: no such place"


def main() -> int:
    """Run the command line; the exit status is 1 if something is wrong."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs").resolve()
    if importlib.util.find_spec("sphinx") is None:
        print("the website needs Sphinx; install it with: pip install 'taskfarm[docs]'", file=sys.stderr)
        return 1
    problems = list(build(folder))
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{folder / 'html' / 'index.html'}: {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
