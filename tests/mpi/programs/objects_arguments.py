"""Checks of ``taskfarm.objects``: functions and arguments that travel, and arrays."""

from __future__ import annotations

import functools
import json
import math
import operator
import os
import pickle
import sys
import threading
import time

import numpy as np
from tf_checks import equal, holds, raises, run_checks

from taskfarm import objects
from taskfarm.errors import TaskfarmError


def values(fn, *args):
    return objects.call_all(fn, *args)


# Functions


def helper_twice(x):
    return 2 * x


def uses_helper_and_modules(x):
    return helper_twice(x) + math.floor(2.5) + int(np.sum(np.ones(3)))


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


class Point:
    def __init__(self, x):
        self.x = x

    def moved(self, dx):
        return Point(self.x + dx)

    @classmethod
    def origin(cls):
        return cls(0)

    @staticmethod
    def dim():
        return 1

    def __call__(self, y):
        return self.x + y


def check_functions_of_main_travel():
    n = objects.size
    equal(values(uses_helper_and_modules, 4), [13] * n)
    equal(values(fibonacci, 10), [55] * n)
    equal([p.x for p in values(Point(3).moved, 4)], [7] * n)
    equal([p.x for p in values(Point.origin)], [0] * n)
    equal(values(Point.dim), [1] * n)
    equal(values(Point(3), 4), [7] * n)
    equal([type(p) is Point for p in values(Point, 1)], [True] * n)


def check_closures_lambdas_partials_builtins_travel():
    n = objects.size
    factor = 3

    def scale(x, *, offset=1):
        return factor * x + offset

    def local_recursion(k):
        return 1 if k == 0 else k * local_recursion(k - 1)

    equal(values(scale, 2), [7] * n)
    equal(values(functools.partial(scale, offset=5), 2), [11] * n)
    equal(values(local_recursion, 5), [120] * n)
    equal(values(lambda f: f(f, 4), lambda f, k: k if k < 2 else f(f, k - 1) + 1), [4] * n)
    equal(values(len, (1, 2)), [2] * n)
    equal(values("a-{}".format, 1), ["a-1"] * n)
    equal(values(operator.itemgetter(1), "xyz"), ["y"] * n)
    equal([float(v) for v in values(np.add, 1.0, 2.0)], [3.0] * n)


def check_class_defined_after_start_travels():
    namespace = {"__name__": "__main__"}
    exec(
        "class Late:\n    def __init__(self, x):\n        self.x = x\n    def get(self):\n        return self.x",
        namespace,
    )
    oid = objects.call(objects.function_call_manage, namespace["Late"], 11)
    equal(values(lambda i: objects.get_object(i).get(), oid), [11] * objects.size)
    equal([late.get() for late in values(lambda late: late, namespace["Late"](5))], [5] * objects.size)


def check_a_class_stays_the_same_class_over_calls():
    class Local:
        pass

    oid = objects.call(objects.function_call_manage, lambda: Local())
    equal(values(lambda i, other: type(objects.get_object(i)) is type(other), oid, Local()), [True] * objects.size)


def check_importable_functions_go_by_reference():
    equal(values(lambda f: f is json.dumps, json.dumps), [True] * objects.size)
    with open("tf_counting.py", "w") as file:
        file.write("seen = []\ndef note(x):\n    seen.append(x)\n    return len(seen)\n")
    objects.call(lambda: sys.path.insert(0, os.getcwd()))
    sys.path.insert(0, os.getcwd())
    import tf_counting

    for i in range(3):
        objects.call(tf_counting.note, i)
    equal(values(lambda: __import__("tf_counting").seen), [[0, 1, 2]] * objects.size)


def check_scipy_sparse_in_a_function():
    try:
        import scipy.sparse as sps
    except ImportError:
        return

    def build(k):
        return sps.identity(k, format="csr").sum()

    equal([float(v) for v in values(build, 4)], [4.0] * objects.size)
    matrix = sps.random(50, 50, density=0.1, format="csc", random_state=1)
    equal([float(v) for v in values(lambda m: m.sum(), matrix)], [float(matrix.sum())] * objects.size)


