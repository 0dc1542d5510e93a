"""Objects to bytes and back."""

from __future__ import annotations

import copyreg
import functools
import gc
import math
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from taskfarm.wire.codec import OOB_MIN_BYTES, Packed, empty_buffer, pack, unpack

LARGE = OOB_MIN_BYTES // 8  # float64 numbers of an array that just leaves out of band


def received(packed: Packed) -> tuple[bytes, list[memoryview]]:
    """Return what the receiver holds: the bytes in memory of its own."""
    buffers = []
    for buffer in packed.buffers:
        landed = empty_buffer(len(buffer))
        landed[:] = buffer
        buffers.append(landed)
    return packed.body, buffers


def there_and_back(obj: Any) -> Any:
    return unpack(*received(pack(obj)))


def importable(x: int) -> int:
    return x + 1


class Importable:
    """A class that a receiver can import."""

    def __init__(self, value: int) -> None:
        self.value = value

    def method(self, x: int) -> int:
        return self.value + x

    @classmethod
    def build(cls, x: int) -> int:
        return x * 2


@pytest.fixture
def main_module() -> Iterator[types.ModuleType]:
    """The module ``__main__``; names added by the test are removed again."""
    module = sys.modules["__main__"]
    before = dict(vars(module))
    yield module
    vars(module).clear()
    vars(module).update(before)


# Functions and classes


def test_importable_functions_go_by_reference() -> None:
    """An importable function is sent as its name, and the receiver's own is used."""
    packed = pack(importable)
    assert b"test_codec" in packed.body
    assert len(packed.body) < 100
    assert unpack(*received(packed)) is importable
    assert there_and_back(math.sin) is math.sin
    assert there_and_back(Importable) is Importable


def closure() -> Callable[[int], int]:
    offset = 10

    def add(x: int) -> int:
        return x + offset

    return add


CALLABLES = {
    "lambda": (lambda x: x * 3, 6),
    "closure": (closure(), 12),
    "bound method": (Importable(5).method, 7),
    "classmethod": (Importable.build, 4),
    "partial": (functools.partial(pow, 3), 9),
    "partial of a lambda": (functools.partial(lambda a, b: a - b, 10), 8),
}


@pytest.mark.parametrize(("fn", "value"), CALLABLES.values(), ids=CALLABLES.keys())
def test_callables_travel(fn: Callable[[int], int], value: int) -> None:
    """Lambdas, closures, bound methods, classmethods and partials arrive and work."""
    assert there_and_back(fn)(2) == value


def test_recursive_closures_travel() -> None:
    """A local function that calls itself arrives whole."""

    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    assert there_and_back(factorial)(5) == 120


def test_what_lives_in_main_goes_by_value(main_module: types.ModuleType) -> None:
    """A function or class of ``__main__`` arrives although the receiver's ``__main__`` lacks it."""
    source = """if True:
        def helper(x): return x + 1
        def probe(x): return helper(x) * 2
        class Probe:
            def twice(self, x): return 2 * probe(x)
    """
    exec(source, vars(main_module))
    function, instance = pack(main_module.probe), pack(main_module.Probe())
    for name in ("helper", "probe", "Probe"):
        delattr(main_module, name)
    assert unpack(*received(function))(3) == 8
    assert unpack(*received(instance)).twice(3) == 16


