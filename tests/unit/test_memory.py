"""Finding the memory of what callers pass, and what has to be equal on both sides."""

from __future__ import annotations

import array
from typing import Any

import numpy as np
import pytest

from taskfarm.errors import UsageError
from taskfarm.transport.memory import as_cpu_array, memory_of, memory_order, pieces

RECORD = np.dtype([("a", "f8"), ("b", ">i4")])


class Interface:
    """Offers memory by ``__array_interface__``."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.__array_interface__ = inner.__array_interface__


class Capsule:
    """Offers memory by DLPack; `device` pretends where it is."""

    def __init__(self, inner: Any, device: int = 1) -> None:
        self.inner = inner
        self.device = device

    def __dlpack__(self, **options: Any) -> Any:
        return self.inner.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0


class OnGpu:
    """Looks like an array of cupy or numba."""

    def __init__(self) -> None:
        memory = np.zeros(3)
        interface = memory.__array_interface__
        self.__cuda_array_interface__ = {**interface, "version": 3}


class Broken:
    """Has an interface that does not work, as arrays of some libraries that are not on the CPU."""

    @property
    def __array_interface__(self) -> Any:
        raise RuntimeError("not on the CPU")


class NoDevice(Capsule):
    """Cannot say where its memory is."""

    def __dlpack_device__(self) -> tuple[int, int]:
        raise BufferError("lost")


def same_memory(found: np.ndarray[Any, Any], inner: Any) -> bool:
    return np.shares_memory(found, np.asarray(inner))


@pytest.mark.parametrize(
    "provider",
    [
        bytearray(b"abcdef"),
        memoryview(bytearray(b"abcdef")),
        array.array("d", [1.0, 2.0]),
        np.arange(6.0),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(3.0),
        np.zeros((0, 3)),
        np.zeros(3, ">i4"),
        np.zeros(3, RECORD),
        np.zeros(3, "M8[ns]"),
        np.zeros(3, "S5"),
        np.zeros((1, 1, 4))[:, 0],
    ],
    ids=lambda provider: f"{type(provider).__name__}-{getattr(provider, 'dtype', '')}-{np.shape(provider)}",
)
def test_memory_is_used_where_it_lies(provider: Any) -> None:
    """Whatever offers writable memory on the CPU is used without a copy, for reading and for writing."""
    for writable in (False, True):
        found = as_cpu_array(provider, "array", writable=writable)
        assert found.nbytes == memoryview(provider).nbytes if not isinstance(provider, np.ndarray) else True
        assert found.size == 0 or same_memory(found, provider)


def test_interfaces() -> None:
    """``__array_interface__`` and DLPack on the CPU are used without a copy."""
    inner = np.arange(5.0)
    for provider in (Interface(inner), Capsule(inner)):
        assert same_memory(as_cpu_array(provider, "array", writable=False), inner)
    found = as_cpu_array(Interface(inner), "out", writable=True)
    found[0] = 9.0
    assert inner[0] == 9.0


@pytest.mark.parametrize("provider", [b"abc", memoryview(b"abc"), Interface(np.frombuffer(b"abcdefgh"))])
def test_read_only_memory(provider: Any) -> None:
    """Read-only memory can be sent from; received into it is nothing, and the error names argument and cure."""
    assert as_cpu_array(provider, "array", writable=False).nbytes > 0
    with pytest.raises(UsageError, match=r"^out \(\w+\) is read-only.*pass writable memory$"):
        as_cpu_array(provider, "out", writable=True)


def test_read_only_array() -> None:
    """The same for numpy's own flag."""
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    assert memory_of(frozen, "array", writable=False).array is frozen
    with pytest.raises(UsageError, match="^out is read-only"):
        memory_of(frozen, "out", writable=True)


@pytest.mark.parametrize("provider", [OnGpu(), Capsule(np.zeros(3), device=2), Capsule(np.zeros(3), device=10)])
def test_memory_on_the_gpu(provider: Any) -> None:
    """GPU memory is refused with its type, the ways to the CPU, and the way around."""
    with pytest.raises(UsageError) as caught:
        as_cpu_array(provider, "array", writable=False)
    text = str(caught.value)
    for part in ("array (", type(provider).__qualname__, "GPU memory", "array.get()", "array.cpu()", "objects.comm"):
        assert part in text


@pytest.mark.parametrize("provider", [None, 5, "text", [1.0], {}, object(), Broken(), NoDevice(np.zeros(2))])
def test_what_offers_no_memory(provider: Any) -> None:
    """Anything else is refused with its type and what could be passed; a list is not converted behind one's back."""
    with pytest.raises(UsageError, match=r"^out \([\w.]+\) offers no memory to use: .*buffer protocol"):
        as_cpu_array(provider, "out", writable=True)


def test_what_cannot_be_moved_as_bytes() -> None:
    """Python objects, gaps and masks are refused, each with what to do."""
    with pytest.raises(UsageError, match=r"array has dtype object.*send it with call or a message"):
        as_cpu_array(np.array([{}]), "array", writable=False)
    with pytest.raises(UsageError, match=r"array \(shape \(2, 4\), .*not contiguous.*numpy.ascontiguousarray\(array\)"):
        as_cpu_array(np.zeros((4, 4))[::2], "array", writable=False)
    with pytest.raises(UsageError, match=r"out .*not contiguous: pass contiguous memory and copy from it to out"):
        as_cpu_array(np.zeros((4, 4))[:, 1], "out", writable=True)
    with pytest.raises(UsageError, match=r"array is a masked array.*array\.data"):
        as_cpu_array(np.ma.zeros(3), "array", writable=False)


def describe(provider: Any) -> str:
    return memory_of(provider, "array", writable=False).description.decode()


def test_descriptions() -> None:
    """A description is readable, and tells apart what does not fit: shape, type, byte order, fields, order."""
    assert describe(np.zeros((3, 4))) == "shape (3, 4), dtype <f8, order C"
    assert describe(np.zeros((3, 4), order="F")) == "shape (3, 4), dtype <f8, order F"
    assert describe(np.zeros((), ">i2")) == "shape (), dtype >i2, order C"
    assert describe(bytearray(5)) == "shape (5,), dtype |u1, order C"
    kinds = [np.zeros(3), np.zeros(3, "f4"), np.zeros(3, ">f8"), np.zeros(4), np.zeros((3, 1)), np.zeros((1, 3))]
    kinds += [np.zeros((3, 3)), np.zeros((3, 3), order="F"), np.zeros(3, RECORD), np.zeros(3, "M8[ns]")]
    kinds += [np.zeros(3, [("a", "f8"), ("c", ">i4")]), np.zeros(3, "V12"), np.zeros(3, "M8[s]"), np.zeros(3, "S8")]
    assert len({describe(kind) for kind in kinds}) == len(kinds)


def test_what_has_no_order_is_in_c_order() -> None:
    """Arrays in which both orders are the same fit each other however they were made."""
    for shape in ((), (5,), (5, 1), (1, 5), (0, 3)):
        assert describe(np.zeros(shape, order="F")) == describe(np.zeros(shape))
        assert memory_order(np.zeros(shape, order="F")) == "C"


@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces(order: Any) -> None:
    """Pieces are the memory itself, all of it, in order, and none is too large."""
    whole = np.asarray(np.arange(1000, dtype="i4").reshape(20, 50), order=order)
    parts = list(pieces(whole, 333))
    assert b"".join(part.tobytes() for part in parts) == whole.tobytes(order="A")
    assert max(part.nbytes for part in parts) == 333
    assert all(np.shares_memory(part, whole) for part in parts)
