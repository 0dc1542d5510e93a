"""The executor: rank 0's side, with its crew of workers, and the workers'."""
