"""The documentation is checked by its own build script; each kind of check is a test here."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """Return the build script as a module."""
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def website(build: ModuleType) -> ModuleType:
    """Return the script that builds the website as a module."""
    assert build is not None
    return sys.modules["website"]


CHECKS: dict[str, Callable[[ModuleType], Iterable[str]]] = {
    "links lead somewhere": lambda build: build.check_links(),
    "every page is in the list of pages": lambda build: build.check_page_list(),
    "every block is run, or says why not": lambda build: build.check_marks(),
    "commands are those of the command line": lambda build: build.check_commands(),
    "options are documented": lambda build: build.check_options(),
    "python blocks compile": lambda build: build.check_python_blocks(),
    "public names are documented": lambda build: build.check_names(),
    "modules are documented": lambda build: build.check_modules(),
    "variables are documented": lambda build: build.check_variables(),
    "error texts are in the code": lambda build: build.check_error_texts(),
    "every error can be found by its text": lambda build: build.check_errors_are_listed(),
    "diagrams are those of the tables": lambda build: build.check_diagrams(write=False),
    "blocks without MPI run": lambda build: build.check_runs(with_mpi=False),
}


@pytest.mark.parametrize("promise", CHECKS)
def test_documentation(build: ModuleType, promise: str) -> None:
    """The pages keep what the build script checks."""
    assert list(CHECKS[promise](build)) == []


@pytest.mark.parametrize(
    ("expected", "actual", "same"),
    [
        ("a\n...\nb", "a\nx\ny\nb", True),
        ("done in 3.1 s", "done in 9 s", True),
        ("difference 1.0e-15", "difference   3.2e-14", True),
        ("a\nb", "a\nc", False),
        ("3 ranks", "4 ranks", False),
    ],
)
def test_output_is_compared_in_substance(build: ModuleType, expected: str, actual: str, same: bool) -> None:
    """Dots stand for anything, durations and round-off may differ, everything else counts."""
    assert sys.modules["blocks"].output_matches(expected, actual) is same


@pytest.fixture
def page(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Yield the only page of another repository."""
    for module in (build, sys.modules["blocks"]):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "pages", lambda: [tmp_path / "README.md"])
    yield tmp_path / "README.md"


def test_a_wrong_link_is_found(build: ModuleType, page: Path) -> None:
    """A link to a page that is not there is reported with page and target."""
    page.write_text("see [this](docs/nowhere.md)")
    assert [text for text in build.check_links() if "nowhere.md" in text]


@pytest.mark.parametrize(
    ("before", "n_problems"),
    [("", 1), ("<!-- runs -->\n", 0), ("<!-- not run: it needs a cluster -->\n", 0), ("<!-- not run: -->\n", 1)],
)
def test_a_block_without_a_mark_is_found(build: ModuleType, page: Path, before: str, n_problems: int) -> None:
    """A block is run, or a reason is given."""
    page.write_text(f"{before}```python\npass\n```\n")
    assert len(list(build.check_marks())) == n_problems


@pytest.mark.parametrize("block", ["1. step\n\n   ```python\n   pass\n   ```\n", "~~~python\npass\n~~~\n"])
def test_a_block_in_another_form_is_found(build: ModuleType, page: Path, block: str) -> None:
    """Blocks that are indented or fenced otherwise would not be read as such."""
    page.write_text(block)
    assert list(build.check_marks())


@pytest.mark.parametrize(
    ("text", "n_problems"),
    [
        ("```console\n$ taskfarm run -n 4 --survive script.py --own-option\n```\n", 0),
        ("```console\n$ taskfarm run -n 4 --survives script.py\n```\n", 1),
        ("```sh\ntaskfarm run -n four script.py\n```\n", 1),
        ("```sh\ntaskfarm run -n 4\n```\n", 1),
        ("```sh\ntaskfarm script slurm -n 4 script.py > job.sh\n```\n", 0),
        ("`taskfarm bench --quick` and `taskfarm run --isolate script.py --own-option`", 0),
        ("`taskfarm bench --slow`", 1),
    ],
)
def test_a_wrong_command_is_found(build: ModuleType, page: Path, text: str, n_problems: int) -> None:
    """Commands go through the parser of the command line, those in running text by their options."""
    page.write_text(text)
    assert len(list(build.check_commands())) == n_problems


def test_an_error_without_an_entry_is_found(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the page of questions does not name is reported; vague keys name nothing."""
    assert not list(build.check_errors_are_listed())
    monkeypatch.setattr(sys.modules["messages"], "keys", lambda: ["is", "... is ..."])
    assert len(list(build.check_errors_are_listed())) > 100


def test_every_page_is_reached_from_the_home_page(build: ModuleType, website: ModuleType) -> None:
    """The navigation of the website is made of the list of pages, and of the reference."""
    listed = set(website.navigation().split("\n"))
    for path in build.pages():
        name = "/" + build.page_name(path).removesuffix(".md")
        assert name in listed or name == "/README"
    assert "/docs/reference/index" in listed


def test_the_reference_has_every_public_name(website: ModuleType) -> None:
    """With its docstring, or a link to where that is; `taskfarm.objects` is not made to start MPI by it."""
    for module in website.MODULES:
        text = website.reference_page(module)
        for name in importlib.import_module(module).__all__:
            thing = website.look_up(module, name)
            if inspect.isclass(thing) or inspect.isroutine(thing):
                assert f"{module}.{name}\n" in text or f":obj:`{name} <" in text


def test_the_website_builds(website: ModuleType, tmp_path: Path) -> None:
    """Without a warning, and its links lead somewhere."""
    for needed in ("sphinx", "myst_parser", "furo", "sphinxcontrib.mermaid"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
    assert list(website.build(tmp_path)) == []
    (tmp_path / "html" / "docs" / "quickstart.html").unlink()
    assert list(website.check_site(tmp_path / "html"))
    assert "quickstart.html" in (tmp_path / "html" / "index.html").read_text()
