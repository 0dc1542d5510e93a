"""The loop, and the calls into it."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from taskfarm.config import OnError
from taskfarm.errors import UsageError
from taskfarm.objects import _glue
from taskfarm.objects._live import loop_runs
from taskfarm.runtime import ending
from taskfarm.runtime.call_limits import run_alone
from taskfarm.runtime.runner import describe
from taskfarm.runtime.session import Phase, Session, current, enter

__all__ = [
    "call",
    "call_all",
    "event_loop",
    "event_loop_settings",
    "launch_event_loop",
    "on_error",
    "quit",
    "time_limit",
]

MAX_NAMED = 10  # objects that the warning of `quit` names


def event_loop_settings(auto_launch: bool | None = None, on_error: str | None = None) -> dict[str, bool]:
    """Return, and in part change, the settings of the loop.

    Parameters
    ----------
    auto_launch : bool, optional
        Only returned. By default what the host package's defaults say, or True.
    on_error : {'deferred', 'wait', 'print'}, optional
        From now on, what happens when a worker raises in a `call`: ``deferred`` raises at the next entry into the
        library, ``wait`` at the end of the call, ``print`` prints on the worker and tells nobody.

    Returns
    -------
    dict
        ``{'auto_launch': bool}``: whether a host package should launch the loop; False while it runs already.
    """
    session = current()
    if on_error is not None:
        _set_on_error(session, OnError.parse(on_error, "on_error"))
    if session.worker is not None or loop_runs():
        return {"auto_launch": False}
    return {"auto_launch": _glue.host_auto_launch() if auto_launch is None else bool(auto_launch)}


def _set_on_error(session: Session, mode: OnError) -> OnError:
    before = session.on_error
    session.on_error = mode
    return before


@contextlib.contextmanager
def on_error(mode: str) -> Iterator[None]:
    """Set within a ``with`` block what happens when a worker raises in a `call`; see `event_loop_settings`."""
    session = current()
    before = _set_on_error(session, OnError.parse(mode, "mode"))
    try:
        yield
    finally:
        _set_on_error(session, before)


@contextlib.contextmanager
def time_limit(limit_s: float | None) -> Iterator[None]:
    """Set within a ``with`` block how long each collective call may take, or the job ends.

    A rank of a collective call can be anywhere, also inside a collective operation with the others, so nothing less
    than the job can be ended safely. It ends with status 75, and an error that names the call and the ranks that have
    not left it, with their stacks.

    Parameters
    ----------
    limit_s : float or None
        Seconds from the moment at which a call is sent until the last rank has left it; what a rank is late with from
        calls before it counts, too. None for no limit.

    Raises
    ------
    UsageError
        If it is no number of seconds above 0.
    """
    if limit_s is not None and not (isinstance(limit_s, (int, float)) and 0 < limit_s < math.inf):
        raise UsageError(f"time_limit({limit_s!r}): give a number of seconds above 0, or None for no limit")
    limits = current().call_limits
    before, limits.limit_s = limits.limit_s, limit_s
    try:
        yield
    finally:
        limits.limit_s = before


def launch_event_loop() -> None:
    """Part the ranks: returns at once on rank 0, elsewhere after `quit`.

    Calling it again on rank 0 is harmless, and so is calling it in a task that runs in a process of its own.
    """
    session = current()
    if session.is_task_child:
        return
    if session.rank != 0:
        event_loop()
        return
    if session.phase is Phase.CLOSED or session.loop_launched:
        return
    session.begin()
    _glue.send_host_defaults(call)
    session.loop_launched = True


def event_loop() -> None:
    """Serve calls and tasks on a rank above 0 until rank 0 ends the session.

    Raises
    ------
    UsageError
        On rank 0, and inside a call or task.
    """
    session = current()
    if session.rank == 0:
        raise UsageError("event_loop() runs on ranks above 0; rank 0 calls launch_event_loop()")
    if session.phase is Phase.CLOSED:
        return
    if session.worker is not None:
        raise UsageError("event_loop() inside the loop: it serves this rank already")
    session.loop_launched = True
    session.open()
    session.serve()


def _open(session: Session) -> None:
    if session.phase is not Phase.OPEN:
        session.open(session.config.open_s)


def call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run ``fn(*args, **kwargs)`` on every rank.

    Rank 0 runs it on the caller's own objects, the others on unpickled copies. Before rank 0's own part runs, all raw
    buffers have been sent, so that the function may change its arrays.

    Parameters
    ----------
    fn : callable
        By reference where importable, else by value (closures, lambdas, ``__main__``).
    *args, **kwargs
        Its arguments. Arrays of at least 32 kB travel without a copy on rank 0.

    Returns
    -------
    object
        Rank 0's value; None after `quit`.

    Raises
    ------
    UsageError
        On ranks above 0; if the function or an argument does not pickle (nothing was sent); if tasks of `taskfarm.vm`
        wait for messages that nobody will send.
    RemoteError
        If workers failed in an earlier call: then this one did not happen. In mode ``wait``: in this call.
    Exception
        Whatever rank 0's own part raises, unwrapped; failures of workers in the same call are its notes.

    Notes
    -----
    Rank 0 may be up to 256 calls ahead of the slowest worker.
    """
    session = enter("call()")
    controller = session.open_controller
    if controller is not None and controller.caller.has_workers:
        return controller.caller.call(fn, args, kwargs, session.on_error)
    return _call(fn, args, kwargs, values=False)


