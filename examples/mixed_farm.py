"""One farm for everything: tasks on one rank, tasks on several, an object that stays where it is.

    taskfarm run -n 5 examples/mixed_farm.py

A matrix is distributed over two ranks, by a task that runs on both, and stays there. Later tasks on the same ranks find
its greatest eigenvalue, and solve with it, while all other workers, and these two in between, estimate pi.
"""

import argparse

import numpy as np

from taskfarm import Executor, as_completed, objects, task_comm


def build(n):
    """Keep this rank's rows of the matrix of a chain of n springs, and return the handle."""
    comm = task_comm()
    rows = np.array_split(np.arange(n), comm.size)[comm.rank]
    matrix = 2.0 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    return objects.manage_object(matrix[rows])


def greatest_eigenvalue(rows, n_steps):
    """Return it, by power iteration on the ranks that have the rows."""
    comm = task_comm()
    vector = np.random.default_rng(0).random(rows.shape[1])
    for _ in range(n_steps):
        image = np.concatenate(comm.allgather(rows @ vector))
        value = float(vector @ image / (vector @ vector))
        vector = image / np.linalg.norm(image)
    return value


def hits(seed, n):
    """Return how many of n random points of the unit square are in the quarter of the unit disc."""
    points = np.random.default_rng(seed).random((2, n))
    return int(np.count_nonzero((points**2).sum(axis=0) <= 1.0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=60, help="of the matrix (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=400, help="of 10,000 points each (default: %(default)s)")
    options = parser.parse_args()

    with Executor() as executor:
        n_ranks = min(2, executor.num_workers)
        narrow = [executor.submit(hits, seed, 10_000) for seed in range(options.samples)]
        wide = executor.with_options(ranks=n_ranks)
        matrix = wide.submit(build, options.size).result()
        left = sum(not future.done() for future in narrow)
        print(f"the matrix is on ranks {list(matrix.ranks)}; {left} of {options.samples} samples are still to come")
        values = [wide.submit(greatest_eigenvalue, matrix, n_steps) for n_steps in (10, 100, 1000, 4000)]
        for future in as_completed(values):
            print(f"greatest eigenvalue: {future.result():.6f}")
        inside = sum(future.result() for future in narrow)
        here = executor.with_options(ranks_in=matrix.ranks[0]).submit(np.shape, matrix).result()
        print(f"rank {matrix.ranks[0]} has rows of shape {here}")

    exact = 2.0 - 2.0 * np.cos(np.pi * options.size / (options.size + 1))
    pi = 4.0 * inside / (options.samples * 10_000)
    print(f"pi is about {pi:.4f}")
    right = abs(values[-1].result() - exact) < 1e-4 and abs(pi - np.pi) < 0.01
    print(f"check: the eigenvalue is {exact:.6f}, and both are right: {right}")
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
