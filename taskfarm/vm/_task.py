"""Tasks as they travel, and the environment that some of them run in."""

from __future__ import annotations

from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any

from taskfarm.errors import InternalError
from taskfarm.runtime.session import current
from taskfarm.runtime.work import unpack_work
from taskfarm.vm.base import VirtualMachine
from taskfarm.wire.codec import Packed, pack

__all__ = ["run_in_environment", "run_in_group", "wrap_in_environment", "wrap_in_group"]


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


def wrap_in_group(packed: Packed, number: int, ranks: Sequence[int]) -> Packed:
    """Return the task in `packed` as one that `ranks` run together; `number` is that of the first one's task."""
    return pack((run_in_group, (number, tuple(ranks), packed.body, *map(PickleBuffer, packed.buffers)), {}))


def run_in_group(number: int, ranks: tuple[int, ...], body: bytes, *buffers: Any) -> Any:
    """Run this rank's part of the task in `body`."""
    worker = current().worker
    if worker is None:
        raise InternalError("a group of tasks on rank 0")
    return worker.teams.run_group(number, ranks, body, buffers)
