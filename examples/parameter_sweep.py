"""Cross-validated sweep over the two parameters of a support vector classifier, on scikit-learn's bundled digits.

Every pair (C, gamma) is one task. Rank 0 keeps all slots full: it spawns as long as a slot is free and handles one
message at a time. The outcome is a table and a heat map (PNG).

    taskfarm run -n 4 examples/parameter_sweep.py
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult


def cross_validated_error(images, digits, n_folds, C, gamma):
    """Return the share of misclassified images, in percent, over all folds."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.svm import SVC

    folds = StratifiedKFold(n_folds, shuffle=True, random_state=0)
    predicted = cross_val_predict(SVC(C=C, gamma=gamma), images, digits, cv=folds)
    return 100 * float(np.mean(predicted != digits))


def sweep(vm, jobs, *shared):
    """Run one task per entry of `jobs`, keyword arguments, all slots full; return the values in the order of `jobs`."""
    waiting = list(enumerate(jobs))
    running = {}
    values = [None] * len(jobs)
    while waiting or running:
        while waiting and vm.freeSlots() > 0:
            index, kwargs = waiting.pop(0)
            (task,) = vm.spawnFunction(cross_validated_error, args=shared, kwargs=kwargs, count=1)
            running[task] = index
        task, message = vm.receiveMessage()
        if type(message) is MsgTaskResult:
            if not message.success:
                raise RuntimeError(f"task {task} with {jobs[running[task]]} failed\n{message.traceback}")
            values[running[task]] = message.returnValue
        elif type(message) is MsgTaskExit:  # handing it out has freed the slot
            del running[task]
    return values


def label(value):
    """Return `value` as matplotlib sets it: plain, or with a power of ten where that is shorter."""
    if 0.1 <= value < 1000:
        return f"{value:.2g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10**exponent
    times = "" if abs(factor - 1) < 1e-6 else rf"{factor:.1f}\cdot"
    return f"${times}10^{{{exponent}}}$"


def draw(errors, Cs, gammas, n_folds, path):
    """Write the heat map of `errors`, (len(Cs), len(gammas)) in percent, to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    norm = LogNorm(max(errors.min(), 0.1), 100, clip=True)
    figure, axes = plt.subplots(figsize=(2.2 + 0.8 * len(gammas), 1.9 + 0.6 * len(Cs)), layout="constrained")
    cells = axes.pcolormesh(errors, norm=norm, cmap="viridis_r", edgecolors="white", linewidth=2)
    for (row, column), error in np.ndenumerate(errors):
        color = "white" if norm(error) > 0.45 else "#1a1a1a"
        axes.text(column + 0.5, row + 0.5, f"{error:.1f}", ha="center", va="center", color=color)
    for row, column in np.argwhere(errors == errors.min()):
        axes.add_patch(
            Rectangle((column, row), 1, 1, fill=False, edgecolor="#d1345b", linewidth=3, zorder=3, clip_on=False)
        )
    axes.set_xticks(np.arange(len(gammas)) + 0.5, [label(gamma) for gamma in gammas])
    axes.set_yticks(np.arange(len(Cs)) + 0.5, [label(C) for C in Cs])
    axes.set_xlabel(r"kernel coefficient $\gamma$  (1 / grey value$^2$)")
    axes.set_ylabel("penalty $C$  (dimensionless)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"framed: the lowest value, {errors.min():.2f} % of 1,797 images", fontsize=10)
    figure.suptitle(f"Support vector classifier on handwritten digits, {n_folds}-fold cross-validation", fontsize=12)
    bar = figure.colorbar(cells, ax=axes, label="misclassified images (%), log scale", pad=0.02)
    bar.set_ticks([tick for tick in (1, 2, 5, 10, 20, 50, 100) if tick >= norm.vmin], minor=False)
    bar.set_ticks([], minor=True)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def half_powers(first, last):
    """Return 10**first, 10**(first + 0.5), ..., 10**last."""
    return [10 ** (half / 2) for half in range(2 * first, 2 * last + 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    grid = {"type": float, "nargs": "+", "metavar": "X"}
    parser.add_argument("--C", **grid, default=half_powers(-1, 1), help="default: half powers of ten, 0.1 to 10")
    parser.add_argument("--gamma", **grid, default=half_powers(-5, -2), help="default: the same, 1e-5 to 1e-2")
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="default: %(default)s")
    default_folder = Path(os.path.relpath(Path(__file__).parent / "output"))
    parser.add_argument("--out", type=Path, default=default_folder, metavar="FOLDER", help="default: %(default)s")
    options = parser.parse_args()

    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)  # (1797, 64) float64, grey values 0..16
    vm = MPI()
    if vm.slots() == 1:
        parser.exit(2, "parameter_sweep: there are no workers; start it with: taskfarm run -n 4 ...\n")
    jobs = [{"C": C, "gamma": gamma} for C in options.C for gamma in options.gamma]
    print(f"{len(jobs)} parameter pairs x {options.folds} folds, {vm.slots() - 1} workers")
    start = time.perf_counter()
    values = sweep(vm, jobs, images, digits, options.folds)
    print(f"done in {time.perf_counter() - start:.1f} s\n")
    vm.finalize()

    errors = np.array(values).reshape(len(options.C), len(options.gamma))
    print("misclassified images in %")
    print("      C \\ gamma" + "".join(f"{gamma:10.1e}" for gamma in options.gamma))
    for C, row in zip(options.C, errors, strict=True):
        print(f"{C:15.2g}" + "".join(f"{error:10.2f}" for error in row))
    best, n_best = jobs[int(np.argmin(values))], values.count(min(values))
    path = options.out / "parameter_sweep.png"
    draw(errors, options.C, options.gamma, options.folds, path)
    agrees = cross_validated_error(images, digits, options.folds, **best) == min(values)
    verdict = "the same" if agrees else "ANOTHER VALUE"
    print(f"\nlowest: {min(values):.2f} %, of {n_best} pairs; rank 0 alone gets {verdict}")
    print(f"best: C = {best['C']:.2g}, gamma = {best['gamma']:.2g}")
    print(f"picture: {path}")
    return 0 if agrees else 1


if __name__ == "__main__":
    MPI.spawnerBarrier()  # the workers stay in here until `finalize`
    sys.exit(main())
