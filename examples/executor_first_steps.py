"""The executor in one page: tasks, maps, failures, callbacks, and the same from asyncio.

taskfarm run -n 4 examples/executor_first_steps.py
python examples/executor_first_steps.py
"""

import asyncio
import functools
import random

from taskfarm import Executor, as_completed


def points_inside(n, seed):
    """Return how many of `n` random points of the unit square lie within the quarter circle."""
    rng = random.Random(seed)
    return sum(rng.random() ** 2 + rng.random() ** 2 <= 1 for _ in range(n))


def checked_root(x):
    if x < 0:
        raise ValueError(f"{x} has no real root")
    return x**0.5


async def sum_of_roots(executor, n):
    total = 0.0
    async for root in executor.amap(checked_root, range(n)):
        total += root
    return total


def main():
    with Executor() as executor:
        # One task, and many.
        print("2 ** 10 =", executor.submit(pow, 2, 10).result())
        futures = [executor.submit(points_inside, 20_000, seed) for seed in range(20)]
        inside = sum(future.result() for future in as_completed(futures))
        print(f"pi is about {4 * inside / (20 * 20_000):.2f}")

        # A map: batches are sized by themselves, and what all items share travels once per worker.
        shared = functools.partial(points_inside, 1000)
        print(f"again: {4 * sum(executor.map(shared, range(400))) / 400_000:.2f}")
        print("a million roots:", round(sum(executor.map(checked_root, range(1_000_000)))))

        # A failure is raised where its result would be, with the traceback of the worker as its cause.
        try:
            list(executor.map(checked_root, [4, 9, -1]))
        except ValueError as error:
            print("failed as it should:", error, "| cause:", type(error.__cause__).__name__)

        # From asyncio.
        print("from asyncio:", round(asyncio.run(sum_of_roots(executor, 1000))))


if __name__ == "__main__":
    main()
