"""Importing taskfarm or a face of it does nothing: no MPI, no thread, no exit hook, no look at the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = [
    "taskfarm",
    "taskfarm.compat",
    "taskfarm.errors",
    "taskfarm.futures",
    "taskfarm.objects",
    "taskfarm.vm",
    "taskfarm.vm.base",
]

# First interpreter: which foreign modules does the import need?
LIST_FOREIGN = """
import importlib, json, sys
before = set(sys.modules)
importlib.import_module(sys.argv[1])
new = [name for name in sys.modules if name not in before and name.partition(".")[0] != "taskfarm"]
print(json.dumps(new))
"""

# Second interpreter: with those imported already, whatever happens now is taskfarm's own doing.
WATCH = """
import atexit, gc, importlib, json, os, pickle, signal, sys, threading, warnings
for name in json.loads(sys.argv[2]):
    try:
        importlib.import_module(name)
    except ImportError:
        pass  # a module that exists only while its package is imported

reads = []
def recording(method):
    def record(self, *args):
        frame = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") in ("os", "_collections_abc", __name__):
            frame = frame.f_back
        reads.append(frame.f_globals.get("__name__") if frame is not None else None)
        return method(self, *args)
    return record
Environ = type(os.environ)
for name in ("__getitem__", "__iter__", "__len__", "__setitem__", "__delitem__", "copy"):
    setattr(Environ, name, recording(getattr(Environ, name)))

def state():
    return {
        "exit hooks": atexit._ncallbacks(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "excepthook": sys.excepthook is sys.__excepthook__,
        "meta_path": [str(finder) for finder in sys.meta_path],
        "path": list(sys.path),
        "interrupt": str(signal.getsignal(signal.SIGINT)),
        "recursion": sys.getrecursionlimit(),
        "switch": sys.getswitchinterval(),
        "filters": len(warnings.filters),
        "descriptors": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else [],
        "pickler": pickle.Pickler.__module__,
        "gc": [gc.isenabled(), len(gc.callbacks)],
        "folder": os.getcwd(),
    }

before = state()
importlib.import_module(sys.argv[1])
after = state()
print(json.dumps({
    "changed": {name: [before[name], after[name]] for name in before if before[name] != after[name]},
    "reads": reads,
    "mpi": sorted(name for name in sys.modules if name.partition(".")[0] == "mpi4py"),
}))
"""


def interpret(code: str, *words: str) -> object:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", MODULES)
def test_import_does_nothing(module: str) -> None:
    foreign = interpret(LIST_FOREIGN, module)
    found = interpret(WATCH, module, json.dumps(foreign))
    assert isinstance(found, dict)
    assert found["reads"] == []
    assert found["mpi"] == []
    if module == "taskfarm.objects":  # a finder waits for pyMOR's defaults; it is the one thing that this import leaves
        changed = found["changed"].pop("meta_path", None)
        assert changed is None or [text for text in changed[1] if "taskfarm" not in text] == changed[0]
    assert found["changed"] == {}


def test_import_of_taskfarm_is_light() -> None:
    foreign = interpret(LIST_FOREIGN, "taskfarm")
    assert isinstance(foreign, list)
    assert not {"numpy", "cloudpickle", "mpi4py", "asyncio", "multiprocessing", "threading"} & set(foreign)
