"""Tasks and collective calls in one program, over the same ranks and the same distributed object.

1. A collective call loads scikit-learn's bundled digits: every rank keeps its own part, some rows to learn from and
   some to be judged by. The handle of all parts is one ObjectId.
2. A task on every worker learns from that worker's part: the ObjectId that is passed to it arrives as the part.
3. A collective call judges all models, and their majority vote, on everybody's rows at once.

    taskfarm run -n 4 examples/both_faces.py
"""

import argparse
import sys

import numpy as np

from taskfarm import objects
from taskfarm.vm import MPI, MsgTaskExit, MsgTaskResult


class Part:
    """One rank's rows of the digits."""

    def __init__(self, n_judged):
        from sklearn.datasets import load_digits

        images, digits = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))  # the same on every rank
        judged, learned = np.split(order, [n_judged])
        mine = np.array_split(judged, objects.size)[objects.rank]
        self.judged_images, self.judged_digits = images[mine], digits[mine]
        # Rank 0 runs the program, not tasks: the rows to learn from are for the workers.
        mine = np.array_split(learned, objects.size - 1)[objects.rank - 1] if objects.rank else learned[:0]
        self.learned_images, self.learned_digits = images[mine], digits[mine]

    def n_right(self, models):
        """Return how many rows of all ranks together each of `models` gets right, then the same for their majority."""
        votes = np.array([model.predict(self.judged_images) for model in models])
        majority = np.array([np.bincount(column).argmax() for column in votes.T])
        right = (np.vstack([votes, majority]) == self.judged_digits).sum(axis=1)
        return objects.comm.allreduce(right)


def learn(part):
    """Return a classifier that has learned from `part`, and the number of rows in it."""
    from sklearn.svm import SVC

    return SVC(C=10.0, gamma=0.001).fit(part.learned_images, part.learned_digits), len(part.learned_digits)


def learn_everywhere(part):
    """Run `learn` as a task on every worker; return its value by rank."""
    vm = MPI()
    running = set(vm.spawnFunction(learn, args=(part,)))
    values = {}
    while running:
        task, message = vm.receiveMessage()
        if type(message) is MsgTaskResult:
            if not message.success:
                raise RuntimeError(f"task {task} failed\n{message.traceback}")
            values[task.rank] = message.returnValue
        elif type(message) is MsgTaskExit:
            running.discard(task)
    return dict(sorted(values.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--judged", type=int, default=600, metavar="N", help="images to judge by (default: %(default)s)"
    )
    options = parser.parse_args()
    if objects.size == 1:
        parser.exit(2, "both_faces: there are no workers; start it with: taskfarm run -n 4 ...\n")

    part = objects.call(objects.function_call_manage, Part, options.judged)
    print(f"1. collective call: {objects.size} ranks hold their parts, handle {part!r}")

    learned = learn_everywhere(part)
    models = [model for model, _ in learned.values()]
    rows = {rank: n for rank, (_, n) in learned.items()}
    print(f"2. tasks: {len(models)} models, learned from these numbers of rows, by rank: {rows}")

    right = objects.call(objects.method_call, part, "n_right", models)
    print(f"3. collective call: judged on {options.judged} rows of all ranks")
    for name, n in zip([*(f"model of rank {rank}" for rank in rows), "majority vote"], right, strict=True):
        print(f"   {name:<16} {n:4d} right, {n / options.judged:6.1%}")

    # The check: what the ranks found together is what one process finds alone.
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    judged = np.random.default_rng(0).permutation(len(images))[: options.judged]
    alone = [int((model.predict(images[judged]) == digits[judged]).sum()) for model in models]
    agrees = alone == right[:-1].tolist()
    print(f"check: one process alone counts {'the same' if agrees else alone}")
    return 0 if agrees else 1


if __name__ == "__main__":
    objects.launch_event_loop()  # one session serves both faces; the other ranks stay in here until `quit`
    if objects.rank0:
        status = main()
        objects.quit()
        sys.exit(status)
