"""Objects to bytes and back: pickle protocol 5, large arrays out of band, by value only where needed.

Plain pickle is tried first because it is three times faster than cloudpickle. Its one trap is that it pickles what
lives in ``__main__`` by reference although the other ranks' ``__main__`` may lack it; such a stream necessarily
contains that name, so it is searched for it and made anew by value.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np

from taskfarm.wire.frames import Buffer

__all__ = ["OOB_MIN_BYTES", "Packed", "empty_buffer", "pack", "unpack"]

OOB_MIN_BYTES = 32 * 1024  # measured with benchmarks/wire.py: below, one message with a copy beats two without
_PROTOCOL = 5


class Packed(NamedTuple):
    """An object as bytes: the pickle, and the buffers that it refers to (borrowed from the object)."""

    body: bytes
    buffers: list[memoryview]


def _reduce_array(array: np.ndarray[Any, Any]) -> Any:
    """Reduce an array; a large strided one is made contiguous once, so that it also travels out of band."""
    if array.nbytes >= OOB_MIN_BYTES and not array.flags.forc and not array.dtype.hasobject:
        array = np.ascontiguousarray(array)
    return array.__reduce_ex__(_PROTOCOL)


class _StridedPickler(pickle.Pickler):
    dispatch_table: ClassVar[Any] = ChainMap({np.ndarray: _reduce_array}, copyreg.dispatch_table)  # type: ignore[misc]


class _ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[Any] = ChainMap({np.ndarray: _reduce_array}, cloudpickle.Pickler.dispatch_table)


class _Buffers(list[memoryview]):
    """Collects the buffers of one pickle."""

    def keep_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OOB_MIN_BYTES:
            return True
        self.append(raw)
        return False


def _is_strided(obj: object) -> bool:
    return type(obj) is np.ndarray and obj.nbytes >= OOB_MIN_BYTES and not obj.flags.forc


def _holds_strided(part: object) -> bool:
    """Look one level into arguments, so that a large strided array is not first pickled in band for nothing."""
    if type(part) is tuple:
        return any(map(_is_strided, part))
    if type(part) is dict:
        return any(map(_is_strided, part.values()))
    return _is_strided(part)


def _dump(pickler: Callable[..., Any], obj: object) -> Packed:
    buffers = _Buffers()
    stream = io.BytesIO()
    pickler(stream, protocol=_PROTOCOL, buffer_callback=buffers.keep_in_band).dump(obj)
    return Packed(stream.getvalue(), buffers)


def pack(obj: object) -> Packed:
    """Turn `obj` into bytes and buffers.

    Functions and classes go by reference where they are importable, else (lambdas, closures, ``__main__``, modules
    registered with `cloudpickle.register_pickle_by_value`) by value.

    Parameters
    ----------
    obj : object
        Anything that pickle or cloudpickle can handle.

    Returns
    -------
    Packed
        Contiguous buffers (C or Fortran order) of at least `OOB_MIN_BYTES` are borrowed from `obj`, which must not
        change until they are sent.

    Raises
    ------
    Exception
        Whatever pickling raises: usually ``TypeError`` or ``pickle.PicklingError``.
    """
    buffers = _Buffers()
    if _is_strided(obj) or (type(obj) is tuple and any(_holds_strided(part) for part in obj)):
        return _dump(_ByValuePickler, obj)
    try:
        body = pickle.dumps(obj, _PROTOCOL, buffer_callback=buffers.keep_in_band)
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything; cloudpickle has the last word
        return _dump(_ByValuePickler, obj)
    if b"__main__" in body or cloudpickle.list_registry_pickle_by_value():
        return _dump(_ByValuePickler, obj)
    if len(body) >= OOB_MIN_BYTES and b"numpy" in body:  # perhaps a strided array, which plain pickle copies in band
        return _dump(_StridedPickler, obj)
    return Packed(body, buffers)


def unpack(body: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """Return the object that `pack` took apart; it takes over the memory of `buffers`.

    Raises
    ------
    Exception
        Whatever unpickling raises.
    """
    return pickle.loads(body, buffers=buffers)


def empty_buffer(size: int) -> memoryview:
    """Return `size` bytes of writable, uninitialised memory (zero-filling would halve the bandwidth)."""
    return memoryview(np.empty(size, dtype=np.uint8).data)
