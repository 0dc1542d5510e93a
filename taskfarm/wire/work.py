"""A function with its arguments as bytes: by its name where that is enough, else pickled.

A function that can be imported travels as the names of its module and its own, behind a mark that no pickle begins
with. It is looked up in its module at every arrival, as pickle does it. That takes half the time, since the names are
encoded and decoded once, and there is nothing to pickle where there are no arguments::

    | mark | length of the names | module, line feed, function | pickle of (args, kwargs), if there are any |

A function that the receiver has been sent before travels as a number, behind another mark::

    | mark | number | pickle of (args, kwargs), if there are any |
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from struct import Struct
from types import BuiltinFunctionType, FunctionType
from typing import Any

from taskfarm.fast import new_tuple
from taskfarm.wire.codec import PLAIN_TYPES, Packed, has_modules_by_value, pack, unpack
from taskfarm.wire.frames import Buffer

__all__ = ["Work", "pack_work", "unpack_work"]

Work = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]

_MARK = 0x01  # a pickle begins with 0x80
_MARK_NUMBER = 0x02
_NUMBER = Struct("<BQ")
_HEAD = Struct("<BH")
_HEAD_SIZE = _HEAD.size
_MAX_NAMES_BYTES = 0xFFFF
_MAX_NAMES = 4096  # remembered; more functions than a program sends
_PROTOCOL = 5
_dumps = pickle.dumps


def pack_work(fn: Callable[..., Any] | int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Packed:
    """Turn a function and its arguments into bytes and buffers.

    Parameters
    ----------
    fn : callable or int
        The function, or the number by which the receiver knows it.
    args, kwargs
        Its arguments.

    Raises
    ------
    Exception
        As `taskfarm.wire.codec.pack`.
    """
    kind = type(fn)
    if kind is int:
        head = _NUMBER.pack(_MARK_NUMBER, fn)
    else:
        names = _importable_names(fn) if kind is FunctionType or kind is BuiltinFunctionType else None
        if names is None:
            return pack((fn, args, kwargs))
        head = names
    if not kwargs:
        if not args:
            return new_tuple(Packed, (head, ()))
        for arg in args:
            if type(arg) not in PLAIN_TYPES:
                break
        else:
            return new_tuple(Packed, (head + _dumps((args, kwargs), _PROTOCOL), ()))
    body, buffers = pack((args, kwargs))
    return Packed(head + body, buffers)


def _importable_names(fn: Any) -> bytes | None:
    """Return the names under which every rank finds `fn`; None if it has to be pickled."""
    module, name = fn.__module__, fn.__qualname__
    if module == "__main__" or has_modules_by_value():
        return None
    if getattr(sys.modules.get(module), name, None) is not fn:  # local, a method, or another one has taken its name
        return None
    return _encode_names(module, name)


@lru_cache(_MAX_NAMES)
def _encode_names(module: str, name: str) -> bytes | None:
    names = f"{module}\n{name}".encode(errors="surrogatepass")
    return _HEAD.pack(_MARK, len(names)) + names if len(names) <= _MAX_NAMES_BYTES else None


@lru_cache(_MAX_NAMES)
def _decode_names(names: bytes) -> tuple[str, str]:
    module, _, name = names.decode(errors="surrogatepass").partition("\n")
    return module, name


def unpack_work(
    body: Buffer, buffers: Sequence[Buffer] = (), find_known: Callable[[int], Callable[..., Any]] | None = None
) -> Work:
    """Return the function and the arguments that `pack_work` made bytes of.

    Parameters
    ----------
    body, buffers : bytes-like, sequence of bytes-like
        What has arrived.
    find_known : callable, optional
        Returns the function with a number; without it, functions do not come as numbers.

    Raises
    ------
    Exception
        Whatever unpickling raises, and what is raised if there is no such module or function.
    """
    mark = body[0] if body else 0
    if mark == _MARK:
        end = _HEAD_SIZE + _HEAD.unpack_from(body)[1]
        module, name = _decode_names(bytes(body[_HEAD_SIZE:end]))
        fn = getattr(sys.modules.get(module) or import_module(module), name)
    elif mark == _MARK_NUMBER and find_known is not None:
        end = _NUMBER.size
        fn = find_known(_NUMBER.unpack_from(body)[1])
    else:
        work: Work = unpack(body, buffers)
        return work
    if len(body) == end:
        return fn, (), {}
    args, kwargs = unpack(memoryview(body)[end:], buffers)
    return fn, args, kwargs
