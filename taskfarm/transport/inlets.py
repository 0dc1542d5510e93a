"""How control messages are taken from MPI: into posted memory, or after a probe.

*Posted*: one persistent receive from any rank waits in MPI at all times. A message lands in it without a copy by MPI
and without a search, and to look costs a third less than to probe. Its memory is small, so senders announce longer
messages (`CONTROL_MAX_BYTES`). Such a small message is one fragment in every transport layer: it has arrived whole
once it is matched, so a sender that dies cannot leave the only posted receive half filled.

*Probing*: a probe finds a message, `Irecv` starts to take it in. Any number of receives may be unfinished. With plain
probes this is safe because one thread receives.

Posting is for ranks that share memory. Between hosts MPICH (5.0.2, UCX over TCP) loses track of a receive from any rank
that is tested with pauses of 0.1 ms, or among ranks of which some share memory: no `Test` ever finds the message, but a
probe does. So there, messages are probed for.

Where Open MPI notices the death of a rank by a connection that breaks, receives from any rank fail until the death is
acknowledged. We hear of it from the rank's supervisor, and go on receiving from the others.

Measured, a message of 60 bytes there and back, best of 25 (MPICH 5.0.2 / Open MPI 5.0.11): posted 2.0 / 1.5 us, matched
probe 3.0 / 2.8 us, plain probe 2.9 / 2.8 us.
"""

from __future__ import annotations

from typing import Any, Protocol

from mpi4py import MPI

from taskfarm.config import Receive

__all__ = ["CONTROL_MAX_BYTES", "Inlet", "Taken", "acknowledge_deaths", "new_inlet"]

# Smaller than the eager limit of every transport layer known (4 kB in Open MPI's shared memory); a frame of a few
# arguments is 100 to 500 bytes long.
CONTROL_MAX_BYTES = 2048

TAG = 1  # small: the tag range differs between libraries
_BYTE, _ANY_SOURCE, _ANY_TAG = MPI.BYTE, MPI.ANY_SOURCE, MPI.ANY_TAG

Taken = tuple[int, bytearray, "MPI.Request | None"]


class Inlet(Protocol):
    """Takes control messages from one communicator, in order per sender."""

    def poll(self) -> Taken | None:
        """Return source and data of the next message, or None.

        With them comes the request that fills the data; None if they are whole.
        """

    def close(self) -> None:
        """Give everything back; no message is under way any more."""


class _Posted:
    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm
        self._memory = bytearray(CONTROL_MAX_BYTES)
        self._status = MPI.Status()
        self._request = comm.Recv_init((self._memory, _BYTE), _ANY_SOURCE, TAG)
        self._request.Start()

    def poll(self) -> Taken | None:
        request, status = self._request, self._status
        try:
            if not request.Test(status):
                return None
        except MPI.Exception as exc:
            acknowledge_deaths(self._comm, exc)
            return None
        data = self._memory[: status.Get_count(_BYTE)]
        source = status.Get_source()
        request.Start()
        return source, data, None

    def close(self) -> None:
        self._request.Cancel()
        self._request.Wait()
        self._request.Free()


class _Probing:
    def __init__(self, comm: MPI.Intracomm, matched: bool) -> None:
        self._comm = comm
        self._probe = comm.Improbe if matched else comm.Iprobe
        self._start = self._start_matched if matched else self._start_plain
        self._status = MPI.Status()

    def poll(self) -> Taken | None:
        try:
            found = self._probe(_ANY_SOURCE, _ANY_TAG, self._status)
        except MPI.Exception as exc:
            acknowledge_deaths(self._comm, exc)
            return None
        if not found:
            return None
        data = bytearray(self._status.Get_count(_BYTE))
        source = self._status.Get_source()
        request = self._start(found, data, source)
        return source, data, None if request.Test() else request

    def _start_matched(self, message: Any, data: bytearray, source: int) -> MPI.Request:
        request: MPI.Request = message.Irecv((data, _BYTE))
        return request

    def _start_plain(self, found: Any, data: bytearray, source: int) -> MPI.Request:
        return self._comm.Irecv((data, _BYTE), source, TAG)

    def close(self) -> None:
        """Nothing is kept."""


def new_inlet(comm: MPI.Intracomm, way: Receive | None) -> Inlet:
    """Return the inlet for control messages on `comm`; collective.

    Parameters
    ----------
    comm : MPI.Intracomm
        Private to control messages.
    way : Receive or None
        How to take them; None: posted if all ranks share memory, as far as MPI knows, else after a matched probe.
    """
    if way is None:
        way = Receive.POSTED if _share_memory(comm) else Receive.MATCHED
    return _Posted(comm) if way is Receive.POSTED else _Probing(comm, way is Receive.MATCHED)


def acknowledge_deaths(comm: MPI.Intracomm, exc: MPI.Exception) -> None:
    """Have receives from any rank of `comm` go on without those that died; other errors are raised again."""
    if exc.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
        raise exc
    comm.Ack_failed()


def _share_memory(comm: MPI.Intracomm) -> bool:
    shared = comm.Split_type(MPI.COMM_TYPE_SHARED)
    n_ranks = shared.size
    shared.Free()
    return bool(n_ranks == comm.size)
