"""Checks of ``taskfarm.objects``: names, calls, functions, arguments."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import threading
import time
import types

from tf_checks import cpu_seconds, equal, eventually, holds, raises, run_checks

assert "mpi4py.MPI" not in sys.modules
from taskfarm import objects  # noqa: E402
from taskfarm.errors import RemoteError, UsageError  # noqa: E402

INERT = "mpi4py.MPI" not in sys.modules and "mpi4py" not in sys.modules
SETTINGS_BEFORE_START = None
SEEN_BEFORE_START = {}

NAMES = """
    ObjectId Rank0ObjectId call event_loop event_loop_settings function_call function_call_manage get_object
    import_module launch_event_loop manage_object method_call method_call_manage mpi_info quit remove_object run_code
""".split()  # noqa: SIM905


def values(fn, *args):
    return objects.call_all(fn, *args)


# Names and state


def check_import_starts_nothing():
    holds(INERT, "mpi4py was imported by `import taskfarm.objects`")


def check_names_exist():
    equal([name for name in NAMES if not callable(getattr(objects, name, None))], [])
    holds(issubclass(objects.ObjectId, int), "ObjectId is an int")
    holds(issubclass(objects.Rank0ObjectId, objects.ObjectId), "Rank0ObjectId is an ObjectId")


def check_first_access_starts_mpi_but_no_loop():
    equal(SEEN_BEFORE_START["initialized_before"], False)
    equal(SEEN_BEFORE_START["initialized_after"], True)
    equal(SEEN_BEFORE_START["running"], False)


def check_settings_before_start():
    equal(SETTINGS_BEFORE_START, {"auto_launch": True})


def check_settings_while_the_loop_runs():
    equal(objects.event_loop_settings()["auto_launch"], False)
    equal(values(lambda: objects.event_loop_settings()["auto_launch"]), [False] * objects.size)


def check_live_attributes():
    from mpi4py import MPI

    n = MPI.COMM_WORLD.size
    equal(values(lambda: (objects.rank, objects.size)), [(r, n) for r in range(n)])
    equal(values(lambda: (objects.rank0, objects.parallel)), [(r == 0, n > 1) for r in range(n)])
    equal((objects.finished, objects._event_loop_running), (False, True))
    holds(
        isinstance(objects._managed_objects, dict | types.MappingProxyType)
        or hasattr(objects._managed_objects, "keys"),
        "",
    )
    holds(isinstance(objects._object_counter, int), "counter")


def check_names_by_from_import():
    def look():
        from taskfarm.objects import comm, parallel, rank, rank0, size

        return comm.rank == rank, comm.size == size, rank0 == (rank == 0), parallel == (size > 1)

    equal(values(look), [(True,) * 4] * objects.size)


def check_launch_again_is_harmless():
    objects.launch_event_loop()
    equal(values(lambda: 1), [1] * objects.size)


# Calls


def check_call_returns_value_of_rank0():
    equal(objects.call(lambda: (objects.rank, "value")), (0, "value"))


def check_call_all_gives_values_in_rank_order():
    equal(values(lambda a, b=0: (objects.rank, a, b), 5), [(r, 5, 0) for r in range(objects.size)])
    equal(objects.call_all(lambda a, b=0: b, 5, b=7), [7] * objects.size)


def check_call_runs_once_on_every_rank():
    def count():
        sys.taskfarm_count = getattr(sys, "taskfarm_count", 0) + 1

    for _ in range(3):
        objects.call(count)
    equal(values(lambda: sys.taskfarm_count), [3] * objects.size)


def check_calls_keep_their_order():
    objects.call(lambda: setattr(sys, "taskfarm_order", []))
    for i in range(200):
        objects.call(lambda i: sys.taskfarm_order.append(i), i)
    equal(values(lambda: sys.taskfarm_order == list(range(200))), [True] * objects.size)


def check_rank0_works_on_its_own_objects():
    mine, box = {"a": 1}, []

    def change(d, b):
        d["seen"] = objects.rank
        b.append(d)
        return d

    holds(objects.call(change, mine, b=box) is mine, "call returned a copy")
    equal(mine, {"a": 1, "seen": 0})
    holds(box[0] is mine, "argument was a copy")


def check_rank0_needs_no_picklable_result():
    holds(isinstance(objects.call(lambda: threading.Lock()), type(threading.Lock())), "a lock as rank 0's result")


def check_rank0_exception_passes_unwrapped():
    class Special(Exception):
        pass

    mine = []

    def fail():
        if objects.rank == 0:
            mine.append(Special("only here"))
            raise mine[0]

    ids_before = objects._object_counter
    with raises(Special) as caught:
        objects.call(fail)
    holds(caught.exception is mine[0], "not the very same exception")
    equal(values(lambda: objects._object_counter), [ids_before] * objects.size)


def check_all_ranks_raising_the_same_gives_rank0s_exception():
    with raises(ZeroDivisionError):
        objects.call(lambda: 1 // 0)
    time.sleep(0.3)
    equal(values(lambda: 1), [1] * objects.size)


def check_keyword_names_are_free():
    kwargs = {"fn": 1, "method": 2, "self": 3, "args": 4, "kwargs": 5, "timeout": 6, "on_error": 7, "f": 8, "name": 9}
    equal(objects.call(lambda **kw: kw, **kwargs), kwargs)
    equal(objects.call_all(lambda **kw: kw, **kwargs), [kwargs] * objects.size)


def check_function_and_method_call_keywords():
    oid = objects.call(objects.function_call_manage, lambda: types.SimpleNamespace(get=lambda **kw: kw))
    equal(objects.call(objects.function_call, lambda **kw: kw, name=1, args=2), {"name": 1, "args": 2})
    equal(objects.call(objects.method_call, oid, "get", name=1, args=2), {"name": 1, "args": 2})


def check2_call_inside_a_call_on_a_worker_is_an_error():
    def nested():
        if objects.rank == 0:
            return None
        try:
            objects.call(len, ())
        except UsageError as exc:
            return str(exc)
        return "no error"

    seen = values(nested)
    holds(all(text and text != "no error" for text in seen[1:]), seen)


def check_call_inside_what_only_rank0_runs_works():
    def outer():
        if objects.rank == 0:
            return objects.call(lambda: objects.size)
        return None

    equal(objects.call(outer), objects.size)
    equal(values(lambda: 5), [5] * objects.size)


def check2_rank0_runs_ahead_but_bounded():
    def slow():
        if objects.rank:
            time.sleep(1.5)

    values(len, ())
    objects.call(slow)
    stop, n_calls = time.monotonic() + 1.2, 0
    while time.monotonic() < stop and n_calls < 200_000:
        objects.call(len, ())
        n_calls += 1
    seconds_late = time.monotonic() - stop
    holds(2 <= n_calls <= 10_000, f"rank 0 ran {n_calls} calls ahead")
    holds(seconds_late < 5.0, "calls took longer than the slow worker")
    equal(values(lambda: 1), [1] * objects.size)


def check2_call_does_not_wait_for_workers():
    values(len, ())
    start = time.monotonic()
    objects.call(lambda: time.sleep(0.5) if objects.rank else None)
    holds(time.monotonic() - start < 0.3, "call waited for the workers")
    values(len, ())


# Other functions


def check_import_module():
    objects.call(objects.import_module, "xml.dom.minidom")
    equal(values(lambda: "xml.dom.minidom" in sys.modules), [True] * objects.size)


def check_run_code_keeps_its_definitions():
    objects.call(objects.run_code, "def tf_f(n):\n    return 1 if n == 0 else n * tf_f(n - 1)\nimport math as tf_math")
    objects.call(objects.run_code, "tf_x = [tf_f(k) for k in range(5)] + [tf_math.floor(1.5)]")
    objects.call(objects.run_code, "import sys\nsys.taskfarm_x = tf_x")
    equal(values(lambda: sys.taskfarm_x), [[1, 1, 2, 6, 24, 1]] * objects.size)
    with raises(NameError):
        objects.call(objects.run_code, "tf_not_there")
    time.sleep(0.3)
    with contextlib.suppress(RemoteError):
        values(len, ())
    equal(values(lambda: "tf_f" in vars(objects)), [False] * objects.size)


def check_run_code_is_plain_python():
    """Settings of our own modules, such as how annotations are kept, do not leak into the code."""
    objects.call(objects.run_code, "import dataclasses\n@dataclasses.dataclass\nclass tf_point:\n    x: int")
    objects.call(objects.run_code, "import sys\nsys.taskfarm_x = tf_point.__annotations__['x']")
    equal(values(lambda: sys.taskfarm_x), [int] * objects.size)


def check_mpi_info_prints_one_line_a_rank():
    out = io.StringIO()
    pids = values(os.getpid)
    with contextlib.redirect_stdout(out):
        objects.call(objects.mpi_info)
    lines = out.getvalue().strip().splitlines()
    equal(len(lines), objects.size)
    for rank, line in enumerate(lines):
        holds(line.split()[0].rstrip(":") == str(rank) or f"rank {rank}" in line.lower(), lines)
        holds(str(pids[rank]) in line and socket.gethostname() in line, lines)


# Waiting


def check2_idle_workers_use_no_cpu():
    pids = values(os.getpid)
    time.sleep(0.3)
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(2.0)
    used = [(cpu_seconds(pid) - b) / 2.0 for pid, b in zip(pids, before, strict=True)]
    holds(max(used[1:]) < 0.01, f"share of a core: {used}")
    equal(values(len, "ab"), [2] * objects.size)


def check_tasks_run_in_the_main_thread():
    equal(values(lambda: threading.current_thread() is threading.main_thread()), [True] * objects.size)


def check2_a_sleeping_worker_wakes_soon():
    values(len, ())
    delays = []
    for _ in range(10):
        time.sleep(0.05)
        start = time.perf_counter()
        values(len, ())
        delays.append(time.perf_counter() - start)
    holds(sorted(delays)[5] < 0.02, delays)


def check2_results_of_workers_can_be_awaited_by_files():
    folder = os.environ["TF_LOG_DIR"]
    objects.call(lambda: open(f"{folder}/alive-{objects.rank}", "w").close())
    eventually(
        lambda: all(os.path.exists(f"{folder}/alive-{r}") for r in range(objects.size)), "calls run without a next call"
    )


if __name__ == "__main__":
    from mpi4py import rc

    rc.initialize = False
    from mpi4py import MPI

    SETTINGS_BEFORE_START = objects.event_loop_settings()
    SEEN_BEFORE_START["initialized_before"] = MPI.Is_initialized()
    own_rank = objects.rank
    SEEN_BEFORE_START["initialized_after"] = MPI.Is_initialized()
    SEEN_BEFORE_START["running"] = objects._event_loop_running
    objects.launch_event_loop()
    if objects.rank0:
        run_checks(globals(), objects.size)
        objects.quit()
    assert own_rank == objects.rank
