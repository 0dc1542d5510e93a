"""A Markov chain Monte Carlo sampler, emcee, on a pool of MPI ranks: the width of a peak in noisy data.

    taskfarm run -n 4 examples/executor_emcee.py

The walkers' probabilities are independent, so each step is one `map`. With the same seed, the chain is the same as in
one process.
"""

import argparse

import emcee
import numpy as np

from taskfarm import Pool

TRUTH = np.array([1.5, 0.3, 2.0])  # place, log of the width, height
X = np.linspace(-5, 5, 200)
SIGMA = 0.2


def peak(parameters):
    place, log_width, height = parameters
    return height * np.exp(-0.5 * ((X - place) / np.exp(log_width)) ** 2)


def log_probability(parameters, data):
    if np.any(np.abs(parameters) > 10):
        return -np.inf
    return -0.5 * float(np.sum(((data - peak(parameters)) / SIGMA) ** 2))


def sample(pool, data, n_steps):
    """Return the chain of 32 walkers, steps by walkers by parameters."""
    rng = np.random.default_rng(1)
    sampler = emcee.EnsembleSampler(32, len(TRUTH), log_probability, args=(data,), pool=pool)
    sampler.random_state = np.random.RandomState(2).get_state()
    sampler.run_mcmc(TRUTH + 0.1 * rng.normal(size=(32, len(TRUTH))), n_steps)
    return sampler.get_chain()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="steps of each walker (default: %(default)s)")
    options = parser.parse_args()
    data = peak(TRUTH) + SIGMA * np.random.default_rng(0).normal(size=X.size)

    with Pool() as pool:
        chain = sample(pool, data, options.steps)
        print(f"{chain.shape[0]} steps of {chain.shape[1]} walkers on {pool.size} workers")
    late = chain[options.steps // 3 :].reshape(-1, len(TRUTH))
    for name, true, mean, std in zip(
        ("place", "log width", "height"), TRUTH, late.mean(axis=0), late.std(axis=0), strict=True
    ):
        print(f"{name:10} {mean:6.3f} +- {std:.3f}   (true: {true})")
    same = np.array_equal(chain, sample(None, data, options.steps))
    print(f"check: one process alone gives the same chain: {same}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