def call_all(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
    """Run ``fn(*args, **kwargs)`` on every rank and return every rank's value, in rank order.

    As `call`, but waits for all ranks, and raises `RemoteError` for failures in this very call. Returns an empty list
    after `quit`.
    """
    values = _call(fn, args, kwargs, values=True)
    return [] if values is None else list(values)


def _call(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, values: bool) -> Any:
    session = current()
    if session.phase is Phase.CLOSED:
        return None
    if session.rank != 0:
        raise UsageError(f"call() on rank {session.rank}: only rank 0 makes collective calls, and not from a task")
    session.check_caller("call()")
    if session.size == 1:
        session.registry.forget_dead()
        limit_s = session.call_limits.limit_s
        if limit_s is None:
            result = fn(*args, **kwargs)
        else:
            result = run_alone(limit_s, f"call ({describe(fn)})", session.end_stuck_job, fn, *args, **kwargs)
        return [result] if values else result
    _open(session)
    if session.controller is None:
        return None
    return session.controller.caller.call(fn, args, kwargs, session.on_error, values=values)


def quit() -> None:  # noqa: A001 - the name that callers know
    """End the loops of all ranks, and with them the session. A second `quit` returns at once.

    Warns
    -----
    UserWarning
        If managed objects are left; they are named, and removed.

    Raises
    ------
    UsageError
        On ranks above 0.
    RemoteError
        After the end, if workers failed and it has not been raised yet.
    """
    session = current()
    if session.phase is Phase.CLOSED:
        return
    if session.rank != 0:
        raise UsageError(f"quit() on rank {session.rank}: only rank 0 ends the session")
    _open(session)
    controller = session.controller
    if controller is None:
        return
    if controller.current_call:
        raise UsageError(f"quit() inside call {controller.current_call}")
    session.check_caller("quit()")
    left = controller.leftover_objects()
    if left:
        kinds = [f"{obj_id}: {type(session.registry.objects[obj_id]).__qualname__}" for obj_id in left]
        more = f" and {len(left) - MAX_NAMED} more" if len(left) > MAX_NAMED else ""
        warnings.warn(
            f"quit() while managed objects are left ({', '.join(kinds[:MAX_NAMED])}{more}); they are removed. "
            "Delete their handles or call remove_object before.",
            stacklevel=2,
        )
        session.registry.discard(left)
    session.close()
    error = controller.caller.take_untold_failures()
    if error is not None and not ending.report_late(session, error):
        raise error
