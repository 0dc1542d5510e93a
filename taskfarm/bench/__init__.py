"""The command ``taskfarm bench``: taskfarm side by side with raw mpi4py and with other packages, in one launch.

Theory of operation
-------------------
A *row* is one question, such as how long an empty task takes there and back. It has *contenders*: ours, raw mpi4py
doing the least that gives the same result, and *peers*, other packages that are installed. All contenders of a row are
measured in turn in the same job; one sample of each is a *round*, and ratios are taken within rounds, so that whatever
else the machine does meets all alike (`measure`).

The command (`jobs`) starts one job per number of ranks, ``taskfarm run -n N -m taskfarm.bench.job``, which measures
its rows and writes what it found into a file. Rows about launching itself are measured by the command. The modules of
the rows import mpi4py only inside functions, since the command must not start MPI.

Raw MPI and the peers that use MPI run inside `taskfarm.objects.call`, on the same ranks. Pools of processes must not be
forked from a process in which MPI runs: each lives in a process of its own (`pools`), which rank 0 starts, to which it
speaks over a pipe, and which finds no trace of the MPI job in its environment.

A new row is a function that makes contenders, and a line in the table of `rows`.
"""
