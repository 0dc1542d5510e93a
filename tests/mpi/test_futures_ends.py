"""``taskfarm.Executor``: whatever way the program ends, all futures and processes end, and the status is right."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

import pytest
from harness import Job, Launch, Result

BEGIN = """
    import os, signal, sys, threading, time
    from taskfarm import Executor, wait
    def nap(seconds):
        time.sleep(seconds)
        return seconds
    def note(name):
        open(os.path.join(os.environ["TF_LOG_DIR"], name), "w").write("here")
    def forever(name):
        note(name)
        while True:
            time.sleep(0.01)
"""
# On ranks, and on processes of its own.
N_RANKS = pytest.mark.parametrize("n", [1, 3], ids=["processes", "ranks"])


@N_RANKS
def test_exit_without_shutdown(run_mpi: Launch[Result], n: int) -> None:
    """A program that ends without shutdown first has all its tasks run, their callbacks included."""
    body = """
    executor = Executor()
    futures = [executor.submit(nap, 0.05) for _ in range(12)]
    futures[-1].add_done_callback(lambda future: print("last", future.result(), flush=True))
    """
    assert "last 0.05" in run_mpi(BEGIN + body, n).check(0).stdout


@N_RANKS
def test_status_of_the_program(run_mpi: Launch[Result], n: int) -> None:
    """`sys.exit` in the block ends the job with its status, and what has not begun is dropped."""
    body = """
    with Executor() as executor:
        futures = [executor.submit(nap, 0.2) for _ in range(1000)]
        sys.exit(7)
    """
    result = run_mpi(BEGIN + body, n, launcher="taskfarm run" if n > 1 else "mpiexec").check(7)
    assert result.elapsed_s < 20


@N_RANKS
@pytest.mark.parametrize("with_block", [True, False], ids=["block", "no block"])
def test_exception_in_the_program(run_mpi: Launch[Result], n: int, with_block: bool) -> None:
    """An exception that nobody catches shows its traceback, ends the job with status 1, and leaves nothing behind."""
    if with_block:
        body = """
    with Executor() as executor:
        futures = [executor.submit(nap, 0.05) for _ in range(20)]
        raise ValueError("of the program")
    """
    else:
        body = """
    executor = Executor()
    futures = [executor.submit(nap, 0.2) for _ in range(1000)]
    raise ValueError("of the program")
    """
    result = run_mpi(BEGIN + body, n).check(1)
    assert "ValueError: of the program" in result.stderr and result.elapsed_s < 20, result.describe()


def test_exception_while_a_task_runs_for_ever(run_mpi: Launch[Result]) -> None:
    """After an error, nobody waits for a task that does not end: the job is ended after the time for leaving."""
    body = """
    executor = Executor()
    future = executor.submit(forever, "began")
    while not os.path.exists(os.path.join(os.environ["TF_LOG_DIR"], "began")):
        time.sleep(0.01)
    raise ValueError("of the program")
    """
    for n in (1, 3):
        result = run_mpi(BEGIN + body, n, env={"TASKFARM_LEAVE_S": "0.5"})
        assert result.status != 0 and "of the program" in result.stderr and result.elapsed_s < 20, result.describe()


def interrupt(job: Job, who: Callable[[Job], int]) -> None:
    job.wait_for_log("began")
    time.sleep(0.1)
    os.kill(who(job), signal.SIGINT)


@N_RANKS
@pytest.mark.parametrize(
    "wait_for",
    [
        "list(executor.map(note_and_nap, range(2000)))",
        "wait([executor.submit(note_and_nap, i) for i in range(2000)])",
        "[future.result() for future in [executor.submit(note_and_nap, i) for i in range(2000)]]",
    ],
    ids=["map", "wait", "result"],
)
def test_interrupt(start_mpi: Launch[Job], n: int, wait_for: str) -> None:
    """^C in the middle of the work: KeyboardInterrupt in the program, then the end, soon, with its status."""
    body = f"""
    def note_and_nap(i):
        time.sleep(0.05)
        if i == 3:
            note("began")
    with Executor() as executor:
        note("pid-" + str(os.getpid()))
        {wait_for}
    """
    job = start_mpi(BEGIN + body, n)
    interrupt(job, lambda job: next(int(p.name[4:]) for p in job.log_dir.glob("pid-*")))
    result = job.finish(timeout_s=20)
    assert "KeyboardInterrupt" in result.stderr, result.describe()
    # As the launcher tells it: MPICH's joins the bits of all ranks, of which it may have killed some that were leaving.
    told = (signal.SIGINT, 128 + signal.SIGINT, signal.SIGINT | signal.SIGKILL)
    assert result.status in told, result.describe()


def test_interrupt_that_the_program_survives(start_mpi: Launch[Job]) -> None:
    """A program that catches the interrupt of a waiting `result` goes on, with right values."""
    body = """
    executor = Executor()
    note("pid-" + str(os.getpid()))
    future = executor.submit(nap, 2.0)
    executor.submit(note, "began").result() if executor.num_workers > 1 else note("began")
    try:
        future.result()
    except KeyboardInterrupt:
        print("caught", flush=True)
    print(future.result(), sum(executor.map(abs, range(-1000, 0))))
    """
    for n in (1, 3):
        job = start_mpi(BEGIN + body, n)
        interrupt(job, lambda job: next(int(p.name[4:]) for p in job.log_dir.glob("pid-*")))
        result = job.finish(timeout_s=30).check(0)
        assert result.stdout.split() == ["caught", "2.0", "500500"], result.describe()


def test_death_of_a_worker_process(run_mpi: Launch[Result]) -> None:
    """Without MPI, an executor whose last worker process has died is broken; a new one works."""
    body = """
    import concurrent.futures
    with Executor(2) as executor:
        futures = [executor.submit(os.kill, 0, 0)] + [executor.submit(os._exit, 3)] + [executor.submit(nap, 0.1)] * 2
        try:
            futures[1].result(timeout=20)
        except concurrent.futures.BrokenExecutor as exc:
            print("broken", flush=True)
        try:
            executor.submit(abs, 1)
        except concurrent.futures.BrokenExecutor as exc:
            print("still", flush=True)
    with Executor(2) as executor:
        print(executor.submit(abs, -5).result())
    """
    assert run_mpi(BEGIN + body, 1).check(0).stdout.split() == ["broken", "still", "5"]


def test_worker_processes_end_with_the_executor(run_mpi: Launch[Result]) -> None:
    """When the last executor has been shut down, its worker processes are gone."""
    body = """
    with Executor(2) as executor:
        pids = {executor.submit(os.getpid).result() for _ in range(50)}
        pids |= set(executor.map(lambda _: os.getpid(), range(500)))
    for pid in pids:
        try:
            os.kill(pid, 0)
            print("alive", pid)
        except ProcessLookupError:
            pass
    print("end")
    """
    assert run_mpi(BEGIN + body, 1).check(0).stdout.split() == ["end"]


def test_program_that_is_killed(start_mpi: Launch[Job]) -> None:
    """A program that is killed leaves no worker process behind, even if one is in the middle of a task."""
    body = """
    executor = Executor(2)
    note("pid-" + str(os.getpid()))
    executor.submit(forever, "began").result()
    """
    job = start_mpi(BEGIN + body, 1, launcher="plain")
    job.wait_for_log("began")
    os.kill(next(int(p.name[4:]) for p in job.log_dir.glob("pid-*")), signal.SIGKILL)
    assert job.finish(timeout_s=20).status != 0


def test_script_runs_once_under_the_module(run_mpi: Launch[Result]) -> None:
    """``python -m taskfarm.futures script.py``: only rank 0 runs the script, and its functions work."""
    body = """
    print("script", flush=True)
    def double(x):
        return 2 * x
    if __name__ == "__main__":
        with Executor() as executor:
            print(sum(executor.map(double, range(100))), executor.num_workers, sys.argv[1:])
    """

    def launcher(n: int, target: list[str]) -> list[str]:
        from harness import mpiexec_path

        return [mpiexec_path(), "-n", str(n), sys.executable, "-m", "taskfarm.futures", *target, "an", "argument"]

    result = run_mpi(BEGIN + body, 3, launcher=launcher).check(0)
    assert result.stdout.splitlines() == ["script", "9900 2 ['an', 'argument']"], result.describe()


@pytest.mark.parametrize("n", [1, 3])
def test_every_future_ends(run_mpi: Launch[Result], n: int) -> None:
    """Threads submit, map, cancel and wait while the executor is shut down in some way: nothing is left."""
    body = """
    import random
    from concurrent.futures import CancelledError, TimeoutError
    def feed(executor, futures, rng):
        def again(future):
            if rng.random() < 0.2:
                try:
                    futures.append(executor.submit(abs, -1))
                except RuntimeError:
                    pass
        try:
            for _ in range(10**6):
                future = executor.submit(*rng.choice([(nap, 0), (nap, 0.001), (nap, 0.01), (divmod, 1, 0)]))
                futures.append(future)
                future.add_done_callback(again)
                what = rng.choice(["cancel", "wait", "map", "", "", ""])
                try:
                    if what == "cancel":
                        future.cancel()
                    elif what == "wait":
                        future.result(rng.choice([None, 0, 0.001]))
                    elif what == "map":
                        assert sum(executor.map(abs, range(50), chunksize=rng.choice([None, 1, 7]))) == 1225
                except (CancelledError, TimeoutError, ZeroDivisionError):
                    pass
        except RuntimeError as exc:
            assert "after shutdown" in str(exc), exc
    with Executor(2) as keeper:  # or each of the next ones would have to start its own workers
        for seed in range(15):
            rng = random.Random(seed)
            executor, futures = Executor(2), []
            threads = [
                threading.Thread(target=feed, args=(executor, futures, random.Random(10 * seed + k)), daemon=True)
                for k in range(3)
            ]
            for thread in threads:
                thread.start()
            time.sleep(rng.choice([0.01, 0.05]))
            executor.shutdown(wait=rng.random() < 0.5, cancel_futures=rng.random() < 0.5)
            executor.shutdown()
            for thread in threads:
                thread.join(20)
            assert not any(thread.is_alive() for thread in threads), seed
            assert not wait(futures, 20).not_done, seed
    print("end")
    """
    assert run_mpi(BEGIN + body, n).check(0).stdout.split() == ["end"]


@pytest.mark.parametrize("launcher", ["mpiexec", "taskfarm run"])
@pytest.mark.parametrize("n_tests", [1, 2])
def test_swallowed_exit(run_mpi: Launch[Result], launcher: str, n_tests: int) -> None:
    """A test runner takes a worker's exit for an error and goes on; the worker leaves, and rank 0 has the last word."""
    body = """
    import unittest
    class Test(unittest.TestCase):
        def test_it(self):
            with Executor() as executor:
                self.assertEqual(executor.submit(abs, -1).result(), 1)
                print("tested", flush=True)
    unittest.main(argv=["script"] + ["Test.test_it"] * N_TESTS)
    """
    program = BEGIN + body.replace("N_TESTS", str(n_tests))
    assert run_mpi(program, 3, launcher=launcher).check(0).stdout.split() == ["tested"] * n_tests