LARGE_TEXT = "x" * 100_000
PLACES: dict[str, Callable[[Any], Any]] = {
    "function of a call": lambda thing: (thing, (LARGE_TEXT,), {}),
    "argument": lambda thing: (importable, (LARGE_TEXT, thing), {}),
    "keyword argument": lambda thing: (importable, (LARGE_TEXT,), {"key": thing}),
    "deep in a list": lambda thing: [LARGE_TEXT, [[[[[[thing]]]]]]],
    "behind many": lambda thing: [LARGE_TEXT, *range(1000), thing],
    "beside a large array": lambda thing: (np.zeros(LARGE), {"a": (thing,)}),
    "in an array of objects": lambda thing: (LARGE_TEXT, np.array([thing, None], dtype=object)),
    "in a set": lambda thing: (LARGE_TEXT, {thing}),
    "in an object": lambda thing: (LARGE_TEXT, Importable(thing)),
    "as a key": lambda thing: {thing: LARGE_TEXT},
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_main_is_found_wherever_it_hides(main_module: types.ModuleType, place: Callable[[Any], Any]) -> None:
    """A function of ``__main__`` goes by value wherever it is in the object, however large the rest is."""
    exec("def probe(): return 17", vars(main_module))
    packed = pack(place(main_module.probe))
    del main_module.probe
    assert b"probe" in packed.body
    unpack(*received(packed))


STRIDED: dict[str, Callable[[Any], Any]] = {
    "alone": lambda array: array,
    "argument": lambda array: (importable, (array, "x"), {}),
    "keyword argument": lambda array: (importable, (), {"key": array}),
    "deep in a list": lambda array: [[[[[array]]]]],
    "behind many": lambda array: [*range(1000), array],
}


@pytest.mark.parametrize("place", STRIDED.values(), ids=STRIDED.keys())
def test_strided_arrays_are_found_wherever_they_hide(place: Callable[[Any], Any]) -> None:
    """A large strided array leaves out of band wherever it is in the object."""
    array = np.arange(2.0 * LARGE)[::2]
    packed = pack(place(array))
    assert [len(buffer) for buffer in packed.buffers] == [array.nbytes]
    assert len(packed.body) < 20_000


def test_main_by_value_keeps_arrays_out_of_band(main_module: types.ModuleType) -> None:
    """Also what goes by value sends its large arrays from their own memory."""
    exec("def probe(a): return a.sum()", vars(main_module))
    array = np.ones(LARGE)
    packed = pack((main_module.probe, (array,), {}))
    assert [np.shares_memory(np.frombuffer(buffer), array) for buffer in packed.buffers] == [True]
    fn, args, _ = unpack(*received(packed))
    assert fn(*args) == LARGE


def test_a_new_definition_in_main_is_what_travels(main_module: types.ModuleType) -> None:
    """What is sent is the function as it is now, not as it was first seen."""
    for value in (1, 2):
        exec(f"def probe(): return {value}", vars(main_module))
        assert there_and_back(main_module.probe)() == value


def test_registered_modules_go_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module registered with cloudpickle is sent by value: the receiver does not need it."""
    module = types.ModuleType("not_on_the_other_ranks")
    exec("def probe(): return 17", vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    cloudpickle.register_pickle_by_value(module)
    try:
        packed = pack(module.probe)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    monkeypatch.delitem(sys.modules, module.__name__)
    assert unpack(*received(packed))() == 17


# Arrays


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_leave_from_and_land_in_their_own_memory(order: Any) -> None:
    """From the threshold on an array is not copied: it leaves from its memory, lands in the receiver's, writable."""
    array = np.arange(2.0 * LARGE).reshape(2, -1).copy(order=order)
    packed = pack({"array": array})
    assert len(packed.body) < 1000
    assert len(packed.buffers) == 1
    assert packed.buffers[0].contiguous
    assert packed.buffers[0].ndim == 1
    assert packed.buffers[0].format == "B"
    assert np.shares_memory(np.frombuffer(packed.buffers[0]), array)
    body, buffers = received(packed)
    landed = unpack(body, buffers)["array"]
    assert np.shares_memory(landed, np.frombuffer(buffers[0]))
    assert landed.flags.writeable
    assert landed.flags[f"{order}_CONTIGUOUS"]
    np.testing.assert_array_equal(landed, array, strict=True)


@pytest.mark.parametrize(("size", "n_buffers"), [(OOB_MIN_BYTES - 1, 0), (OOB_MIN_BYTES, 1)])
def test_the_threshold(size: int, n_buffers: int) -> None:
    """Below the threshold an array travels with the pickle: one message with a copy beats two without."""
    packed = pack(np.zeros(size, dtype=np.uint8))
    assert len(packed.buffers) == n_buffers


@pytest.mark.parametrize("size", [10, LARGE])
def test_arrays_arrive_writable(size: int) -> None:
    """A writable array arrives writable, whatever its size."""
    assert there_and_back(np.zeros(size)).flags.writeable
    assert there_and_back(np.zeros((2 * size, 2))[:, 0]).flags.writeable


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_read_only_array_stays_read_only(size: int) -> None:
    """What the sender protected is protected on arrival too, in band and out of band alike."""
    array = np.zeros(size)
    array.flags.writeable = False
    assert not there_and_back(array).flags.writeable


MASKED = np.ma.masked_less(np.arange(float(LARGE)), 5.0)
MASKED.fill_value = -1.0


@pytest.mark.parametrize(
    "inside", [lambda array: array, lambda array: {"a": [array]}, lambda array: (array, lambda: 1)]
)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(LARGE).astype("M8[s]"),
        np.asfortranarray(np.arange(LARGE).reshape(2, -1)).view("m8[ms]"),
        np.arange(2 * LARGE).astype(">M8[D]")[::2],
        MASKED,
        np.ma.MaskedArray(np.arange(LARGE)),
        np.ma.masked_less(np.arange(2 * LARGE), 5)[::2],
    ],
    ids=["dates", "spans in Fortran order", "strided dates", "masked", "nothing masked", "strided and masked"],
)
def test_arrays_of_classes_without_buffers_leave_out_of_band(array: Any, inside: Callable[[Any], Any]) -> None:
    """Dates, spans of time and masked arrays, wherever they are; they arrive as what they were."""
    packed = pack(inside(array))
    assert sum(map(len, packed.buffers)) >= array.nbytes
    assert len(packed.body) < OOB_MIN_BYTES
    landed = unpack(*received(packed))
    while isinstance(landed, (dict, list, tuple)):
        landed = landed["a"] if isinstance(landed, dict) else landed[0]
    assert type(landed) is type(array)
    assert landed.dtype == array.dtype
    assert landed.flags.f_contiguous == np.asarray(array).flags.f_contiguous or not array.flags.forc
    np.testing.assert_array_equal(landed, array)
    np.testing.assert_array_equal(np.ma.getmaskarray(landed), np.ma.getmaskarray(array))
    if isinstance(array, np.ma.MaskedArray):
        assert landed.fill_value == array.fill_value


