"""Checks of ``taskfarm.objects``: failures of collective calls from which the job goes on."""

from __future__ import annotations

import contextlib
import pickle
import socket
import sys
import threading
import time

from tf_checks import equal, holds, raises, run_checks

from taskfarm import objects
from taskfarm.errors import RemoteError, TaskfarmError, UsageError

LAST = -1  # set to the last rank before the checks run


class OwnError(Exception):
    """Defined in the program."""


class AwkwardError(Exception):
    """Pickles, but does not unpickle: two arguments, one kept."""

    def __init__(self, text, code):
        super().__init__(text)
        self.code = code


def values(fn, *args):
    return objects.call_all(fn, *args)


def fail_on(ranks, exc=None):
    """The user's function of most checks: raises on the given ranks, and returns the rank elsewhere."""
    if objects.rank in ranks:
        raise exc or OwnError(f"failed on rank {objects.rank}")
    return objects.rank


def fail_locally(make):
    """Build the exception on the worker, so that it need not travel to it."""
    if objects.rank:
        raise make()


def reset():
    objects.call(lambda: setattr(sys, "taskfarm_ran", 0))


def note():
    sys.taskfarm_ran += 1


def pending(timeout_s=5.0):
    """Wait until a failure is raised at an entry into the library, and return it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        time.sleep(0.05)
        try:
            objects.call(len, ())
        except RemoteError as exc:
            return exc
    raise AssertionError("no failure was reported")


def quiet():
    """Nothing is pending, now and a moment later."""
    equal(values(lambda: 1), [1] * objects.size)
    time.sleep(0.1)
    equal(values(lambda: 1), [1] * objects.size)


# Deferred: the default


def check2_deferred_call_returns_at_once():
    equal(objects.call(fail_on, [LAST]), 0)
    pending()
    quiet()


def check2_next_call_raises_and_did_not_happen():
    reset()
    before = objects._object_counter
    objects.call(fail_on, [LAST])
    time.sleep(0.3)
    with raises(RemoteError):
        objects.call(objects.function_call_manage, note)
    equal(values(lambda: sys.taskfarm_ran), [0] * objects.size)
    equal(values(lambda: objects._object_counter), [before] * objects.size)
    objects.call(note)
    equal(values(lambda: sys.taskfarm_ran), [1] * objects.size)


def check2_remote_error_says_all():
    objects.call(fail_on, [LAST])
    exc = pending()
    holds(isinstance(exc, TaskfarmError), "root")
    equal((exc.rank, exc.host), (LAST, socket.gethostname()))
    cause = exc.__cause__
    holds(isinstance(cause, OwnError) and str(cause) == f"failed on rank {LAST}", repr(cause))
    text = str(exc)
    for part in (f"rank {LAST}", "OwnError", f"failed on rank {LAST}", "in fail_on", "objects_failures.py"):
        holds(part in text, f"{part!r} not in {text}")
    holds("in fail_on" in exc.remote_traceback, exc.remote_traceback)
    again = pickle.loads(pickle.dumps(exc))
    equal((str(again), again.rank), (str(exc), exc.rank))


def check3_several_ranks_are_all_named():
    ranks = list(range(1, objects.size))
    objects.call(fail_on, ranks)
    time.sleep(0.5)
    with raises(RemoteError) as caught:
        objects.call(len, ())
    text = str(caught.exception)
    for rank in ranks:
        holds(f"failed on rank {rank}" in text, text)
    equal(caught.exception.rank, 1)
    equal([failure.rank for failure in caught.exception.failures], ranks)
    quiet()


def check2_failures_of_several_calls_are_all_reported():
    for k in range(3):
        # a failure may be raised by the very next call already
        with contextlib.suppress(RemoteError):
            objects.call(fail_on, [LAST], OwnError(f"number {k}"))
    with contextlib.suppress(AssertionError):
        for _ in range(3):
            pending(0.5)
    quiet()


def check2_call_all_raises_at_once():
    with raises(RemoteError, match=f"failed on rank {objects.size - 1}"):
        values(fail_on, [LAST])
    quiet()


def check2_system_exit_in_a_worker_is_a_failure():
    objects.call(fail_locally, lambda: SystemExit(3))
    exc = pending()
    holds(isinstance(exc.__cause__, SystemExit) and exc.__cause__.code == 3, repr(exc.__cause__))
    quiet()


def check2_other_base_exceptions_are_failures():
    for cls in (KeyboardInterrupt, GeneratorExit):
        objects.call(fail_locally, lambda cls=cls: cls("odd"))
        holds(cls.__name__ in str(pending()), cls)
    quiet()


def check2_exception_that_does_not_pickle():
    def make():
        exc = OwnError("holds a lock")
        exc.lock = threading.Lock()
        return exc

    objects.call(fail_locally, make)
    exc = pending()
    holds("OwnError" in str(exc) and "holds a lock" in str(exc) and "Traceback" in exc.remote_traceback, str(exc))
    quiet()


def check2_exception_that_does_not_unpickle():
    objects.call(fail_locally, lambda: AwkwardError("awkward text", 5))
    exc = pending()
    holds("AwkwardError" in str(exc) and "awkward text" in str(exc), str(exc))
    quiet()


def check2_exception_whose_text_fails():
    class Mute(Exception):
        def __str__(self):
            raise ValueError("no text")

    objects.call(fail_locally, lambda: Mute())
    holds("Mute" in str(pending()), "class name")
    quiet()


def check2_chained_exception_keeps_its_text():
    def chained():
        if objects.rank:
            try:
                {}["missing key"]
            except KeyError as exc:
                raise OwnError("outer") from exc

    objects.call(chained)
    exc = pending()
    holds("missing key" in exc.remote_traceback and "outer" in exc.remote_traceback, exc.remote_traceback)


def check2_argument_that_does_not_load():
    objects.call(len, [Unloadable()])
    holds("does not load" in str(pending()), "text")
    quiet()


class Unloadable:
    def __reduce__(self):
        return refuse, ()


def refuse():
    raise ValueError("this argument does not load")


# Rank 0 fails too


def check2_failures_of_workers_become_notes_of_rank0s():
    def fail():
        raise OwnError(f"failed on rank {objects.rank}")

    with raises(OwnError, match="failed on rank 0") as caught:
        objects.call(fail)
    notes = "\n".join(getattr(caught.exception, "__notes__", []))
    for rank in range(1, objects.size):
        holds(f"failed on rank {rank}" in notes, f"notes: {notes!r}")
    quiet()


def check2_late_failure_of_a_call_that_rank0_failed_is_never_raised():
    def fail():
        if objects.rank:
            time.sleep(0.7)
        raise OwnError(f"failed on rank {objects.rank}")

    with raises(OwnError, match="failed on rank 0"):
        objects.call(fail)
    time.sleep(1.0)
    quiet()


def check_rank0_failing_alone_leaves_nothing():
    with raises(OwnError):
        objects.call(fail_on, [0])
    quiet()


# Other modes


def check2_wait_raises_in_the_call_itself():
    with objects.on_error("wait"):
        with raises(RemoteError, match="failed on rank") as caught:
            objects.call(fail_on, [LAST])
        equal(caught.exception.rank, LAST)
        equal(objects.call(fail_on, []), 0)
    quiet()


def check2_wait_waits_for_all():
    with objects.on_error("wait"):
        start = time.monotonic()
        objects.call(lambda: time.sleep(0.4 if objects.rank else 0))
        holds(time.monotonic() - start >= 0.35, "did not wait")
    start = time.monotonic()
    objects.call(lambda: time.sleep(0.4 if objects.rank else 0))
    holds(time.monotonic() - start < 0.3, "the mode did not end with its context")
    quiet()


def check2_print_only_prints():
    with objects.on_error("print"):
        equal(objects.call(fail_on, [LAST], OwnError("only printed")), 0)
        time.sleep(0.3)
        equal(objects.call(len, ()), 0)
    quiet()


def check_settings_persist():
    objects.event_loop_settings(on_error="wait")
    try:
        equal(objects.event_loop_settings()["auto_launch"], False)
        if objects.size > 1:
            with raises(RemoteError):
                objects.call(fail_on, [LAST])
    finally:
        objects.event_loop_settings(on_error="deferred")
    if objects.size > 1:
        equal(objects.call(fail_on, [LAST]), 0)
        pending()


def check_unknown_mode_is_an_error():
    with raises(UsageError, match="sometimes"):
        objects.event_loop_settings(on_error="sometimes")
    with raises(UsageError, match="sometimes"), objects.on_error("sometimes"):
        pass
    quiet()


def check2_modes_nest():
    with objects.on_error("wait"):
        with objects.on_error("print"):
            objects.call(fail_on, [LAST], OwnError("only printed"))
        with raises(RemoteError):
            objects.call(fail_on, [LAST])
    quiet()


# Health


def check2_healthy_long_work_is_not_cut_off():
    """One rank fails at once, the others work on for longer than the limit inside collectives."""
    objects.call(lambda: fail_on([LAST]) if objects.rank == LAST else time.sleep(3.0))
    exc = pending(8.0)
    holds(f"failed on rank {LAST}" in str(exc), exc)
    quiet()


def check2_a_long_wait_in_a_collective_without_failure_is_fine():
    def late():
        if objects.rank == objects.size - 1:
            time.sleep(3.0)
        return objects.comm.allreduce(1)

    equal(values(late), [objects.size] * objects.size)


def check2_failure_after_the_collective_is_only_reported():
    def late():
        total = objects.comm.allreduce(1)
        fail_on([objects.size - 1])
        return total

    equal(objects.call(late), objects.size)
    pending()
    quiet()


def check_workers_are_all_alive():
    equal(values(lambda: objects.rank), list(range(objects.size)))


if __name__ == "__main__":
    LAST = objects.size - 1
    objects.launch_event_loop()
    if objects.rank0:
        run_checks(globals(), objects.size)
        objects.quit()
