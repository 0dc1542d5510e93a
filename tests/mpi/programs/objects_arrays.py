"""Checks of the explicit array buffers of ``taskfarm.objects``: broadcast, scatter and gather between owned memory."""

from __future__ import annotations

import itertools

import numpy as np
from tf_checks import holds, run_checks

from taskfarm import objects
from taskfarm.errors import UsageError

RECORD = np.dtype([("a", "f8"), ("b", "i4")])
DTYPES = ("f8", "i2", "c16", ">f4", RECORD)
SHAPES = ((11,), (11, 3), (11, 3, 4))


def filled(shape, dtype, order):
    numbers = np.arange(int(np.prod(shape))) % 120
    flat = np.array([(i, i) for i in numbers], dtype=dtype) if dtype is RECORD else numbers.astype(dtype)
    return np.array(flat.reshape(shape), order=order)


def uneven_counts(n_rows, size):
    counts = [n_rows // size] * size
    counts[-1] += n_rows - sum(counts)
    if size > 1:
        counts[-1] += counts[0]
        counts[0] = 0
    return counts


def check_rows_arrive_for_every_dtype_shape_and_order():
    def move():
        comm, rank = objects.comm, objects.rank
        counts = uneven_counts(SHAPES[0][0], comm.size)
        start = sum(counts[:rank])
        for dtype, shape, order, part_order in itertools.product(DTYPES, SHAPES, "CF", "CF"):
            whole = filled(shape, dtype, order)
            part = np.zeros((counts[rank], *shape[1:]), dtype, order=part_order)
            objects.scatter_rows(whole if rank == 0 else None, part)
            if not (part == whole[start : start + counts[rank]]).all():
                return f"scatter {dtype} {shape} {order} {part_order}"
            last = comm.size - 1
            back = np.zeros_like(whole) if rank == last else None
            objects.gather_rows(part, back, last)
            if rank == last and not (back == whole).all():
                return f"gather {dtype} {shape} {order} {part_order}"
            copy = whole if rank == 0 else np.zeros_like(whole)
            objects.broadcast_array(copy)
            if not (copy == whole).all():
                return f"broadcast {dtype} {shape} {order}"
        return ""

    found = objects.call_all(move)
    holds(not any(found), found)


def check_memory_is_the_callers_own():
    def move():
        target = np.zeros(100_000)
        address = target.ctypes.data
        objects.broadcast_array(np.arange(1e5) if objects.rank == 0 else target)
        return objects.rank == 0 or (target.ctypes.data == address and bool((target == np.arange(1e5)).all()))

    found = objects.call_all(move)
    holds(all(found), found)


def check_other_buffer_providers_work():
    class Provider:
        def __init__(self, array):
            self.array = array
            self.__array_interface__ = array.__array_interface__

    def move():
        text = bytearray(b"hello") if objects.rank == 0 else bytearray(5)
        objects.broadcast_array(text)
        view = memoryview(np.arange(4.0) if objects.rank == 0 else np.zeros(4))
        objects.broadcast_array(view)
        provider = Provider(np.full(3, 7.0) if objects.rank == 0 else np.zeros(3))
        objects.broadcast_array(provider)
        return bytes(text) == b"hello" and list(view) == [0, 1, 2, 3] and list(provider.array) == [7, 7, 7]

    found = objects.call_all(move)
    holds(all(found), found)


class OnGpu:
    """Looks like an array in GPU memory."""

    __cuda_array_interface__ = {"shape": (3,), "typestr": "<f8", "data": (0, False), "version": 3}  # noqa: RUF012


def refusal(what, *words):
    """Every rank must refuse alike, naming the trouble; none may hang."""

    def attempt():
        try:
            what()
        except UsageError as exc:
            return str(exc)
        return ""

    texts = objects.call_all(attempt)
    holds(all(all(word in text for word in words) for text in texts), texts)


def check_bad_arrays_are_refused_on_every_rank():
    refusal(lambda: objects.broadcast_array(np.zeros((4, 4))[:, ::2]), "not contiguous")
    refusal(lambda: objects.broadcast_array(np.array([{}], dtype=object)), "Python objects")
    refusal(lambda: objects.broadcast_array(OnGpu()), "GPU memory", ".get()")
    refusal(lambda: objects.broadcast_array(5), "offers no memory")
    refusal(lambda: objects.broadcast_array(np.zeros(3), 99), "root=99")
    refusal(lambda: objects.scatter_rows(np.zeros((5, 2)), np.zeros((1, 3))), "rows of shape")
    refusal(lambda: objects.scatter_rows(np.zeros((50, 3)), np.zeros((1, 3))), "50 rows")
    refusal(lambda: objects.scatter_rows(np.zeros(5), np.zeros(())), "0-dimensional")
    refusal(lambda: objects.gather_rows(None, np.zeros(3)), "part is None")
    frozen = np.zeros(objects.size)
    frozen.flags.writeable = False
    refusal(lambda: objects.gather_rows(np.zeros(1), frozen), "read-only")


def check2_arrays_that_differ_are_refused_on_every_rank():
    refusal(lambda: objects.broadcast_array(np.zeros(3 + objects.rank)), "rank 1: array has shape (4,)")
    refusal(lambda: objects.broadcast_array(np.zeros((3, 3), order="FC"[objects.rank > 0])), "order C", "order F")
    refusal(lambda: objects.broadcast_array(b"abc"), "read-only")


def check_the_roots_part_may_lie_inside_the_array():
    def move():
        rank, size = objects.rank, objects.size
        counts = uneven_counts(11, size)
        root = size - 1
        start = sum(counts[:rank])
        whole = np.arange(33.0).reshape(11, 3)
        target = whole.copy() if rank == root else None
        part = target[start:] if rank == root else np.zeros((counts[rank], 3))
        objects.scatter_rows(target, part, root)
        ok = bool((part == whole[start : start + counts[rank]]).all())
        part *= 2
        objects.gather_rows(part, target, root)
        return ok and (rank != root or bool((target == 2 * whole).all()))

    found = objects.call_all(move)
    holds(all(found), found)


def check2_a_part_in_another_place_of_the_array_is_refused():
    def overlap(order):
        rank, size = objects.rank, objects.size
        whole = np.zeros((2 * size, 3), order=order) if rank == 0 else None
        part = np.zeros((2, 3)) if rank else whole.reshape(-1, order="A")[3:9].reshape(2, 3)
        return whole, part

    refusal(lambda: objects.scatter_rows(*overlap("C")), "rank 0: part lies inside array")
    refusal(lambda: objects.gather_rows(*overlap("F")[::-1]), "rank 0: part lies inside array")


def check2_ranks_that_name_different_roots_are_told():
    refusal(lambda: objects.broadcast_array(np.zeros(3), objects.rank % 2), "different roots: 0, 1")
    refusal(
        lambda: objects.scatter_rows(np.zeros(objects.size), np.zeros(1), objects.rank % 2), "different roots: 0, 1"
    )
    refusal(lambda: objects.gather_rows(np.zeros(1), np.zeros(objects.size), -objects.rank), "rank 1: root=-1")


def check2_every_rank_learns_of_one_ranks_trouble_and_the_next_one_works():
    def frozen():
        array = np.zeros((4, 4))
        array.flags.writeable = objects.rank != 1
        return array

    refusal(lambda: objects.broadcast_array(frozen()), "rank 1: array is read-only")
    refusal(lambda: objects.scatter_rows(np.zeros((4 * objects.size, 4)), frozen()), "rank 1: part is read-only")
    refusal(lambda: objects.broadcast_array(np.ma.zeros(3) if objects.rank else np.zeros(3)), "masked array")
    refusal(lambda: objects.gather_rows(np.zeros((1, objects.rank + 1)), np.zeros((objects.size, 1))), "rank 1: part")
    check_memory_is_the_callers_own()


if __name__ == "__main__":
    objects.launch_event_loop()
    if objects.rank0:
        run_checks(globals(), objects.size)
        objects.quit()