def test_an_array_in_a_file_arrives_in_memory(tmp_path: Path) -> None:
    """Out of band; it has left its file, so it is an array like any other."""
    np.save(tmp_path / "a.npy", np.arange(LARGE))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert sum(map(len, pack(array).buffers)) == array.nbytes
    landed = there_and_back({"a": array})["a"]
    assert type(landed) is np.ndarray
    np.testing.assert_array_equal(landed, array)


def test_large_strided_arrays_are_copied_once() -> None:
    """A large strided view is made contiguous and then leaves out of band like any other array."""
    array = np.arange(4.0 * LARGE).reshape(2, -1)[:, ::2]
    packed = pack([array, "more"])
    assert [len(buffer) for buffer in packed.buffers] == [array.nbytes]
    assert len(packed.body) < 1000
    np.testing.assert_array_equal(there_and_back([array])[0], array, strict=True)


def test_large_strided_arrays_in_closures_leave_out_of_band() -> None:
    """The same inside what goes by value."""
    array = np.arange(2.0 * LARGE)[::2]
    packed = pack(lambda: array)
    assert [len(buffer) for buffer in packed.buffers] == [array.nbytes]
    np.testing.assert_array_equal(there_and_back(lambda: array)(), array, strict=True)


def test_one_array_twice_travels_once() -> None:
    """Identity within one message is kept, and the array is sent once."""
    array = np.zeros(LARGE)
    packed = pack([array, array])
    assert len(packed.buffers) == 1
    first, second = unpack(*received(packed))
    assert first is second


def test_many_arrays_keep_their_order() -> None:
    """Buffers come in the order in which the pickle refers to them."""
    arrays = [np.full(LARGE + index, index, dtype=np.float64) for index in range(20)]
    for index, array in enumerate(there_and_back(arrays)):
        np.testing.assert_array_equal(array, arrays[index], strict=True)


