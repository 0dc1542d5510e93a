"""Functions with their arguments as bytes."""

from __future__ import annotations

import math
import operator
import os.path
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import MethodType, ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from random_bytes import harmless_bytes

from taskfarm.wire.codec import OOB_MIN_BYTES
from taskfarm.wire.work import pack_work, unpack_work


def there_and_back(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    packed = pack_work(fn, args, kwargs)
    return unpack_work(bytearray(packed.body), packed.buffers)


def double(x: Any) -> Any:
    return 2 * x


class Shelf:
    @staticmethod
    def static(x: Any) -> Any:
        return x

    def method(self, x: Any) -> Any:
        return x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shelf)


FUNCTIONS = [double, len, math.sin, os.path.join, operator.attrgetter("x"), Shelf, Shelf.static, Shelf().method]


@pytest.mark.parametrize("fn", [*FUNCTIONS, partial(double, 3)], ids=lambda fn: getattr(fn, "__name__", "partial"))
@pytest.mark.parametrize("args", [(), (1,), ("a", None, 2.5, b"x"), ([1, 2], {"k": 3}), (double, Shelf())])
@pytest.mark.parametrize("kwargs", [{}, {"key": 1}, {"fn": double}])
def test_work_travels(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Whatever is called and with whatever: the other side gets the same function, arguments and keywords."""
    seen, seen_args, seen_kwargs = there_and_back(fn, *args, **kwargs)
    if isinstance(fn, partial | operator.attrgetter):
        assert repr(seen) == repr(fn)
    elif isinstance(fn, MethodType):  # those of different objects differ
        assert (seen.__func__, seen.__self__) == (fn.__func__, fn.__self__)
    else:
        assert seen == fn
    assert (tuple(seen_args), dict(seen_kwargs)) == (args, kwargs)


def test_importable_functions_go_by_name() -> None:
    """A function of a module costs its name, and nothing is pickled if there are no arguments."""
    body, buffers = pack_work(double, (), {})
    assert len(body) == len(f"{__name__}\ndouble") + 3
    assert not buffers
    assert __name__.encode() in body and b"double" in body


def test_functions_without_a_name_go_by_value() -> None:
    """Lambdas, closures and functions of the script are made anew on the other side."""
    base = 10
    seen, args, _ = there_and_back(lambda x: x + base, 5)
    assert seen(*args) == 15


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module that can be imported."""
    module = ModuleType("taskfarm_test_module")
    exec("def f(): return 'first'", vars(module))
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_the_name_is_looked_up_on_arrival(module: ModuleType) -> None:
    """What has the name when the work arrives is called, as with pickle; nothing older is remembered."""
    packed = pack_work(module.f, (), {})
    assert unpack_work(packed.body)[0]() == "first"
    exec("def f(): return 'second'", vars(module))
    assert unpack_work(packed.body)[0]() == "second"
    del module.f
    with pytest.raises(AttributeError, match="f"):
        unpack_work(packed.body)


def test_a_function_whose_name_was_taken_goes_by_value(module: ModuleType) -> None:
    """A function that was decorated or replaced is itself on the other side, not the one with its name."""
    first = module.f
    exec("def f(): return 'second'", vars(module))
    assert there_and_back(first)[0]() == "first"
    assert there_and_back(module.f)[0]() == "second"


def test_modules_registered_by_value(module: ModuleType) -> None:
    """`cloudpickle.register_pickle_by_value` is obeyed."""
    cloudpickle.register_pickle_by_value(module)
    try:
        packed = pack_work(module.f, (), {})
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    del module.f
    assert unpack_work(packed.body, packed.buffers)[0]() == "first"


def test_missing_modules_raise(module: ModuleType) -> None:
    """A module that the other side does not have is named."""
    packed = pack_work(module.f, (), {})
    name = sys.modules.pop(module.__name__)
    try:
        with pytest.raises(ModuleNotFoundError, match=module.__name__):
            unpack_work(packed.body)
    finally:
        sys.modules[module.__name__] = name


def test_large_arrays_travel_apart() -> None:
    """Arrays among the arguments are borrowed, not pickled, also strided ones (copied once)."""
    array = np.arange(OOB_MIN_BYTES, dtype=np.uint8)
    packed = pack_work(double, (array, 1), {})
    assert len(packed.body) < 1000
    assert np.shares_memory(np.frombuffer(packed.buffers[0], np.uint8), array)
    strided = np.zeros((300, 300))[:, ::2]
    packed = pack_work(double, (strided,), {})
    assert sum(map(len, packed.buffers)) == strided.nbytes
    assert np.array_equal(unpack_work(packed.body, packed.buffers)[1][0], strided)


def test_what_does_not_pickle_raises() -> None:
    """The caller is told; nothing half-made is returned."""
    for work in [(double, (sys._getframe(),), {}), (double, (), {"key": sys._getframe()})]:
        with pytest.raises(TypeError, match="frame"):
            pack_work(*work)


@given(harmless_bytes(60))
def test_random_bytes_raise_only_exceptions(data: bytes) -> None:
    """Bytes that are no work raise an `Exception`, which becomes the failure of the task."""
    for body in (data, b"\x01" + data, pickle.dumps(None)[:-1] + data):
        with suppress(Exception):  # which one is the business of pickle and of the import system
            unpack_work(body)
