"""A host with mirrored and local storage in a temporary folder, for the tests of the virtual machine."""

from __future__ import annotations

import getpass
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from taskfarm.vm.base import VirtualMachine


@dataclass
class Host:
    """A host: its mirrored storage, its local storage, and where its worker stands."""

    mirrored: Path
    local: Path
    start: Path

    @property
    def user_folder(self) -> Path:
        return self.local / f"taskfarm-{getpass.getuser()}"

    def folder(self, vm: VirtualMachine, suffix: str = "") -> Path:
        return self.user_folder / f"{os.getpid():x}_vm{vm.vmIndex:x}{suffix}"

    def left_over(self) -> list[str]:
        return sorted(os.listdir(self.user_folder)) if self.user_folder.exists() else []


@contextmanager
def standing_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """Yield a host with empty storages; the working directory is neither of them, and must be the same afterwards."""
    root = tmp_path.resolve()
    host = Host(root / "mst", root / "local", root / "start")
    for folder in (host.mirrored, host.local, host.start):
        folder.mkdir()
    monkeypatch.setenv("PARALLEL_MIRRORED_STORAGE", str(host.mirrored))
    monkeypatch.setenv("PARALLEL_LOCAL_STORAGE", str(host.local))
    monkeypatch.chdir(host.start)
    yield host
    assert os.getcwd() == str(host.start)


def tree(folder: str | Path) -> dict[str, str]:
    """Return ``{relative path: content}`` of a folder; folders have "", links ``-> target``."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        content = f"-> {os.readlink(path)}" if path.is_symlink() else "" if path.is_dir() else path.read_text()
        found[str(path.relative_to(folder))] = content
    return found


def run_task(vm: VirtualMachine, task: Any = None) -> Any:
    """Run `task` in the environment of `vm` as a worker does: with the virtual machine that arrives there."""
    arrived = pickle.loads(pickle.dumps(vm))
    token = arrived.prepareEnvironment()
    try:
        return task() if task is not None else tree(os.getcwd())
    finally:
        arrived.cleanupEnvironment(token)


def fill(folder: Path, **files: str) -> None:
    """Write files; ``__`` in a name separates folders."""
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
