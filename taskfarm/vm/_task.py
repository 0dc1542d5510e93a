"""Tasks as they travel, and the environment that some of them run in."""

from __future__ import annotations

from pickle import PickleBuffer
from typing import Any

from taskfarm.runtime.session import current
from taskfarm.runtime.work import unpack_work
from taskfarm.vm.base import VirtualMachine
from taskfarm.wire.codec import Packed, pack

__all__ = ["run_in_environment", "wrap_in_environment"]


def wrap_in_environment(vm: VirtualMachine, packed: Packed) -> Packed:
    """Return the task in `packed` as one that runs in the environment that `vm` describes.

    It is pickled in two layers: its modules may lie in the folder that the environment makes, so the inner layer is
    unpickled only there.
    """
    return pack((run_in_environment, (vm, packed.body, *map(PickleBuffer, packed.buffers)), {}))


def run_in_environment(vm: VirtualMachine, body: bytes, *buffers: Any) -> Any:
    """Run the task in `body` in the environment that its virtual machine describes."""
    environment = vm.prepareEnvironment()
    try:
        function, args, kwargs = unpack_work(body, buffers, current().registry)
        return function(*args, **kwargs)
    finally:
        vm.cleanupEnvironment(environment)
