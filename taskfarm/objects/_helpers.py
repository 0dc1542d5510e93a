"""Functions to be used with `call`: they run on every rank."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from taskfarm.ids import ObjectId
from taskfarm.runtime.session import current

__all__ = [
    "function_call",
    "function_call_manage",
    "get_object",
    "import_module",
    "manage_object",
    "map_nested",
    "method_call",
    "method_call_manage",
    "mpi_info",
    "remove_object",
    "run_code",
]


def manage_object(obj: Any) -> ObjectId:
    """Keep `obj` on this rank and return its handle; the calls must come in the same order on all ranks.

    Returns
    -------
    ObjectId
        On rank 0 a `Rank0ObjectId`, which owns: when its last reference dies, the object goes on all ranks.
    """
    session = current()
    return session.registry.manage(obj, owner=session.rank == 0)


def get_object(obj_id: int) -> Any:
    """Return this rank's part of a managed object.

    Raises
    ------
    UsageError
        If there is none (it is also a `KeyError`).
    """
    return current().registry.get(obj_id)


def remove_object(obj_id: int) -> None:
    """Forget this rank's part of a managed object; raise like `get_object` if there is none."""
    current().registry.remove(obj_id)


def map_nested(value: Any) -> Any:
    """Return `value` with every `ObjectId` inside lists, tuples and dicts replaced by this rank's object.

    The functions of this module map top-level arguments only; call this inside your function for nested ones.
    Named tuples keep their type.
    """
    if isinstance(value, ObjectId):
        return current().registry.get(value)
    if isinstance(value, dict):
        return {key: map_nested(item) for key, item in value.items()}
    if isinstance(value, list):
        return [map_nested(item) for item in value]
    if isinstance(value, tuple):
        items = [map_nested(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def function_call(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Run `f`, with `ObjectId` arguments, positional and keyword, replaced by this rank's objects."""
    own_part = current().registry.own_part
    return f(*[own_part(arg) for arg in args], **{name: own_part(value) for name, value in kwargs.items()})


def function_call_manage(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ObjectId:
    """Run `f` as `function_call` does, manage what it returns and return the handle."""
    return manage_object(function_call(f, *args, **kwargs))


def method_call(obj_id: int, name_: str, /, *args: Any, **kwargs: Any) -> Any:
    """Run the method `name_` of a managed object, with `ObjectId` arguments replaced by this rank's objects."""
    return function_call(getattr(get_object(obj_id), name_), *args, **kwargs)


def method_call_manage(obj_id: int, name_: str, /, *args: Any, **kwargs: Any) -> ObjectId:
    """Run a method as `method_call` does, manage what it returns and return the handle."""
    return manage_object(method_call(obj_id, name_, *args, **kwargs))


def run_code(code: str) -> None:
    """Execute `code` in a namespace that all `run_code` calls of this rank share."""
    exec(compile(code, "<run_code>", "exec", dont_inherit=True), current().code_namespace)


def import_module(path: str) -> None:
    """Import the module with this dotted name."""
    importlib.import_module(path)


def mpi_info() -> None:
    """Print rank, host and process number of every rank, a line each in rank order; on rank 0, inside `call`."""
    session = current()
    mine = (session.rank, session.host, os.getpid())
    rows = session.comm.gather(mine, root=0) if session.comm is not None else [mine]
    if rows is not None:
        print("\n".join(f"rank {rank}: host {host}, pid {pid}" for rank, host, pid in rows), flush=True)
