"""Reduced basis method for the thermal block: an ordinary pyMOR program that knows nothing of taskfarm.

Stationary heat conduction in a plate of blocks with independent conductivities, discretised by pyMOR. The weak greedy
algorithm searches the training set on all ranks, and so does the validation at the end; a model that is wrapped for
MPI is solved on all ranks at once. The search is repeated on one rank alone and must choose the same.

On pyMOR's own MPI module, or on taskfarm in its place:

    mpiexec -n 4 python examples/pymor_thermal_block.py
    taskfarm run -n 4 --replace pymor.tools.mpi examples/pymor_thermal_block.py
"""

import argparse
import sys

# With more than one rank, all but rank 0 stay in this first import until the program ends.
from pymor.basic import (
    CoerciveRBReductor,
    ExpressionParameterFunctional,
    discretize_stationary_cg,
    rb_greedy,
    set_log_levels,
    thermal_block_problem,
)
from pymor.models.mpi import mpi_wrap_model
from pymor.parallel.default import new_parallel_pool
from pymor.parallel.dummy import dummy_pool
from pymor.tools import mpi


def discretize(blocks, diameter):
    problem = thermal_block_problem(num_blocks=(blocks, blocks))
    fom, _ = discretize_stationary_cg(problem, diameter=diameter)
    return fom, problem.parameter_space


def discretize_for_mpi(blocks, diameter):
    """Discretise the same model over a space of its own type, as a model of an external solver has."""
    from pymor.discretizers.builtin.list import convert_to_numpy_list_vector_array

    return convert_to_numpy_list_vector_array(discretize(blocks, diameter)[0])


def reduce(fom, parameter_space, samples, size, pool):
    coercivity = ExpressionParameterFunctional("min(diffusion)", fom.parameters)
    reductor = CoerciveRBReductor(fom, product=fom.h1_0_semi_product, coercivity_estimator=coercivity)
    training_set = parameter_space.sample_uniformly(samples)
    return rb_greedy(fom, reductor, training_set, max_extensions=size, pool=pool), reductor, len(training_set)


def true_error(mu, fom=None, rom=None, reductor=None):
    """Return the relative error of the reduced solution in the energy semi-norm, and its rigorous estimate."""
    U = fom.solve(mu)
    norm = fom.h1_0_semi_norm(U)[0]
    error = fom.h1_0_semi_norm(U - reductor.reconstruct(rom.solve(mu)))[0]
    return error / norm, rom.estimate_error(mu)[0] / norm


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=2, help="blocks per direction (default: %(default)s)")
    parser.add_argument("--grid", type=int, default=40, help="grid intervals per direction (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="training samples per block (default: %(default)s)")
    parser.add_argument("--size", type=int, default=12, help="size of the reduced basis (default: %(default)s)")
    parser.add_argument("--tests", type=int, default=24, help="parameters for validation (default: %(default)s)")
    options = parser.parse_args()
    mpi.call(mpi.function_call, set_log_levels, {"pymor": "WARN"})

    fom, parameter_space = discretize(options.blocks, 1 / options.grid)
    pool = new_parallel_pool()
    print(f"{len(pool)} ranks, object layer: {mpi.__name__}")
    print(f"full model: {fom.order} unknowns, {options.blocks**2} parameters")

    mpi_model = mpi_wrap_model(lambda: discretize_for_mpi(options.blocks, 1 / options.grid), use_with=True)
    mu = parameter_space.sample_randomly(1)[0]
    one, many = fom.h1_0_semi_norm(fom.solve(mu))[0], mpi_model.h1_0_semi_norm(mpi_model.solve(mu))[0]
    print(f"energy semi-norm of one solution: {one:.9f}, by the model wrapped for MPI: {many:.9f}")

    args = (fom, parameter_space, options.samples, options.size)
    greedy, reductor, n_training = reduce(*args, pool)
    alone, *_ = reduce(*args, dummy_pool)
    difference = max(abs(a - b) / b for a, b in zip(greedy["max_errs"], alone["max_errs"], strict=True))
    print(f"greedy search over {n_training} parameters:")
    for n, estimate in enumerate(greedy["max_errs"]):
        if n % 3 == 0 or n == len(greedy["max_errs"]) - 1:
            print(f"  basis of {n:2d}: largest estimated error {estimate:.3e}")

    rom = greedy["rom"]
    tests = parameter_space.sample_randomly(options.tests)
    with pool.push(fom) as f, pool.push(rom) as r, pool.push(reductor) as red:
        errors = pool.map(true_error, tests, fom=f, rom=r, reductor=red)
    worst, bound = (max(column) for column in zip(*errors, strict=True))
    rigorous = all(error <= estimate for error, estimate in errors)
    print(f"validation on {len(tests)} new parameters, relative errors:")
    print(f"  largest error {worst:.3e}, largest estimate {bound:.3e}, every error below its estimate: {rigorous}")
    print(f"largest relative difference to the search on one rank: {difference:.1e}")

    good = difference < 1e-6 and abs(one - many) < 1e-9 * one and rigorous and worst < 1e-2
    print("the parallel result agrees with the serial one" if good else "NO AGREEMENT with the serial result")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