def test_ranks_part_at_the_first_executor(run_mpi: Launch[Result]) -> None:
    """Under a launcher all ranks run the script up to the first executor, and only rank 0 goes on."""
    body = """
    note("before-" + os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")))
    with Executor() as executor:
        note("inside-" + str(executor.num_workers))
    print("behind", flush=True)
    """
    result = run_mpi(BEGIN + body, 3).check(0)
    assert sorted(p.name for p in (result.work_dir / "logs").iterdir()) == [
        "before-0",
        "before-1",
        "before-2",
        "inside-2",
    ]
    assert result.stdout.split() == ["behind"]


def test_shared_with_the_other_faces(run_mpi: Launch[Result]) -> None:
    """Calls and spawned tasks between an executor's: each finds the workers free, and all end with the session."""
    body = """
    from taskfarm import objects
    from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult
    executor = Executor()
    for turn in range(5):
        futures = [executor.submit(nap, 0.01) for _ in range(10)]
        assert objects.call_all(abs, -turn) == [turn] * 3
        assert all(future.done() for future in futures)
        results = executor.map(abs, range(-500, 0))
        vm = MPI()
        vm.spawnFunction(abs, args=(-turn,))
        seen = []
        while vm.freeSlots() < vm.slots() - 1:
            _, message = vm.receiveMessage()
            seen += [message.returnValue] if type(message) is MsgTaskResult else []
        assert seen == [turn] * 2, seen
        assert sum(results) == 500 * 501 // 2
    last = [executor.submit(nap, 0.1) for _ in range(6)]
    objects.quit()
    assert all(future.done() for future in last)
    try:
        executor.submit(abs, 1)
    except RuntimeError:
        print("ended")
    """
    assert run_mpi(BEGIN + body, 3).check(0).stdout.split() == ["ended"]


