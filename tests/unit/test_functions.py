"""Which functions are sent once, and when they are sent anew."""

from __future__ import annotations

import gc
import math
from itertools import count
from types import FunctionType
from typing import Any

import pytest

from taskfarm.runtime.executor.functions import FunctionBook
from taskfarm.wire.codec import unpack


def of_main(source: str, **names: Any) -> FunctionType:
    """Return the function ``f`` that `source` defines, as if it were in ``__main__``."""
    namespace: dict[str, Any] = {"__name__": "__main__", "math": math, **names}
    exec(source, namespace)
    found = namespace["f"]
    assert isinstance(found, FunctionType)
    return found


@pytest.fixture
def book() -> FunctionBook:
    return FunctionBook(count(1).__next__)


def known(book: FunctionBook, fn: Any) -> Any:
    """Return what the book says at the second and later uses."""
    assert book.find(fn) is None
    return book.find(fn)


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return x",
        "def f(x, y=2, *, z='a'): return x",
        "def f(x): return math.sin(x) + len(str(x))",
        "K = (1, 'a', None)\ndef f(x): return K",
        "def g(x): return x\ndef f(x): return g(x)",
        "def f(x): return f(x - 1) if x else 0",
        "def f(x): return [y for y in range(x)]",
        "def make(n):\n    def f(x): return x + n\n    return f\nf = make(3)",
    ],
)
def test_what_cannot_change_unseen_is_known(book: FunctionBook, source: str) -> None:
    """At its second use such a function gets a number, keeps it, and its pickle is the function."""
    fn = of_main(source)
    found = known(book, fn)
    assert found is not None
    assert book.find(fn) is found
    assert unpack(found.packed.body).__code__.co_code == fn.__code__.co_code


@pytest.mark.parametrize(
    "source",
    [
        "K = []\ndef f(x): return K",
        "K = {}\ndef f(x): return [K for _ in x]",
        "K = (1, [])\ndef f(x): return K",
        "class C: pass\ndef f(x): return C",
        "K = []\ndef g(x): return K\ndef f(x): return g(x)",
        "def f(x, y=[]): return y",
        "def f(x, *, y={}): return y",
        "def f(x): return f.cache\nf.cache = {}",
        "def make(n):\n    def f(x): return n\n    return f\nf = make([])",
    ],
)
def test_what_may_change_unseen_is_pickled_anew(book: FunctionBook, source: str) -> None:
    """A function that refers to something mutable is never known."""
    fn = of_main(source)
    assert known(book, fn) is None
    assert book.find(fn) is None


def test_a_changed_global_makes_it_another_function(book: FunctionBook) -> None:
    """When what it refers to is another object, the function gets a new number and a new pickle."""
    fn = of_main("K = 1\ndef g(): return K\ndef f(): return g()")
    first = known(book, fn)
    fn.__globals__["K"] = 2
    second = book.find(fn)
    assert first is not None and second is not None
    assert first.number != second.number
    assert (unpack(first.packed.body)(), unpack(second.packed.body)()) == (1, 2)
    fn.__globals__["K"] = []
    assert book.find(fn) is None


def test_a_changed_cell_makes_it_another_function(book: FunctionBook) -> None:
    """The same for what a closure holds."""
    fn = of_main(
        "def make():\n    n = 1\n    def f(): return n\n    def set(k):\n        nonlocal n\n        n = k\n"
        "    f.__globals__['set_n'] = set\n    return f\nf = make()"
    )
    first = known(book, fn)
    fn.__globals__["set_n"](5)
    second = book.find(fn)
    assert first is not None and second is not None
    assert (unpack(first.packed.body)(), unpack(second.packed.body)()) == (1, 5)


@pytest.mark.parametrize("fn", [len, math.sin, test_a_changed_cell_makes_it_another_function, "a".join, int])
def test_what_travels_by_reference_needs_no_number(book: FunctionBook, fn: Any) -> None:
    """Importable functions, builtins, methods and classes are left alone."""
    assert known(book, fn) is None


def test_a_function_that_dies_is_forgotten(book: FunctionBook) -> None:
    """Its number is queued, so that workers drop it; a function that is used once never gets one."""
    fn = of_main("def f(x): return x")
    number = known(book, fn).number
    assert not book.dying
    del fn
    gc.collect()
    assert list(book.dying) == [number]
    for _ in range(5):
        assert book.find(of_main("def f(x): return x")) is None
    gc.collect()
    assert list(book.dying) == [number]
