"""Arrays from the memory of one task straight into memory that another one owns."""

from __future__ import annotations

import math
import time
from typing import Any

from taskfarm.errors import UsageError
from taskfarm.runtime.endpoint import Endpoint
from taskfarm.runtime.session import enter
from taskfarm.transport.memory import memory_of
from taskfarm.vm._ids import MPITaskID
from taskfarm.vm._sides import endpoint_of, rank_of

__all__ = ["Arrays"]


class Arrays:
    """The methods of `taskfarm.vm.MPI` that move arrays without a copy."""

    @staticmethod
    def sendArray(destination: MPITaskID, array: Any, timeout: float = -1.0) -> bool:
        """Send `array` into the memory that a task passes to `receiveArray`; waits until it is there.

        Whatever the size, it waits for the receiver: two tasks that both send first wait for each other for ever.

        Parameters
        ----------
        destination : MPITaskID
            The task that receives.
        array : array or buffer
            Any dtype without Python objects, any shape, contiguous in C or Fortran order. Besides numpy arrays: what
            has the buffer protocol (bytes, memoryview), ``__array_interface__`` or DLPack, in CPU memory. Read where
            it lies; the caller's again when this returns or raises.
        timeout : float
            How many seconds to wait for the receiver; negative waits for ever. A transfer that has begun is completed.

        Returns
        -------
        bool
            True if the array is in the receiver's memory. False, and nothing was sent, if `destination` is no task of
            this machine, has ended, or has not come to receive the array in time.

        Raises
        ------
        UsageError
            If `array` cannot be used, or does not fit the memory that it would be received into (the receiver raises
            too); if `destination` is not an `MPITaskID` or is the calling task; inside a collective call.
        """
        if not isinstance(destination, MPITaskID):
            raise UsageError(f"sendArray: destination={destination!r} is not an MPITaskID")
        memory = memory_of(array, "array", writable=False)
        side = _side("sendArray")
        if not side.is_reachable(destination.rank, destination.number):
            return False
        if destination.rank == side.transport.rank:
            raise UsageError(f"sendArray: destination={destination!r} is the calling task: copy the array")
        return side.arrays.send(destination.rank, destination.number, memory, _deadline(timeout))

    @staticmethod
    def receiveArray(source: Any, out: Any, timeout: float = -1.0) -> MPITaskID | None:
        """Receive the next array that a task sends to the calling one with `sendArray`, into `out`.

        Parameters
        ----------
        source : MPITaskID or int or None
            Only from this task; only from tasks of this rank; from any task.
        out : array or buffer
            Writable memory, as of `sendArray`; shape, dtype and order equal those of the array that is sent
            (one-dimensional arrays have no order). Written to only by an array that is received.
        timeout : float
            How many seconds to wait; negative waits for ever, 0 does not wait. A transfer that has begun is completed.

        Returns
        -------
        MPITaskID or None
            The sender. None, and `out` is as it was, if nothing came in time; on the spawner also if `source` has
            ended, or no task that could send is running.

        Raises
        ------
        UsageError
            If `out` cannot be used, or does not fit the array (the sender raises too, and nothing is transferred); if
            `source` is no other task or rank; inside a collective call.
        """
        memory = memory_of(out, "out", writable=True)
        side = _side("receiveArray")
        transport = side.transport
        rank = rank_of(source, transport.size, "source")
        if rank == transport.rank or (source is None and transport.size == 1):
            raise UsageError(f"receiveArray: source={source!r} means the calling task: no other one can send")
        number = source.number if isinstance(source, MPITaskID) else None
        offer = side.arrays.receive(memory, rank, number, _deadline(timeout))
        return None if offer is None else MPITaskID(offer.rank, offer.number)


def _side(what: str) -> Endpoint:
    endpoint = enter(what).open_endpoint or endpoint_of(what)
    if endpoint.current_call:
        raise UsageError(f"{what} inside a collective call: arrays go between tasks; use objects.comm there")
    if endpoint.mailbox.number is None:
        raise UsageError(f"{what} on rank {endpoint.transport.rank} outside a task")
    return endpoint


def _deadline(timeout: float) -> float:
    return math.inf if timeout < 0 else time.monotonic() + timeout
