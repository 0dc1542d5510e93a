"""Put the faces of taskfarm in the place of the modules that they replace, so that existing programs run unmodified.

``install("pymor.tools.mpi")`` before the first import of pyMOR makes every ``import pymor.tools.mpi``, however it is
written, give the module `taskfarm.objects` itself. A finder at the head of `sys.meta_path` does it: its loader hands
out our module in `create_module`. The import system then writes its own ``__spec__`` into that module, which
`exec_module` takes back.

Some modules act when they are imported, and programs rely on that; a stand-in does the same at its first import under
the foreign name: ``pyopus.parallel.mpi`` parts spawner and workers (the workers stay inside that import for life), and
``pymor.tools.mpi`` makes its settings known to pyMOR.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING

from taskfarm.errors import UsageError

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # that module takes 13 ms to import, on every rank
    Loader = MetaPathFinder = object

__all__ = ["STAND_INS", "install", "installed"]

STAND_INS: Mapping[str, str] = MappingProxyType(
    {
        "mpi4py.futures": "taskfarm.futures",
        "pymor.tools.mpi": "taskfarm.objects",
        "pyopus.parallel.mpi": "taskfarm.vm",
    }
)
"""Names that `install` accepts, and the module that takes the place of each."""

# Modules whose classes must be the stand-in's too: replaced together with it, and inert when imported alone.
_COMPANIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {"pyopus.parallel.mpi": MappingProxyType({"pyopus.parallel.base": "taskfarm.vm.base"})}
)


def install(*names: str) -> None:
    """Replace the modules `names` by taskfarm's own from now on, in this process.

    Call it on every rank, before the package that holds the module is imported; ``taskfarm run --replace`` does.
    Repeating it is harmless.

    Parameters
    ----------
    *names : str
        Keys of `STAND_INS`.

    Raises
    ------
    UsageError
        If a name is not one of `STAND_INS`, or its original was imported already; nothing was installed then.
    """
    wanted: dict[str, str] = {}
    for name in names:
        if name not in STAND_INS:
            raise UsageError(f"no stand-in for {name!r}; there is one for {', '.join(sorted(STAND_INS))}")
        wanted[name] = STAND_INS[name]
        wanted.update(_COMPANIONS.get(name, {}))
    for name, ours in wanted.items():
        if name in sys.modules and sys.modules[name] is not sys.modules.get(ours):
            raise UsageError(
                f"{name} was imported already, so {ours} cannot take its place: call taskfarm.compat.install before "
                "anything imports it, or start the program with `taskfarm run --replace`"
            )
    if wanted:
        _the_finder().stand_ins.update(wanted)


def installed() -> dict[str, str]:
    """Return what is replaced in this process: foreign name to taskfarm's module."""
    return {
        name: ours for finder in sys.meta_path if isinstance(finder, _Finder) for name, ours in finder.stand_ins.items()
    }


class _Finder(MetaPathFinder):
    """Finds taskfarm's modules under foreign names. `sys.meta_path` holds the one instance."""

    def __init__(self) -> None:
        self.stand_ins: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        ours = self.stand_ins.get(fullname)
        return None if ours is None else ModuleSpec(fullname, _Loader(ours), origin=f"stand-in: {ours}")


class _Loader(Loader):
    """Hands out a module of ours, unchanged, under the name of its spec."""

    def __init__(self, ours: str) -> None:
        self._ours = ours
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._ours)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        name = module.__spec__.name if module.__spec__ is not None else ""
        module.__spec__ = self._spec
        parent_name, _, child = name.rpartition(".")
        parent = sys.modules[parent_name]
        # The import system binds the name in the parent after this method; a worker never returns from it.
        setattr(parent, child, module)
        on_import = _ON_IMPORT.get(name)
        if on_import is None:
            return
        finished = False
        try:
            on_import()
            finished = True
        finally:
            if not finished:  # the import system forgets a module whose import failed; so does its parent
                delattr(parent, child)


def _the_finder() -> _Finder:
    for finder in sys.meta_path:
        if isinstance(finder, _Finder):
            return finder
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    return finder


# What the originals do when they are imported


def _part_ranks() -> None:
    importlib.import_module("taskfarm.vm").MPI.spawnerBarrier()


def _register_defaults() -> None:
    importlib.import_module("taskfarm.objects._glue").register_host_defaults()


_ON_IMPORT: Mapping[str, Callable[[], None]] = MappingProxyType(
    {"pymor.tools.mpi": _register_defaults, "pyopus.parallel.mpi": _part_ranks}
)
