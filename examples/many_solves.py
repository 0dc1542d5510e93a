"""Sixteen solves of a partial differential equation, each on several ranks, as many at a time as there are workers for.

    taskfarm run -n 5 examples/many_solves.py --ranks 2

The equation is  c u - div grad u = f  in the unit square, u = 0 at its edge, for sixteen values of c. Each solve is a
task of `--ranks` ranks: a rank has some rows of the grid, exchanges the outermost of them with its neighbours
(`Sendrecv`), and takes part in the sums of the conjugate gradient method (`allreduce`). f is chosen for a solution that
is known, so each solve is checked.
"""

import argparse
import time

import numpy as np
from mpi4py import MPI

from taskfarm import Executor, task_comm


def rows_of(rank, size, n):
    """Return where the rows of a rank start and stop."""
    return rank * n // size, (rank + 1) * n // size


def apply(comm, u, c, h):
    """Return  c u - div grad u  on this rank's rows, after an exchange of rows with the neighbours."""
    above = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
    below = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL
    up, down = np.zeros(u.shape[1]), np.zeros(u.shape[1])
    comm.Sendrecv(u[0], above, 0, down, below, 0)
    comm.Sendrecv(u[-1], below, 1, up, above, 1)
    rows = np.vstack([up, u, down])
    wide = np.pad(rows, ((0, 0), (1, 1)))
    laplacian = wide[2:, 1:-1] + wide[:-2, 1:-1] + wide[1:-1, 2:] + wide[1:-1, :-2] - 4.0 * wide[1:-1, 1:-1]
    return c * u - laplacian / h**2


def solve(c, n, tolerance=1e-8):
    """Solve on the ranks of this task; return c, the iterations, the greatest error, and the ranks that took part."""
    comm = task_comm()
    h = 1.0 / (n + 1)
    start, stop = rows_of(comm.rank, comm.size, n)
    inside = np.arange(1, n + 1) * h
    x, y = inside[start:stop, None], inside[None, :]
    exact = x * (1 - x) * y * (1 - y)  # of second degree in x and in y: the differences are exact, too
    f = c * exact + 2 * y * (1 - y) + 2 * x * (1 - x)
    u = np.zeros_like(f)
    residual = f.copy()
    direction = residual.copy()
    norm = first = comm.allreduce(float(np.vdot(residual, residual)))
    n_iterations = 0
    while norm > tolerance**2 * first:
        n_iterations += 1
        image = apply(comm, direction, c, h)
        step = norm / comm.allreduce(float(np.vdot(direction, image)))
        u += step * direction
        residual -= step * image
        before, norm = norm, comm.allreduce(float(np.vdot(residual, residual)))
        direction = residual + norm / before * direction
    error = max(comm.allgather(float(np.abs(u - exact).max())))
    return c, n_iterations, error, comm.size


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="ranks of each solve (default: %(default)s)")
    parser.add_argument("--solves", type=int, default=16, help="how many (default: %(default)s)")
    parser.add_argument(
        "--points", type=int, default=64, help="points of the grid per direction (default: %(default)s)"
    )
    options = parser.parse_args()

    with Executor() as executor:
        n_ranks = min(options.ranks, executor.num_workers)
        began = time.perf_counter()
        view = executor.with_options(ranks=n_ranks)
        values = np.linspace(0.0, 100.0, options.solves)
        errors = []
        for c, n_iterations, error, size in view.map_unordered(solve, values, [options.points] * len(values)):
            errors.append(error)
            print(f"c = {c:6.2f} on {size} ranks: {n_iterations:3d} iterations, error {error:.1e}")
        seconds = time.perf_counter() - began
        print(f"{len(errors)} solves, {n_ranks} ranks each, on {executor.num_workers} workers: {seconds:.1f} s")
    right = len(errors) == options.solves and max(errors) < 1e-7
    print(f"check: all errors are below 1e-7: {right}")
    if not right:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
