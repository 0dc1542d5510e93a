"""The background thread that moves frames for a crew while work is under way and no other thread does."""

from __future__ import annotations

import sys
import threading
import time

from taskfarm.runtime.executor.crew import Crew

__all__ = ["Pump"]

GRACE_S = 300e-6  # who has just submitted may wait for the result itself, which is faster
NAP_S = 2e-3  # between two looks while another thread leads
DOZE_S = 0.02  # at most between two looks while nobody does; a message ends it
LINGER_S = 0.5  # after the last work, before the thread sleeps until it is woken
# A message takes the interpreter's lock several times, each of which costs a switch interval if the main thread runs
# pure Python. Tasks of 1 ms then keep two workers busy for 38 % of the time with the default, for 89 % with this.
DEFAULT_SWITCH_S = 5e-3  # sys.getswitchinterval() of every CPython
SWITCH_S = 5e-4


class Pump:
    """Serves `crew`; the thread starts with the first work.

    Theory of operation. The thread *rests* on an event while nothing is under way. Woken, it lets a moment pass and
    then serves. When there is nothing to move it *dozes*: the process is announced as asleep, so that a worker with
    news wakes it. It rests again only some time after the last work, since waking it for each of a series of calls
    would cost the calling thread more than the calls.

    While it does not rest, the interpreter switches threads more often, unless the program has chosen how often.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._called = threading.Event()
        self._resting = True
        self._stopping = False
        self._thread: threading.Thread | None = None
        crew.wake_pump = self.wake

    def wake(self) -> None:
        """See to it that the thread runs if anything is under way."""
        if self._resting and self._crew.is_busy and not self._stopping:
            self._resting = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="taskfarm pump", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError:  # the interpreter is shutting down: whoever waits moves frames itself
                    self._thread = None
                    self._stopping = True
            else:
                self._called.set()

    def stop(self) -> None:
        """End the thread, and wait until it has ended."""
        self._stopping = True
        self._called.set()
        self._crew.transport.wake()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        _set_switch_interval(DEFAULT_SWITCH_S, SWITCH_S)
        try:
            self._serve()
        finally:
            _set_switch_interval(SWITCH_S, DEFAULT_SWITCH_S)

    def _serve(self) -> None:
        crew = self._crew
        busy_at = time.monotonic()
        time.sleep(GRACE_S)
        while not self._stopping:
            if crew.is_busy:
                busy_at = time.monotonic()
                if crew.is_led:
                    time.sleep(NAP_S)
                elif not crew.serve():
                    crew.transport.doze(DOZE_S)
            elif time.monotonic() - busy_at < LINGER_S:
                time.sleep(NAP_S)
            else:
                self._rest()
                busy_at = time.monotonic()
                time.sleep(GRACE_S)

    def _rest(self) -> None:
        self._called.clear()
        self._resting = True
        if self._crew.is_busy:  # came between the look at it and the line before
            self._resting = False
            return
        _set_switch_interval(SWITCH_S, DEFAULT_SWITCH_S)
        self._called.wait()
        _set_switch_interval(DEFAULT_SWITCH_S, SWITCH_S)


def _set_switch_interval(before: float, after: float) -> None:
    """Change the switch interval if it is `before`, not one that somebody else has chosen."""
    if abs(sys.getswitchinterval() - before) < 1e-6:
        sys.setswitchinterval(after)
