"""Tasks as they travel, and the environment that some of them run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pickle import PickleBuffer
from typing import Any

from taskfarm.runtime.session import current
from taskfarm.runtime.work import pack_work, unpack_work
from taskfarm.vm.base import VirtualMachine
from taskfarm.wire.codec import Packed, pack

__all__ = ["pack_task", "run_in_environment"]


def pack_task(
    vm: VirtualMachine, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Packed:
    """Pickle a task for the workers.

    A task with an environment of its own is pickled in two layers: its modules may lie in the folder that the
    environment makes, so the inner layer is unpickled only there.
    """
    packed = pack_work("spawnFunction", function, args, kwargs)
    if vm.mirrorList is None and vm.startupDirSuffix is None:
        return packed
    return pack((run_in_environment, (vm, packed.body, *map(PickleBuffer, packed.buffers)), {}))


def run_in_environment(vm: VirtualMachine, body: bytes, *buffers: Any) -> Any:
    """Run the task in `body` in the environment that its virtual machine describes."""
    environment = vm.prepareEnvironment()
    try:
        function, args, kwargs = unpack_work(body, buffers, current().registry)
        return function(*args, **kwargs)
    finally:
        vm.cleanupEnvironment(environment)
