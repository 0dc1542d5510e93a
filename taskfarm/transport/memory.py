"""Memory that callers own: how it is found in what they pass, what has to fit on both sides, and its pieces.

Nothing here needs MPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from taskfarm.errors import UsageError

__all__ = ["PIECE_BYTES", "AnyArray", "Memory", "as_cpu_array", "dtype_name", "memory_of", "memory_order", "pieces"]

AnyArray = np.ndarray[Any, Any]

PIECE_BYTES = 1 << 30  # of one MPI message: below 2^31 with room to spare; larger pieces are not faster

_HOST_DEVICES = (1, 3, 11)  # of dlpack.h: kDLCPU, and host memory that is pinned for CUDA or ROCm
_NO_MEMORY = (TypeError, ValueError, BufferError, RuntimeError, AttributeError, NotImplementedError)


class Memory(NamedTuple):
    """An array, ready to be moved.

    Attributes
    ----------
    array : ndarray
        Contiguous in C or Fortran order; its memory is the caller's.
    description : bytes
        What has to be equal on both sides: shape, dtype and order, as readable text.
    """

    array: AnyArray
    description: bytes


def as_cpu_array(provider: Any, name: str, *, writable: bool) -> AnyArray:
    """Return the memory of `provider` as an array, without a copy.

    Parameters
    ----------
    provider : object
        An array, anything with the buffer protocol (bytes, memoryview), with ``__array_interface__`` or DLPack.
    name : str
        Name of the argument, for the error message.
    writable : bool
        Whether the memory will be written to.

    Raises
    ------
    UsageError
        If the memory is not on the CPU, not contiguous in C or Fortran order, holds Python objects or is read-only.
    """
    array = provider if isinstance(provider, np.ndarray) else _find_memory(provider, name)
    if array.dtype.hasobject:
        raise UsageError(f"{name} has dtype {array.dtype}, which holds Python objects: send it with call or a message")
    if type(array) is not np.ndarray and isinstance(array, np.ma.MaskedArray):
        raise UsageError(f"{name} is a masked array, whose mask would be lost: pass {name}.data, and the mask besides")
    flags = array.flags
    if not flags.forc:
        raise UsageError(
            f"{name} (shape {array.shape}, strides {array.strides}) is not contiguous: pass "
            + (f"contiguous memory and copy from it to {name}" if writable else f"numpy.ascontiguousarray({name})")
        )
    if writable and not flags.writeable:
        kind = "" if provider is array else f" ({type(provider).__qualname__})"
        hint = f" (numpy before 2.1 takes DLPack memory for read-only; torch: pass {name}.numpy())"
        raise UsageError(
            f"{name}{kind} is read-only, but data would be received into it: pass writable memory"
            + (hint if provider is not array and hasattr(provider, "__dlpack__") else "")
        )
    return array


def _find_memory(provider: Any, name: str) -> AnyArray:
    kind = f"{type(provider).__module__}.{type(provider).__qualname__}"
    try:
        device = provider.__dlpack_device__()[0] if hasattr(provider, "__dlpack_device__") else _HOST_DEVICES[0]
        if device not in _HOST_DEVICES or hasattr(provider, "__cuda_array_interface__"):
            raise UsageError(
                f"{name} ({kind}) is in GPU memory, and the explicit buffers work on the CPU: pass a copy there "
                f"(cupy: {name}.get(), torch: {name}.cpu()), or use objects.comm directly if your MPI is CUDA-aware"
            )
        if hasattr(provider, "__array_interface__"):
            return np.asarray(provider)
        if not hasattr(provider, "__dlpack__"):
            return np.asarray(memoryview(provider))
        return np.from_dlpack(provider)
    except _NO_MEMORY as exc:
        raise UsageError(
            f"{name} ({kind}) offers no memory to use: {exc}; pass an array, or an object with the buffer protocol, "
            "__array_interface__ or DLPack on the CPU"
        ) from exc


def memory_of(provider: Any, name: str, *, writable: bool) -> Memory:
    """Return the memory of `provider`, described; parameters and errors as of `as_cpu_array`."""
    if type(provider) is np.ndarray:  # the short way for nearly everybody
        dtype, flags = provider.dtype, provider.flags
        if flags.forc and not dtype.hasobject and (flags.writeable or not writable):
            return Memory(provider, _describe(dtype, provider.shape, flags.c_contiguous))
    array = as_cpu_array(provider, name, writable=writable)
    return Memory(array, _describe(array.dtype, array.shape, array.flags.c_contiguous))


def memory_order(array: AnyArray) -> str:
    """Return ``"C"`` or ``"F"``; ``"C"`` for what is both, such as any one-dimensional array."""
    return "C" if array.flags.c_contiguous else "F"


@lru_cache(maxsize=256)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the name of `dtype` with its byte order; fields of a structured one with their places."""
    return dtype.str if dtype.kind != "V" else str(dtype)


@lru_cache(maxsize=256)  # programs send arrays of few kinds many times
def _describe(dtype: np.dtype[Any], shape: tuple[int, ...], c_order: bool) -> bytes:
    return f"shape {shape}, dtype {dtype_name(dtype)}, order {'C' if c_order else 'F'}".encode()


def pieces(array: AnyArray, size: int) -> Iterator[AnyArray]:
    """Yield the memory of `array` in pieces of at most `size` bytes."""
    flat = array.reshape(-1, order="A").view(np.uint8)
    for start in range(0, array.nbytes, size):
        yield flat[start : start + size]