@pytest.mark.parametrize("size", [3, LARGE])
def test_arrays_of_objects_travel(size: int) -> None:
    """An array of objects is pickled like a list."""
    array = np.array([[index] for index in range(size)] + [None], dtype=object)
    assert there_and_back(array).tolist() == array.tolist()
    assert there_and_back(array[::2]).tolist() == array[::2].tolist()


@pytest.mark.parametrize("step", [1, 2])
def test_array_subclasses_keep_their_type(step: int) -> None:
    """A masked array arrives as one."""
    array = np.ma.masked_less(np.arange(float(LARGE * step)), 5.0)[::step]
    landed = there_and_back(array)
    assert type(landed) is np.ma.MaskedArray
    np.testing.assert_array_equal(landed.mask, array.mask)
    np.testing.assert_array_equal(landed.filled(-1), array.filled(-1))


@pytest.mark.parametrize(
    "obj", [bytes(10), bytearray(10), "text" * 10_000, list(range(100_000)), None, {"numpy": [1.5] * 9000}]
)
def test_other_objects_travel(obj: Any) -> None:
    """Whatever pickle carries arrives equal and of its type."""
    landed = there_and_back(obj)
    assert type(landed) is type(obj)
    assert landed == obj


def test_objects_that_hold_themselves_travel() -> None:
    """A list that is its own item arrives as one."""
    loop: list[Any] = ["x" * 100_000]
    loop.append(loop)
    landed = there_and_back(loop)
    assert landed[1] is landed


def test_pickle_buffers_of_the_user_leave_out_of_band() -> None:
    """Objects of other packages that pickle out of band do so here."""
    memory = bytearray(OOB_MIN_BYTES)
    packed = pack(pickle.PickleBuffer(memory))
    assert [len(buffer) for buffer in packed.buffers] == [OOB_MIN_BYTES]


# Failures and promises to the rest of the process


def test_what_does_not_pickle_raises() -> None:
    """An object that cannot be pickled raises what pickling raises."""
    with pytest.raises((TypeError, pickle.PicklingError)):
        pack(threading.Lock())
    with pytest.raises((TypeError, pickle.PicklingError)):
        pack((importable, (np.zeros(LARGE), iter(lambda: 0, 1), threading.Lock()), {}))


class RaisesInReduce:
    """Raises something unusual when it is pickled."""

    def __reduce__(self) -> Any:
        raise LookupError("not me")


def test_the_error_of_a_users_reduce_gets_through() -> None:
    """Whatever a ``__reduce__`` raises is what the caller sees."""
    with pytest.raises(LookupError, match="not me"):
        pack(RaisesInReduce())


@pytest.mark.parametrize("n_buffers", [0, 2])
def test_a_wrong_number_of_buffers_is_noticed_or_harmless(n_buffers: int) -> None:
    """Missing buffers raise; nothing is read beyond what arrived."""
    packed = pack([np.zeros(LARGE), np.ones(LARGE), np.ones(LARGE)])
    with pytest.raises(pickle.UnpicklingError):
        unpack(packed.body, packed.buffers[:n_buffers])


def test_picklers_of_the_process_stay_as_they_are() -> None:
    """Neither pickle nor cloudpickle reduces arrays differently because this module is loaded."""
    assert np.ndarray not in copyreg.dispatch_table
    assert np.ndarray not in cloudpickle.Pickler.dispatch_table
    assert pickle.loads(pickle.dumps(np.zeros(4)[::2])).tolist() == [0.0, 0.0]


def test_packing_keeps_no_reference() -> None:
    """When the frame is sent and forgotten, the sender's array is free."""
    array = np.zeros(LARGE)
    before = sys.getrefcount(array)
    packed = pack([array])
    del packed
    gc.collect()
    assert sys.getrefcount(array) == before


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_empty_buffers(size: int) -> None:
    """Receive buffers are writable bytes of the wanted size, each its own memory."""
    buffer = empty_buffer(size)
    assert (len(buffer), buffer.nbytes, buffer.format, buffer.readonly) == (size, size, "B", False)
    other = empty_buffer(size)
    other[:] = b"\1" * size
    buffer[:] = b"\0" * size
    assert bytes(other) == b"\1" * size
