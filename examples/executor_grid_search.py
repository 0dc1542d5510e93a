"""scikit-learn's GridSearchCV on the workers of an executor, through joblib: two lines more than without.

    taskfarm run -n 4 examples/executor_grid_search.py
    python examples/executor_grid_search.py

The second way needs no MPI: the workers are processes on this host. The outcome is compared with the same search in
this process alone.
"""

import argparse
import time

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from taskfarm import Executor
from taskfarm.futures import register_joblib_backend

GRID = {"C": [0.1, 1.0, 10.0], "gamma": [1e-4, 1e-3, 1e-2]}


def search(n_images):
    """Return the fitted search, and the seconds that it took."""
    images, digits = load_digits(return_X_y=True)
    began = time.perf_counter()
    found = GridSearchCV(SVC(), GRID, cv=4, n_jobs=-1).fit(images[:n_images], digits[:n_images])
    return found, time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=600, help="how many of the 1,797 images (default: %(default)s)")
    options = parser.parse_args()

    with Executor() as executor:
        register_joblib_backend()
        with joblib.parallel_config("taskfarm", executor=executor):
            found, seconds = search(options.images)
        print(f"{len(found.cv_results_['params'])} candidates on {executor.num_workers} workers: {seconds:.1f} s")
    print(f"best: C = {found.best_params_['C']:g}, gamma = {found.best_params_['gamma']:g}")
    print(f"right in cross-validation: {100 * found.best_score_:.1f} %")

    with joblib.parallel_config("sequential"):
        alone, seconds = search(options.images)
    print(f"one process alone: {seconds:.1f} s")
    same = list(alone.cv_results_["mean_test_score"]) == list(found.cv_results_["mean_test_score"])
    print(f"check: all scores are the same: {same}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