def check_unpicklable_argument_is_an_error_and_nothing_is_sent():
    objects.call(lambda: setattr(sys, "taskfarm_ran", 0))

    def note(*args):
        sys.taskfarm_ran += 1

    ids_before = objects._object_counter
    bad_arguments = [threading.Lock(), (i for i in ()), sys._getframe()]
    for bad in bad_arguments if objects.size > 1 else []:
        with raises(TaskfarmError, TypeError, pickle.PicklingError) as caught:
            objects.call(note, [bad])
        holds(str(caught.exception), "no text")
    lock = threading.Lock()
    if objects.size > 1:
        with raises(TaskfarmError, TypeError, pickle.PicklingError):
            objects.call(lambda: lock)
    equal(values(lambda: sys.taskfarm_ran), [0] * objects.size)
    equal(values(lambda: objects._object_counter), [ids_before] * objects.size)


def check1_unpicklable_argument_is_fine_on_one_rank():
    if objects.size == 1:
        lock = threading.Lock()
        holds(objects.call(lambda x: x, lock) is lock, "plain call")


# Arrays


def arrays():
    rng = np.random.default_rng(0)
    big = rng.random(1_000_000)
    return {
        "big": big,
        "fortran": np.asfortranarray(rng.random((300, 400))),
        "strided": big[::3],
        "reversed": big[::-1],
        "small": np.arange(3),
        "empty": np.empty((0, 4)),
        "scalar": np.array(2.5),
        "strings": np.array(["a", "bcd"]),
        "objects": np.array([1, "x", None], dtype=object),
        "record": np.zeros(5, dtype=[("a", "f8"), ("b", "i4")]),
        "complex": rng.random(20_000) + 1j,
        "bool": rng.random(100_000) > 0.5,
    }


def digest(x):
    return (str(x.dtype), x.shape, x.tolist() if x.size < 10 else float(np.abs(x).sum()))


def check_arrays_arrive_equal_and_writable():
    def look(given):
        flags = {name: (a.flags.writeable, a.flags.owndata or a.base is not None) for name, a in given.items()}
        order = given["fortran"].flags.f_contiguous
        return {name: digest(a) for name, a in given.items()}, flags, order

    given = arrays()
    expected = {name: digest(a) for name, a in given.items()}
    for seen, flags, order in values(look, given):
        equal(seen, expected)
        equal([name for name, flag in flags.items() if not flag[0]], [])
        holds(order, "the Fortran order was lost")


def check_rank0_may_change_arrays_in_its_function():
    for n_items in (100, 10_000, 4_000_000):
        array = np.ones(n_items)

        def work(a):
            if objects.rank == 0:
                a[:] = -1.0
                return 0.0
            return float(a.min())

        seen = values(work, array)
        equal(seen[1:], [1.0] * (objects.size - 1))
        equal(float(array[0]), -1.0)


def check_caller_may_change_arrays_after_call():
    objects.call(lambda: setattr(sys, "taskfarm_sums", []))

    def work(a):
        if objects.rank:
            time.sleep(0.02)
        sys.taskfarm_sums.append(float(a[0]))

    for n_items in (10, 1_000_000):
        array = np.zeros(n_items)
        for i in range(5):
            array[:] = i
            objects.call(work, array)
        array[:] = -1
    equal(values(lambda: sys.taskfarm_sums), [[0.0, 1.0, 2.0, 3.0, 4.0] * 2] * objects.size)


def check_large_bytes_and_results():
    blob = os.urandom(1 << 20)
    equal([v == blob for v in values(lambda b: b, blob)], [True] * objects.size)
    big = bytearray(3_000_000)
    equal([type(v) for v in values(lambda b: b, big)], [bytearray] * objects.size)
    shapes = [a.shape for a in values(lambda: np.full((objects.rank + 1, 200_000), objects.rank))]
    equal(shapes, [(r + 1, 200_000) for r in range(objects.size)])


if __name__ == "__main__":
    objects.launch_event_loop()
    if objects.rank0:
        run_checks(globals(), objects.size)
        objects.quit()