def test_log_line_says_where_the_workers_are(run_mpi: Launch[Result]) -> None:
    """One line of the log tells whether the workers are ranks or processes."""
    body = """
    import logging
    logging.basicConfig(level=logging.INFO)
    with Executor() as executor:
        executor.submit(abs, 1).result()
    """
    assert "workers are 2 MPI ranks" in run_mpi(BEGIN + body, 3).check(0).stderr
    assert "processes on this host" in run_mpi(BEGIN + body, 1).check(0).stderr


def test_ranks_that_nobody_can_end(run_mpi: Launch[Result]) -> None:
    """A rank that waits for a failed one in a C library's way does not keep the job: it ends, and says who and why."""
    body = """
    from taskfarm import task_comm
    def part():
        comm = task_comm()
        if comm.rank == 1:
            raise ValueError("only here")
        comm.raw.Barrier()
    with Executor() as executor:
        try:
            executor.with_options(ranks=2, ranks_in=[1, 2]).submit(part).result()
        except ValueError as exc:
            print("told", exc, flush=True)
        print(executor.with_options(ranks_in=3).submit(nap, 0.1).result(), flush=True)
    """
    result = run_mpi(BEGIN + body, 4, env={"TASKFARM_STUCK_S": "1"})
    assert "told only here" in result.stdout
    assert "0.1" in result.stdout
    assert result.status == 75
    assert "ranks [1] are still in it" in result.stderr
