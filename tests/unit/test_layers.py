"""Imports point downwards only, faces do not know each other, one package talks to MPI, one decides without doing."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "taskfarm"

# From the bottom to the top. Parts of one layer do not import each other.
LAYERS: list[set[str]] = [
    {"errors", "config", "fast", "ids", "units"},
    {"wire"},
    {"scheduling", "transport"},
    {"runtime"},
    {"objects", "vm", "futures", "sharing"},
    {"compat", "trace", "doctor", "testing", "bench"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}

# The public names are re-exported by the package itself, which may look at these parts for that and at no other.
EXPORTED_FROM = {"errors", "ids", "config", "futures", "sharing"}

# What the errors, options and ids may need of each other.
WITHIN_A_LAYER = {("config", "errors"), ("ids", "errors")}

# Imports inside a function that must point upwards, each with its reason. (importing module, imported part): reason.
UPWARDS: dict[tuple[str, str], str] = {}

# Deciding needs no input, no output, no clock, no chance and no encoding.
NOT_IN_SCHEDULING = {
    "asyncio", "cloudpickle", "ctypes", "io", "logging", "mmap", "mpi4py", "multiprocessing", "numpy", "os", "pathlib",
    "pickle", "random", "select", "selectors", "signal", "socket", "subprocess", "sys", "tempfile", "threading", "time",
    "warnings",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One import statement of the package, wherever it stands: also inside functions and under ``TYPE_CHECKING``."""

    importer: str  # dotted module name
    imported: str  # dotted module name, absolute
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield Import(module, whole if is_module(whole) else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(module, node.args[0].value, node.lineno)


def is_module(name: str) -> bool:
    path = REPOSITORY.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def part_of(module: str) -> str:
    """Return the part of taskfarm that a module belongs to; empty for the package itself."""
    return [*module.split("."), ""][1]


FILES = sorted(PACKAGE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]
INTERNAL = [found for found in IMPORTS if found.imported.partition(".")[0] == "taskfarm"]


def test_the_walk_sees_the_package() -> None:
    assert {part_of(found.importer) for found in INTERNAL} >= {"wire", "runtime", "cli", "compat"}
    assert any(found.imported == "mpi4py" for found in IMPORTS)


def test_every_part_has_its_layer() -> None:
    parts = {part_of(module_name(path)) for path in FILES} - {""}
    assert parts <= set(LEVEL), f"give {sorted(parts - set(LEVEL))} a place in LAYERS"


def test_imports_point_downwards() -> None:
    wrong = []
    for found in INTERNAL:
        importer, imported = part_of(found.importer), part_of(found.imported)
        if importer == imported or imported == "" or (importer, imported) in WITHIN_A_LAYER:
            continue
        if importer == "":
            if imported not in EXPORTED_FROM:
                wrong.append(f"{found}: the package itself re-exports only from {sorted(EXPORTED_FROM)}")
        elif LEVEL[imported] >= LEVEL[importer] and (found.importer, imported) not in UPWARDS:
            wrong.append(f"{found}: {importer} is not above {imported}")
    assert not wrong, "\n".join(wrong)


def test_allowances_are_used() -> None:
    used = {(found.importer, part_of(found.imported)) for found in INTERNAL}
    assert set(UPWARDS) <= used


def test_only_transport_imports_mpi4py() -> None:
    """The benchmark does, too: raw MPI is what it measures ours against."""
    wrong = [
        str(found)
        for found in IMPORTS
        if found.imported.partition(".")[0] == "mpi4py" and part_of(found.importer) not in ("transport", "bench")
    ]
    assert not wrong, "\n".join(wrong)


def test_scheduling_only_decides() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if part_of(found.importer) == "scheduling" and found.imported.partition(".")[0] in NOT_IN_SCHEDULING
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") < 400, "split the file"
    long = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno >= 60
    ]
    assert not long, ", ".join(long)


def test_relative_and_dynamic_imports_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk itself must not be blind."""
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    for name in ("wire/__init__.py", "wire/codec.py", "vm/__init__.py"):
        (tmp_path / "taskfarm" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "taskfarm" / name).write_text("")
    path = tmp_path / "taskfarm" / "vm" / "a.py"
    path.write_text(
        "from . import b\nfrom ..wire import codec\nfrom ..wire.codec import f\nimport x.y as z\n"
        "def f():\n    import_module('taskfarm.objects')\n    from taskfarm.wire import codec as c\n"
    )
    assert sorted((found.line, found.imported) for found in imports_of(path)) == [
        (1, "taskfarm.vm"),
        (2, "taskfarm.wire.codec"),
        (3, "taskfarm.wire.codec"),
        (4, "x.y"),
        (6, "taskfarm.objects"),
        (7, "taskfarm.wire.codec"),
    ]
