"""Programs for `mpi4py.futures`, schwimmbad, multiprocessing and joblib, with one line changed."""

from __future__ import annotations

import importlib.util

import pytest
from harness import Launch, Result

N_RANKS = pytest.mark.parametrize("n", [1, 3], ids=["processes", "ranks"])


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


MPI4PY = """
    import sys, time
    from mpi4py.futures import MPIPoolExecutor, as_completed, collect, compose, get_comm_workers
    def where():
        return get_comm_workers().Get_size()
    def setting():
        return offset
    if __name__ == "__main__":
        with MPIPoolExecutor() as executor:
            assert executor.num_workers == 2 == executor._max_workers
            assert list(executor.map(pow, range(10), range(10), chunksize=3)) == list(map(pow, range(10), range(10)))
            assert sorted(executor.map(abs, range(-5, 0), unordered=True)) == [1, 2, 3, 4, 5]
            assert list(executor.starmap(pow, [(2, 3), (3, 2)])) == [8, 9]
            assert executor.submit(where).result() == 2
            both = collect([executor.submit(pow, 2, 3), executor.submit(pow, 2, 4)])
            assert compose(both, sum).result() == 24
            assert executor.bootup() is executor
        assert executor.num_workers == 0
        try:
            executor.bootup()
        except RuntimeError:
            print("booted down")
        with MPIPoolExecutor(1, globals={"offset": 42}, env={"TF_X": "y"}, use_pkl5=True) as executor:
            print(executor.submit(setting).result())
        print(sys.modules["mpi4py.futures"].__name__)
"""


@pytest.mark.parametrize("launcher", ["taskfarm run --replace mpi4py.futures"])
def test_program_for_mpi4py_futures(run_mpi: Launch[Result], launcher: str) -> None:
    """The unmodified program runs on ours."""
    result = run_mpi(MPI4PY, 3, launcher=launcher).check(0)
    assert result.stdout.split("\n")[:3] == ["booted down", "42", "taskfarm.futures"], result.describe()


def test_program_under_the_module_of_mpi4py(run_mpi: Launch[Result]) -> None:
    """``-m mpi4py.futures script.py`` runs the script on rank 0 only, as the original does."""

    def launcher(n: int, target: list[str]) -> list[str]:
        import sys

        run = [sys.executable, "-m", "taskfarm", "run", "-n", str(n), "--replace", "mpi4py.futures"]
        return [*run, "-m", "mpi4py.futures", *target]

    program = 'print("once", flush=True)\n' + __import__("textwrap").dedent(MPI4PY)
    assert run_mpi(program, 3, launcher=launcher).check(0).stdout.split("\n")[:2] == ["once", "booted down"]


def test_comm_executor(run_mpi: Launch[Result]) -> None:
    """Each rank in turn may have the executor; the others work for it, and all go on behind the block."""
    program = """
    from mpi4py import MPI
    from taskfarm.futures import MPICommExecutor, get_comm_workers
    comm = MPI.COMM_WORLD
    def where(_):
        return get_comm_workers().Get_size()
    for root in range(comm.size):
        with MPICommExecutor(comm, root) as executor:
            assert (executor is not None) == (comm.rank == root)
            if executor is not None:
                assert executor.num_workers == comm.size - 1
                assert set(executor.map(where, range(50))) == {comm.size - 1}
                assert sum(executor.map(abs, range(-1000, 0))) == 500500
        assert comm.allreduce(1) == comm.size
    half = comm.Split(comm.rank % 2, comm.rank)
    with MPICommExecutor(half) as executor:
        if executor is not None:
            assert executor.submit(pow, 2, 5).result() == 32
    with MPICommExecutor(MPI.COMM_SELF) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2] and executor.num_workers == 1
        assert executor.submit(where, 0).result() == 1 == list(executor.map(where, [0]))[0]
    for root in (-1, comm.size):
        try:
            MPICommExecutor(root=root)
        except ValueError:
            pass
    try:
        with MPICommExecutor() as executor:
            if executor is not None:
                executor.submit(abs, 1)
                raise KeyError("in the block")
    except KeyError:
        assert comm.rank == 0
    comm.Barrier()
    if comm.rank == 0:
        print("all done", flush=True)
    """
    for launcher in ("mpiexec", "taskfarm run"):
        assert "all done" in run_mpi(program, 5, launcher=launcher).check(0).stdout


