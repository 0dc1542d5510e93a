"""The table of all rows: name, numbers of ranks, unit, how it is measured, what should be reached."""

from __future__ import annotations

from harness import Row, Target

from rows import arrays, calls, memory, messages, tasks, waiting

__all__ = ["ROWS"]

KB = 1 << 10
MB = 1 << 20

ROWS: tuple[Row, ...] = (
    Row("noop_tasks", [2], "tasks/s", tasks.noop_rate, Target(0.5, "schwimmbad", at_least=True), more_is_better=True),
    Row("noop_tasks", [3], "tasks/s", tasks.noop_rate, Target(1.0, "schwimmbad", at_least=True), more_is_better=True),
    Row("task", [2], "us", tasks.there_and_back, Target(6.0)),
    Row("call_noop", [2, 4], "us", calls.noop, Target(1.5)),
    Row("message_0B", [2], "us", messages.pickled(0), Target(3.0)),
    Row("message_1kB", [2], "us", messages.pickled(KB), Target(3.0)),
    Row("message_64kB", [2], "us", messages.pickled(64 * KB), Target(2.0)),
    Row("array_1MB_result", [2], "ms", arrays.through_result(MB), Target(1.3)),
    Row("array_1MB_message", [2], "ms", arrays.through_messages(MB), Target(1.3)),
    Row("array_1MB_call_all", [2], "ms", arrays.through_call_all(MB), Target(1.3)),
    Row("array_1MB_call", [2], "ms", arrays.as_call_argument(MB), Target(1.3)),
    Row("array_64MB_result", [2], "ms", arrays.through_result(64 * MB), Target(1.3)),
    Row("array_64MB_message", [2], "ms", arrays.through_messages(64 * MB), Target(1.3)),
    Row("array_64MB_call_all", [2], "ms", arrays.through_call_all(64 * MB), Target(1.3)),
    Row("array_64MB_call", [2], "ms", arrays.as_call_argument(64 * MB), Target(1.3)),
    Row("idle_cpu_worker", [2], "% CPU", waiting.idle_worker_cpu, Target(0.5, ""), rounds=5),
    Row("idle_cpu_rank0", [2], "% CPU", waiting.idle_controller_cpu, Target(0.5, ""), rounds=5),
    Row("first_after_idle", [2], "us", waiting.first_round_trip, Target(200.0, "")),
    Row("peak_memory_rank0", [2], "x array", memory.added_on_rank_0(256 * MB), Target(0.1, ""), rounds=5),
    Row("peak_memory_worker", [2], "x array", memory.added_on_worker(256 * MB), Target(1.1, ""), rounds=5),
)
