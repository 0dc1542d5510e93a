"""Objects to bytes and back: pickle protocol 5, large arrays out of band, by value only where needed.

Plain pickle is tried first because it is three times faster than cloudpickle. Its one trap is that it pickles what
lives in ``__main__`` by reference although the other ranks' ``__main__`` may lack it; such a stream necessarily
contains that name, so it is searched for it and made anew by value.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections import ChainMap
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np

from taskfarm.fast import new_tuple
from taskfarm.wire.frames import Buffer

__all__ = [
    "OOB_MIN_BYTES",
    "PLAIN_TYPES",
    "Packed",
    "empty_buffer",
    "has_modules_by_value",
    "pack",
    "pack_each",
    "unpack",
]

OOB_MIN_BYTES = 32 * 1024  # measured with benchmarks/wire.py: below, one message with a copy beats two without
_PROTOCOL = 5


# A search through the pickle takes 0.35 us per kB, which is many times as long as the pickling of bytes.
_SEARCH_COSTS_BYTES = 2 * 1024
PLAIN_TYPES = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})
_MAX_LOOKED_AT = 16  # items of one container


_NO_BUFFERS: Sequence[memoryview] = ()
_dumps = pickle.dumps


class Packed(NamedTuple):
    """An object as bytes: the pickle, and the buffers that it refers to (borrowed from the object)."""

    body: bytes
    buffers: Sequence[memoryview]


def _reduce_array(array: np.ndarray[Any, Any]) -> Any:
    """Reduce an array; a large strided one is made contiguous once, so that it also travels out of band.

    So do dates, which have no buffer of their own, as integers.
    """
    if array.nbytes >= OOB_MIN_BYTES and not array.dtype.hasobject:
        if not array.flags.forc:
            array = np.ascontiguousarray(array)
        if array.dtype.kind in "mM":
            return _view, (array.view(np.int64), array.dtype)
    return array.__reduce_ex__(_PROTOCOL)


def _view(numbers: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return numbers.view(dtype)


def _reduce_memmap(array: np.memmap[Any, Any]) -> Any:
    """Reduce an array in a file to one in memory: it arrives without its file anyway, and the class has no buffers."""
    return _reduce_array(np.asarray(array))


def _reduce_masked(array: Any) -> Any:
    """Reduce a masked array to its data and its mask; the class itself pickles both in band."""
    if array.nbytes < OOB_MIN_BYTES:
        return array.__reduce__()
    mask = None if array.mask is np.ma.nomask else array.mask
    return _mask, (np.asarray(array.data), mask, array.fill_value)


def _mask(data: np.ndarray[Any, Any], mask: np.ndarray[Any, Any] | None, fill_value: Any) -> Any:
    return np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask, fill_value=fill_value)


class _Reducers(ChainMap[Any, Any]):
    """How arrays are reduced; what others have registered stands behind."""

    def __missing__(self, kind: type) -> Any:
        if kind is getattr(sys.modules.get("numpy.ma"), "MaskedArray", None):  # slow to import, and rare
            return _reduce_masked
        return super().__missing__(kind)


_ARRAYS = {np.ndarray: _reduce_array, np.memmap: _reduce_memmap}


class _StridedPickler(pickle.Pickler):
    dispatch_table: ClassVar[Any] = _Reducers(_ARRAYS, copyreg.dispatch_table)  # type: ignore[misc]


class _ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[Any] = _Reducers(_ARRAYS, cloudpickle.Pickler.dispatch_table)


class _Buffers(list[memoryview]):
    """Collects the buffers of one pickle."""

    def keep_in_band(self, buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OOB_MIN_BYTES:
            return True
        self.append(raw)
        return False


def _holds_strided(obj: Any, depth: int = 2) -> bool:
    """Look into arguments, so that a large strided array is not first pickled in band for nothing."""
    kind = type(obj)
    if kind is np.ndarray:
        return bool(obj.nbytes >= OOB_MIN_BYTES and not obj.flags.forc)
    if obj and depth:
        for part in obj.values() if kind is dict else obj if kind is tuple else ():
            kind = type(part)
            if (kind is np.ndarray or kind is tuple or kind is dict) and _holds_strided(part, depth - 1):
                return True
    return False


def _is_plain(obj: Any, depth: int = 3) -> bool:
    """Tell whether a short look shows that the pickle of `obj` names nothing of ``__main__`` and holds no large array.

    So that the pickles of large plain things need not be searched.
    """
    kind = type(obj)
    if kind in PLAIN_TYPES:
        return True
    if kind is tuple or kind is list:
        return depth > 0 and len(obj) <= _MAX_LOOKED_AT and all(_is_plain(item, depth - 1) for item in obj)
    if kind is dict:
        return _is_plain(list(obj), depth) and _is_plain(list(obj.values()), depth)
    if kind is np.ndarray:
        dtype = obj.dtype
        return not dtype.hasobject and bool((obj.flags.forc and dtype.kind not in "mM") or obj.nbytes < OOB_MIN_BYTES)
    return kind is FunctionType and obj.__module__ != "__main__"


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
    if obj is None:
        return _NOTHING
    kind = type(obj)
    if kind in PLAIN_TYPES:
        return new_tuple(Packed, (_dumps(obj, _PROTOCOL), _NO_BUFFERS))
    if (kind is np.ndarray or kind is tuple or kind is dict) and _holds_strided(obj):
        return _dump(_ByValuePickler, obj)
    buffers = _Buffers()
    try:
        body = _dumps(obj, _PROTOCOL, buffer_callback=buffers.keep_in_band)
    except Exception:  # noqa: BLE001 - any __reduce__ may raise anything; cloudpickle has the last word
        return _dump(_ByValuePickler, obj)
    if has_modules_by_value():
        return _dump(_ByValuePickler, obj)
    size = len(body)
    if size < _SEARCH_COSTS_BYTES or not _is_plain(obj):
        if body.find(b"__main__") >= 0:  # faster than `in`
            return _dump(_ByValuePickler, obj)
        if size >= OOB_MIN_BYTES and b"numpy" in body:  # perhaps a strided array, which plain pickle copies in band
            return _dump(_StridedPickler, obj)
    return new_tuple(Packed, (body, buffers))


def pack_each(objs: Sequence[object]) -> tuple[list[bytes], list[int], list[memoryview]]:
    """Turn each of `objs` into bytes of its own, as `pack` does, plain ones four times as fast.

    Returns
    -------
    tuple of list
        The pickles, the number of buffers of each (empty if none has any), and all buffers.
    """
    if PLAIN_TYPES.issuperset(map(type, objs)):
        return [_dumps(obj, _PROTOCOL) for obj in objs], [], []
    packed = [pack(obj) for obj in objs]
    buffers = [buffer for one in packed for buffer in one.buffers]
    return [one.body for one in packed], [len(one.buffers) for one in packed] if buffers else [], buffers


_NOTHING = Packed(pickle.dumps(None, _PROTOCOL), [])  # what most tasks return


# The registry itself, where it is found: the public query copies it, which takes 0.1 us for each message.
_modules_by_value: Any = getattr(cloudpickle.cloudpickle, "_PICKLE_BY_VALUE_MODULES", None)


def has_modules_by_value() -> bool:
    """Tell whether a module is registered with `cloudpickle.register_pickle_by_value`."""
    return bool(cloudpickle.list_registry_pickle_by_value() if _modules_by_value is None else _modules_by_value)


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
