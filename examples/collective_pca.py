"""Principal components of the 1,797 bundled digits of scikit-learn, on an operator that is distributed by rows.

Every rank keeps a block of the images in its memory. Subspace iteration needs only the product of the covariance with
a few vectors, and that is one collective call: every rank multiplies with its own rows, `Allreduce` adds up. The
result is compared with numpy's singular value decomposition of all images at once.

    taskfarm run -n 4 examples/collective_pca.py
"""

import argparse
import sys
import time

import numpy as np
from sklearn.datasets import load_digits

from taskfarm import objects


class RowBlock:
    """One rank's block of rows of the centred data matrix; all blocks together are the distributed operator."""

    def __init__(self):
        images = load_digits().data  # (1797, 64) float64: 8 x 8 pixels, 0..16
        self.n_images = len(images)
        self.rows = np.array_split(images, objects.size)[objects.rank].copy()
        self.rows -= self.allreduce(self.rows.sum(axis=0)) / self.n_images

    def allreduce(self, part):
        """Return the sum of every rank's `part`."""
        total = np.empty_like(part)
        objects.comm.Allreduce(part, total)
        return total

    def n_rows(self):
        return len(self.rows)

    def apply(self, vectors):
        """Return the covariance matrix times `vectors`, (64, k) float64, the same on every rank."""
        return self.allreduce(self.rows.T @ (self.rows @ vectors)) / (self.n_images - 1)


def principal_components(operator, n_components, tolerance, max_iterations, seed=0):
    """Subspace iteration with a Rayleigh-Ritz step; the vectors are few and small, rank 0 keeps them.

    Returns
    -------
    variances : (n_components,) float64, largest first
    components : (n_components, 64) float64, orthonormal rows
    n_iterations : int
    """
    n_extra = 10  # more vectors than wanted: the error shrinks by variance[n + n_extra] / variance[n] a step
    basis = np.random.default_rng(seed).standard_normal((64, n_components + n_extra))
    basis, _ = np.linalg.qr(basis)
    for n_iterations in range(1, max_iterations + 1):  # noqa: B007 - returned
        image = objects.call(objects.method_call, operator, "apply", basis)
        variances, rotation = np.linalg.eigh(basis.T @ image)
        order = np.argsort(variances)[::-1][:n_components]
        variances, ritz = variances[order], rotation[:, order]
        residual = np.linalg.norm(image @ ritz - (basis @ ritz) * variances, axis=0).max()
        if residual <= tolerance * variances[0]:
            break
        basis, _ = np.linalg.qr(image)
    return variances, (basis @ ritz).T, n_iterations


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--components", type=int, default=10, metavar="K", help="how many (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=1e-12, help="relative residual (default: %(default)s)")
    parser.add_argument("--max-iterations", type=int, default=200, metavar="N", help="default: %(default)s")
    options = parser.parse_args()
    if not 1 <= options.components <= 50:
        parser.error("--components must be between 1 and 50")

    operator = objects.call(objects.function_call_manage, RowBlock)
    rows = objects.call_all(objects.method_call, operator, "n_rows")
    print(f"{sum(rows)} images of 64 pixels, rows on each rank: {rows}")

    start = time.perf_counter()
    variances, components, n = principal_components(
        operator, options.components, options.tolerance, options.max_iterations
    )
    print(f"{n} iterations, one collective call each, in {time.perf_counter() - start:.2f} s\n")

    images = load_digits().data
    centred = images - images.mean(axis=0)
    _, singular, reference = np.linalg.svd(centred, full_matrices=False)
    expected = singular**2 / (len(images) - 1)

    total = expected.sum()
    k = options.components
    print("component   variance   explained   together   difference to numpy")
    for i, variance in enumerate(variances):
        together = variances[: i + 1].sum() / total
        print(
            f"{i + 1:9d} {variance:10.4f} {variance / total:10.2%} {together:10.2%} {abs(variance - expected[i]):17.1e}"
        )
    signs = np.sign(np.sum(components * reference[:k], axis=1))
    variance_error = np.max(np.abs(variances - expected[:k])) / expected[0]
    vector_error = np.max(np.abs(components * signs[:, None] - reference[:k]))
    print(f"\nlargest relative difference of a variance: {variance_error:.1e}")
    print(f"largest difference of a component's entry: {vector_error:.1e}")
    agrees = variance_error < 1e-10 and vector_error < 1e-8
    print("the distributed result agrees with numpy.linalg.svd" if agrees else "NO AGREEMENT with numpy.linalg.svd")
    return 0 if agrees else 1


if __name__ == "__main__":
    objects.launch_event_loop()  # the other ranks stay in here until `quit`
    if objects.rank0:
        status = main()
        objects.quit()
        sys.exit(status)