@N_RANKS
def test_pool(run_mpi: Launch[Result], n: int) -> None:
    """`multiprocessing.Pool`'s methods, and what schwimmbad's pools have."""
    program = """
    import sys, time
    from taskfarm import Pool
    def fail(x):
        raise KeyError(x)
    pool = Pool(initializer=sys.setrecursionlimit, initargs=(5000,))
    if not pool.is_master():
        pool.wait()
        sys.exit(0)
    assert pool.size >= 1
    assert pool.map(abs, [-1, -2]) == [1, 2]
    assert pool.map(abs, range(-1000, 0), chunksize=10) == list(range(1000, 0, -1))
    seen = []
    assert pool.map(abs, (x for x in (-3, -4)), callback=seen.append) == [3, 4] == seen
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert list(pool.imap(abs, [-5, -6], 1)) == [5, 6]
    assert sorted(pool.imap_unordered(abs, [-5, -6])) == [5, 6]
    assert pool.apply(pow, (2, 3)) == 8 == pool.apply(int, ("10",), {"base": 8})
    got = []
    later = pool.apply_async(pow, (2, 10), callback=got.append)
    assert later.get(20) == 1024 and later.ready() and later.successful()
    bad = pool.map_async(fail, [1, 2], error_callback=lambda exc: got.append(type(exc)))
    bad.wait(20)
    assert not bad.successful()
    assert pool.map_async(abs, range(-100, 0)).get(20) == list(range(100, 0, -1))
    assert pool.map_async(abs, []).get(20) == []
    assert pool.starmap_async(pow, [(2, 2), (3, 3)]).get(20) == [4, 27]
    slow = pool.apply_async(time.sleep, (0.3,))
    try:
        slow.successful()
    except ValueError:
        pass
    pool.close()
    try:
        pool.apply(abs, (1,))
    except RuntimeError:
        pool.join()
    assert slow.get(0) is None
    assert got == [1024, KeyError], got
    print("all done", flush=True)
    """
    assert "all done" in run_mpi(program, n).check(0).stdout


@needs("joblib")
@N_RANKS
def test_joblib(run_mpi: Launch[Result], n: int) -> None:
    """`joblib.Parallel` on the workers: results in order, failures, generators, nested calls."""
    program = """
    import os
    import joblib
    from taskfarm.futures import register_joblib_backend
    def inner(x):
        return sum(joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-i) for i in range(x)))
    def fail(x):
        raise KeyError(x)
    register_joblib_backend()
    with joblib.parallel_config("taskfarm"):
        assert joblib.effective_n_jobs(-1) == max(1, int(os.environ["TF_N"]) - 1) or os.environ["TF_N"] == "1"
        assert joblib.Parallel(n_jobs=-1)(joblib.delayed(pow)(i, 2) for i in range(200)) == [i * i for i in range(200)]
        assert joblib.Parallel(n_jobs=-1)(joblib.delayed(inner)(i) for i in range(5)) == [0, 0, 1, 3, 6]
        lazy = joblib.Parallel(n_jobs=-1, return_as="generator")(joblib.delayed(abs)(-i) for i in range(50))
        assert list(lazy) == list(range(50))
        try:
            joblib.Parallel(n_jobs=-1)(joblib.delayed(fail)(i) for i in range(50))
        except KeyError:
            print("all done", flush=True)
    """
    assert "all done" in run_mpi(program, n, env={"TF_N": str(n)}).check(0).stdout
