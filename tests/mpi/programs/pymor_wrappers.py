"""An unmodified pyMOR program: its MPI wrappers of models, operators and vector arrays, its pool, its own object layer.

Only pyMOR is imported. It prints ``pymor ok`` and the module that served as ``pymor.tools.mpi``.
"""

import gc
import sys

import numpy as np
from pymor.algorithms.greedy import rb_greedy
from pymor.algorithms.pod import pod
from pymor.analyticalproblems.thermalblock import thermal_block_problem
from pymor.discretizers.builtin import discretize_stationary_cg
from pymor.discretizers.builtin.list import convert_to_numpy_list_vector_array
from pymor.models.mpi import mpi_wrap_model
from pymor.parallel.default import new_parallel_pool
from pymor.parallel.dummy import dummy_pool
from pymor.parameters.functionals import ExpressionParameterFunctional
from pymor.reductors.coercive import CoerciveRBReductor
from pymor.tools import mpi
from pymor.vectorarrays.mpi import MPIVectorSpaceAutoComm


def discretize():
    return discretize_stationary_cg(thermal_block_problem((2, 1)), diameter=1 / 8)[0]


def discretize_with_lists():
    """The same model over a space of its own type, as a model of an external solver has."""
    return convert_to_numpy_list_vector_array(discretize())


def check_object_layer():
    oid = mpi.call(mpi.function_call_manage, discretize)
    assert isinstance(oid, mpi.ObjectId)
    m = mpi.get_object(oid)
    U = mpi.call(mpi.method_call_manage, oid, "solve", {"diffusion": [0.3, 0.7]})
    assert np.allclose(mpi.get_object(U).to_numpy(), m.solve({"diffusion": [0.3, 0.7]}).to_numpy())
    assert len(mpi.call(mpi.method_call, U, "norm")) == 1
    mpi.call(mpi.run_code, "import math")
    mpi.call(mpi.import_module, "pymor.basic")
    mpi.call(mpi.mpi_info)


def check_wrapped_model():
    fom = discretize()
    wrapped = mpi_wrap_model(discretize_with_lists, use_with=True)
    n = mpi.size
    assert wrapped.solution_space.dim == fom.solution_space.dim
    for mu in fom.parameters.space(0.1, 1).sample_randomly(3):
        U, V = fom.solve(mu), wrapped.solve(mu)
        assert np.allclose(V.norm(), U.norm())
        assert np.allclose(wrapped.h1_0_semi_norm(V), fom.h1_0_semi_norm(U))
        for local in mpi.call(gather_arrays, V.impl.obj_id):
            assert np.allclose(local, U.to_numpy())
    over_all_ranks = MPIVectorSpaceAutoComm(V.space.local_spaces).make_array(V.impl.obj_id)
    assert np.allclose(over_all_ranks.norm(), np.sqrt(n) * U.norm())
    snapshots = wrapped.solution_space.empty()
    for mu in fom.parameters.space(0.1, 1).sample_randomly(4):
        snapshots.append(wrapped.solve(mu))
    modes, _ = pod(snapshots, modes=2)
    assert len(modes) == 2 and np.allclose(modes.gramian(), np.eye(2), atol=1e-8)
    assert np.allclose((snapshots * 2.0 - snapshots).norm(), snapshots.norm())
    copied = snapshots[:2].copy()
    copied.axpy(-1.0, snapshots[:2])
    assert np.allclose(copied.norm(), 0)
    assert snapshots.dofs([0, 1, 2]).shape == (3, 4)
    n_managed = len(mpi._managed_objects)
    del snapshots, modes, copied, V, over_all_ranks
    gc.collect()
    mpi.call(len, ())
    assert len(mpi._managed_objects) < n_managed


def gather_arrays(oid):
    from pymor.tools.mpi import comm, get_object

    return comm.gather(get_object(oid).to_numpy(), root=0)


def _square(x, offset=0):
    return x * x + offset


def _rank(base=0):
    from pymor.tools.mpi import rank

    return rank + base


def check_pool():
    pool = new_parallel_pool()
    n = mpi.size
    assert len(pool) == (n if n > 1 else 1)
    data = list(range(11))
    assert pool.map(_square, data, offset=3) == dummy_pool.map(_square, data, offset=3)
    assert pool.apply(_rank, base=10) == [10 + r for r in range(n)]
    for worker in range(n):
        assert pool.apply_only(_rank, worker, base=100) == 100 + worker
    with pool.push(7) as seven:
        assert pool.map(_square, data, offset=seven) == [x * x + 7 for x in data]
    with pool.push(discretize()) as remote:
        assert len(pool.apply(_norm, m=remote)) == n
    fom = discretize()
    U = fom.solution_space.empty()
    for mu in fom.parameters.space(0.1, 1).sample_randomly(5):
        U.append(fom.solve(mu))
    with pool.scatter_array(U, copy=True) as remote_U:
        assert sum(pool.apply(_length, U=remote_U)) == 5
    with pool.scatter_list(data) as remote_list:
        assert sum(pool.apply(_length, U=remote_list)) == 11
    assert pool.map(lambda x: x + 1, data) == [x + 1 for x in data]
    return pool


def _norm(m=None):
    return float(m.solve({"diffusion": [0.5, 0.5]}).norm()[0])


def _length(U=None):
    return len(U)


def check_greedy(pool):
    fom = discretize()
    functional = ExpressionParameterFunctional("min(diffusion)", fom.parameters)
    training = fom.parameters.space(0.1, 1).sample_uniformly(4)
    errors = []
    for p in (pool, dummy_pool):
        reductor = CoerciveRBReductor(fom, product=fom.h1_0_semi_product, coercivity_estimator=functional)
        errors.append(rb_greedy(fom, reductor, training, max_extensions=3, pool=p)["max_errs"])
    assert np.allclose(errors[0], errors[1])


def check_errors_pass():
    class Own(Exception):
        pass

    def fail():
        raise Own("on all ranks")

    try:
        mpi.call(mpi.function_call, fail)
    except Own:
        pass
    else:
        raise AssertionError("no error")
    oid = mpi.call(mpi.function_call_manage, list)
    assert mpi.call(mpi.function_call, len, oid) == 0


if __name__ == "__main__":
    check_object_layer()
    check_wrapped_model()
    check_greedy(check_pool())
    if "errors" in sys.argv:
        check_errors_pass()
    print("pymor ok", mpi.__name__, mpi.size)
