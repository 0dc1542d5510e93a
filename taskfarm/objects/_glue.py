"""What pyMOR needs when this face takes the place of ``pymor.tools.mpi``; inert where pyMOR is not used.

pyMOR keeps a registry of changeable defaults. Its defaults file may name ``pymor.tools.mpi.event_loop_settings.
auto_launch``; the name must be known there when the file is read, which is while pyMOR is being imported. So once this
face stands under pyMOR's name and ``pymor.core.defaults`` is loaded, a function of that name is registered, and
`event_loop_settings` obeys it. Where somebody binds our module in `sys.modules` by hand, nothing of ours runs between
the two, except the import system's search for ``pymor.core.defaults``: a finder waits for that one name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["host_auto_launch", "register_host_defaults", "send_host_defaults", "watch_for_host"]

HOST_NAME = "pymor.tools.mpi"
DEFAULTS_NAME = "pymor.core.defaults"
_REGISTERED = "_taskfarm_event_loop_settings"  # attribute of the host's defaults module: the registered function


def _stands_in() -> bool:
    ours = sys.modules.get("taskfarm.objects")
    return ours is not None and sys.modules.get(HOST_NAME) is ours


def register_host_defaults() -> None:
    """Make `event_loop_settings` known to pyMOR's defaults, if they are loaded; repeating it is harmless."""
    defaults = sys.modules.get(DEFAULTS_NAME)
    if defaults is None or not hasattr(defaults, "defaults") or hasattr(defaults, _REGISTERED):
        return

    def event_loop_settings(auto_launch: bool = True) -> dict[str, bool]:
        return {"auto_launch": auto_launch}

    event_loop_settings.__module__ = HOST_NAME
    event_loop_settings.__qualname__ = "event_loop_settings"
    setattr(defaults, _REGISTERED, defaults.defaults("auto_launch")(event_loop_settings))


def host_auto_launch() -> bool:
    """Return what pyMOR's defaults say about launching the loop; True where pyMOR is not used."""
    if _stands_in():
        register_host_defaults()
    registered: Callable[[], dict[str, bool]] | None = getattr(sys.modules.get(DEFAULTS_NAME), _REGISTERED, None)
    return True if registered is None else bool(registered()["auto_launch"])


def send_host_defaults(call: Callable[..., Any]) -> None:
    """Give the workers the defaults that were changed on rank 0 before the loop was launched."""
    defaults = sys.modules.get(DEFAULTS_NAME)
    if defaults is not None and _stands_in() and defaults.defaults_changes() > 0:
        call(defaults.set_defaults, defaults.get_defaults(user=True, file=True, code=False))


class _HostFinder(MetaPathFinder):
    """Waits for ``pymor.core.defaults``, lets the next finder find it, and registers once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        if fullname != DEFAULTS_NAME or not _stands_in():
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _HostLoader(spec.loader)
        return spec


class _HostLoader(Loader):
    """Loads as the loader that it wraps does, then registers."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        register_host_defaults()


def watch_for_host() -> None:
    """Put the finder in place; done once, when `taskfarm.objects` is imported."""
    if not any(isinstance(finder, _HostFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _HostFinder())
