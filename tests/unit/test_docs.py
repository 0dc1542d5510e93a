"""The documentation is checked by its own build script; each kind of check is a test here."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
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


CHECKS: dict[str, Callable[[ModuleType], Iterable[str]]] = {
    "links lead somewhere": lambda build: build.check_links(),
    "python blocks compile": lambda build: build.check_python_blocks(),
    "public names are documented": lambda build: build.check_names(),
    "modules are documented": lambda build: build.check_modules(),
    "variables are documented": lambda build: build.check_variables(),
    "error texts are in the code": lambda build: build.check_error_texts(),
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
    assert build.output_matches(expected, actual) is same


def test_a_wrong_link_is_found(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A link to a page that is not there is reported with page and target."""
    page = tmp_path / "README.md"
    page.write_text("see [this](docs/nowhere.md)")
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "pages", lambda: [page])
    assert [text for text in build.check_links() if "nowhere.md" in text]
