"""Checks of ``taskfarm.objects``: managed objects, their handles, and how ids stay aligned."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import threading
import time
import types

from tf_checks import equal, holds, raises, run_checks

from taskfarm import objects
from taskfarm.errors import RemoteError, UsageError


class Thing:
    def __init__(self, value):
        self.value = value

    def add(self, other=0, *, extra=0):
        return self.value + number(other) + number(extra)

    def make(self, other=0):
        return Thing(self.value + number(other))

    def kinds(self, *args, **kwargs):
        return [type(a).__name__ for a in args], {k: type(v).__name__ for k, v in kwargs.items()}


def number(x):
    return getattr(x, "value", x)


def values(fn, *args):
    return objects.call_all(fn, *args)


def manage(value):
    """A managed Thing whose value differs between ranks: value + rank."""
    return objects.call(objects.function_call_manage, lambda v: Thing(v + objects.rank), value)


def present(*numbers):
    return values(lambda ids: [i in objects._managed_objects for i in ids], [int(i) for i in numbers])


def all_ranks(*flags):
    return [list(flags)] * objects.size


def counters():
    return values(lambda: objects._object_counter)


def drain():
    """Wait for, and forget, a failure that a worker may still report."""
    time.sleep(0.3)
    try:
        values(len, ())
    except RemoteError as exc:
        return exc
    return None


# Types and copies


def check_kinds_of_handles():
    oid = manage(1)
    holds(type(oid) is objects.Rank0ObjectId and isinstance(oid, int), type(oid))
    seen = values(lambda: type(objects.manage_object("x")).__name__)
    equal(seen, ["Rank0ObjectId"] + ["ObjectId"] * (objects.size - 1))
    holds(hash(oid) == hash(int(oid)) and oid == int(oid), "a handle is its number")
    equal({int(oid): 1}[oid], 1)


def check_ids_count_up_and_are_the_same_everywhere():
    first = manage(0)
    second = manage(0)
    equal(int(second), int(first) + 1)
    ids = values(lambda: [int(objects.manage_object(k)) for k in range(3)])
    equal(ids, [[int(second) + 1 + k for k in range(3)]] * objects.size)
    equal(counters(), [int(second) + 4] * objects.size)


def check_copies_and_pickles_are_plain():
    oid = manage(1)
    copies = [copy.copy(oid), copy.deepcopy(oid), copy.deepcopy([oid])[0]]
    copies += [pickle.loads(pickle.dumps(oid, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    equal({type(c) for c in copies}, {objects.ObjectId})
    equal({int(c) for c in copies}, {int(oid)})
    del copies
    gc.collect()
    equal(present(oid), all_ranks(True))


def check_handles_as_arguments_of_a_bare_call():
    oid = manage(3)
    holds(objects.call(lambda given: given, oid) is oid, "rank 0 does not get its own handle")
    kinds = values(lambda given: type(given).__name__, oid)
    equal(kinds, ["Rank0ObjectId"] + ["ObjectId"] * (objects.size - 1))
    equal(present(oid), all_ranks(True))


def check_get_object_gives_each_rank_its_own():
    oid = manage(10)
    equal(values(lambda i: objects.get_object(i).value, oid), [10 + r for r in range(objects.size)])
    thing = objects.get_object(oid)
    holds(objects.call(objects.get_object, oid) is thing, "not rank 0's object")
    holds(objects._managed_objects[oid] is thing, "_managed_objects")


def check_get_object_of_an_unknown_id_is_an_error():
    with raises(KeyError, UsageError):
        objects.get_object(objects.ObjectId(10**9))


# Death of handles


def check_the_last_reference_removes_everywhere():
    objects.call(lambda: setattr(sys, "taskfarm_died", 0))
    oid = objects.call(objects.function_call_manage, make_mortal)
    number_, other = int(oid), oid
    del oid
    gc.collect()
    equal(present(number_), all_ranks(True))
    del other
    gc.collect()
    equal(present(number_), all_ranks(False))
    equal(values(lambda: (gc.collect(), sys.taskfarm_died)[1]), [1] * objects.size)


class Mortal:
    def __del__(self):
        sys.taskfarm_died += 1


def make_mortal():
    return Mortal()


def check_handle_in_a_cycle_and_in_another_thread():
    first, second = manage(1), manage(2)
    numbers = int(first), int(second)
    cycle = types.SimpleNamespace(handle=first)
    cycle.itself = cycle
    box = [second]
    del first, second, cycle
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    gc.collect()
    equal(present(*numbers), all_ranks(False, False))


def check_handle_that_dies_inside_a_call():
    box = [manage(1), manage(2)]
    numbers = [int(h) for h in box]

    def work(mine):
        if objects.rank == 0:
            mine.clear()
            gc.collect()
        return objects.comm.allreduce(1)

    equal(objects.call(work, box), objects.size)
    equal(present(*numbers), all_ranks(False, False))


def check_handle_that_dies_during_its_own_last_call():
    """The argument of the call is the last reference: the object is there for the call, and gone after it."""
    box = [manage(5)]
    number_ = int(box[0])
    equal(objects.call(objects.method_call, box.pop(), "add", 1), 6)
    equal(present(number_), all_ranks(False))


def check_explicit_removal_then_death_is_silent():
    oid = manage(1)
    objects.call(objects.remove_object, oid)
    equal(present(oid), all_ranks(False))
    del oid
    gc.collect()
    equal(values(lambda: 1), [1] * objects.size)
    equal(drain(), None)


def check_death_after_removal_takes_no_other_object():
    oid = manage(1)
    objects.call(objects.remove_object, oid)
    others = [manage(k) for k in range(3)]
    del oid
    gc.collect()
    equal(present(*others), all_ranks(True, True, True))


def check_many_handles_die_at_once():
    handles = [manage(k) for k in range(300)]
    numbers = [int(h) for h in handles]
    del handles
    gc.collect()
    values(len, ())
    equal(values(lambda ids: sum(i in objects._managed_objects for i in ids), numbers), [0] * objects.size)


# Mapping of arguments


def check_function_call_maps_positional_and_keyword():
    a, b = manage(100), manage(200)

    def use(x, y, *rest, k):
        return number(x) + number(y) + number(k), [type(r).__name__ for r in rest]

    expected = [(400 + 3 * r, ["Thing", "int"]) for r in range(objects.size)]
    equal(values(objects.function_call, lambda *args: use(*args[:-1], k=args[-1]), a, b, a, 7, a), expected)
    equal(objects.call(objects.function_call, use, a, b, k=copy.copy(a)), (400, []))


def check_method_call_maps_on_every_rank_alike():
    a, b = manage(100), manage(200)
    equal(values(objects.method_call, a, "add", b), [300 + 2 * r for r in range(objects.size)])
    equal(objects.call(objects.method_call, a, "add", b, extra=b), 500)
    equal(values(objects.method_call, copy.copy(a), "add", copy.copy(b)), [300 + 2 * r for r in range(objects.size)])
    equal(objects.call(objects.method_call, a, "kinds", b, 5, k=b), (["Thing", "int"], {"k": "Thing"}))


def check_manage_forms_map_too():
    a, b = manage(100), manage(200)
    c = objects.call(objects.method_call_manage, a, "make", b)
    d = objects.call(objects.function_call_manage, lambda x, y: Thing(x.value * y.value), a, y=b)
    holds(type(c) is objects.Rank0ObjectId and type(d) is objects.Rank0ObjectId, "kinds")
    n = objects.size
    equal(values(lambda i: objects.get_object(i).value, c), [300 + 2 * r for r in range(n)])
    equal(values(lambda i: objects.get_object(i).value, d), [(100 + r) * (200 + r) for r in range(n)])


def check_mapping_is_top_level_only():
    a = manage(1)

    def look(in_list, in_tuple, in_dict):
        return [isinstance(x, int) for x in (in_list[0], in_tuple[0], in_dict["k"])]

    seen = values(objects.function_call, look, [a], (a,), {"k": a})
    equal(seen, [[True] * 3] * objects.size)


def check_none_can_be_managed():
    oid = objects.call(objects.function_call_manage, lambda: None)
    equal(values(lambda i: objects.get_object(i) is None, oid), [True] * objects.size)


# Ids stay aligned


def aligned(expected=None):
    """After a failure: counters agree, and a new object has one id everywhere with the right parts."""
    seen = counters()
    equal(len(set(seen)), 1)
    if expected is not None:
        equal(seen[0], expected)
    oid = manage(1000)
    equal(values(lambda i: objects.get_object(i).value, oid), [1000 + r for r in range(objects.size)])


def check2_aligned_after_a_worker_failed_to_create():
    keep = manage(1)
    before = objects._object_counter

    def create():
        if objects.rank == 1:
            raise ValueError("no object on rank 1")
        return Thing(objects.rank)

    oid = objects.call(objects.function_call_manage, create)
    holds("no object on rank 1" in str(drain()), "the failure was not reported")
    equal(present(before, keep), all_ranks(False, True))
    aligned()
    with raises(KeyError, UsageError, RemoteError):
        objects.call(objects.method_call, oid, "add")
        values(len, ())
    drain()
    del oid
    gc.collect()
    equal(values(lambda: 1), [1] * objects.size)
    equal(drain(), None)
    aligned()


def check_aligned_after_rank0_failed_to_create():
    before = objects._object_counter

    def create():
        if objects.rank == 0:
            raise ValueError("no object on rank 0")
        return Thing(objects.rank)

    with raises(ValueError, match="no object on rank 0"):
        objects.call(objects.function_call_manage, create)
    equal(drain(), None)
    equal(present(before), all_ranks(False))
    aligned()


def check_aligned_after_all_failed_to_create():
    oid = manage(1)
    with raises(AttributeError):
        objects.call(objects.method_call_manage, oid, "no_such_method")
    equal(drain(), None)
    aligned()


def check2_aligned_after_one_of_several_ids():
    """A function that manages three objects fails on one worker after the first."""

    def create():
        ids = []
        for k in range(3):
            if objects.rank == objects.size - 1 and k == 1:
                raise ValueError("stopped after one")
            ids.append(objects.manage_object(Thing(k)))
        return ids

    before = objects._object_counter
    ids = objects.call(create)
    equal([int(i) for i in ids], [before, before + 1, before + 2])
    holds("stopped after one" in str(drain()), "the failure was not reported")
    equal(
        values(lambda b: [b + k in objects._managed_objects for k in (1, 2)], before), [[False, False]] * objects.size
    )
    aligned(before + 3)
    del ids
    gc.collect()
    equal(drain(), None)


def check2_aligned_after_arguments_that_do_not_load():
    oid = objects.call(objects.function_call_manage, lambda bad: Thing(0), Unloadable())
    exc = drain()
    holds(exc is not None and "does not load" in str(exc), exc)
    del oid
    gc.collect()
    equal(drain(), None)
    aligned()


class Unloadable:
    def __reduce__(self):
        return refuse, (objects.rank,)


def refuse(rank):
    raise ValueError("this argument does not load")


def check2_aligned_after_an_unpicklable_argument():
    before = objects._object_counter
    with raises(Exception):
        objects.call(objects.function_call_manage, Thing, threading.Lock())
    equal(counters(), [before] * objects.size)
    aligned(before)


def check2_pending_failure_consumes_no_id():
    objects.call(lambda: 1 // objects.rank0)
    time.sleep(0.3)
    before = objects._object_counter
    with raises(RemoteError):
        manage(5)
    equal(counters(), [before] * objects.size)
    aligned(before)


def check_nothing_is_left_managed():
    gc.collect()
    values(len, ())
    left = values(lambda: sorted(map(int, objects._managed_objects)))
    equal(left, [left[0]] * objects.size)


if __name__ == "__main__":
    objects.launch_event_loop()
    if objects.rank0:
        run_checks(globals(), objects.size)
        gc.collect()
        for number in list(objects._managed_objects):
            objects.call(objects.remove_object, objects.ObjectId(number))
        objects.quit()
