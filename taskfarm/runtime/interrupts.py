"""Keyboard interrupts that never tear a message apart.

Python raises `KeyboardInterrupt` between any two bytecodes of the main thread. Raised between the probe that takes a
message from MPI and the line that keeps it, the message would be lost, and whoever waits for it would hang. So while
the library moves or handles a frame, an interrupt is only noted; the transport raises it at the next safe point.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from taskfarm.runtime.arrays import ArrayExchange
from taskfarm.runtime.endpoint import Endpoint
from taskfarm.runtime.executor.crew import Crew
from taskfarm.runtime.executor.deliveries import Deliveries
from taskfarm.runtime.runner import run
from taskfarm.transport.base import Transport
from taskfarm.transport.stream import pause
from taskfarm.transport.waiting import Waiter

__all__ = ["defer_on_controller", "deferred_on_worker", "is_critical", "wakeup_socket"]

_SAFE = frozenset({run.__code__, Waiter.idle.__code__, Waiter.busy.__code__, pause.__code__, Crew.follow.__code__})


def is_critical(frame: FrameType | None, critical: frozenset[CodeType]) -> bool:
    """Tell whether the code that runs in `frame` has a message in hand.

    Frames of other packages that the library has called (numpy, pickle) are looked through. The search ends at the
    pauses of a wait, when nothing is in hand, and at the runner, above which is the user's function.
    """
    while frame is not None:
        if frame.f_code in critical:
            return True
        if frame.f_code in _SAFE:
            return False
        frame = frame.f_back
    return False


def _critical_codes(transport: Transport) -> frozenset[CodeType]:
    kind, direct = type(transport), type(transport.direct)
    methods: list[Any] = [
        kind.receive_nowait,
        kind.send,
        kind.send_to,
        kind.send_or_copy,
        kind.receive,
        kind.complete_sends,
    ]
    methods += [Endpoint.handle, Endpoint.receive_letter, Endpoint.serve_until, Endpoint.serve_nowait]
    methods += [direct.wait_until, direct.finish, ArrayExchange.send, ArrayExchange.receive]
    methods += [Crew.post, Crew.post_now, Crew.wait, Deliveries.run]
    return frozenset(method.__code__ for method in methods)


def defer_on_controller(transport: Transport) -> None:
    """Install the handler on rank 0, unless the program has one of its own or this is not the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    codes = _critical_codes(transport)

    def on_interrupt(signal_number: int, frame: FrameType | None) -> None:
        if is_critical(frame, codes):
            transport.interrupted = True
        else:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)


@contextmanager
def deferred_on_worker(transport: Transport, in_user_code: Callable[[], bool]) -> Iterator[None]:
    """Within the block, let an interrupt end the user's function, but not an idle worker: rank 0 decides about that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    codes = _critical_codes(transport)

    def on_interrupt(signal_number: int, frame: FrameType | None) -> None:
        if not in_user_code():
            return
        if is_critical(frame, codes):
            transport.interrupted = True
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def wakeup_socket() -> socket.socket | None:
    """Return a socket that gets a byte, the signal's number, with every signal, even while C code blocks.

    None where that is not possible: outside the main thread, or if the program uses the mechanism itself.
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before)
        reader.close()
        writer.close()
        return None
    writer.detach()  # lives as long as the process: the signal handler in C writes to it
    return reader
