#!/bin/bash
# Made by `taskfarm script lsf`. Submit it with `bsub < FILE`, look at it with `bjobs`.

#BSUB -J module
# Ranks, and how many of them on a host. Rank 0 hands out work and mostly sleeps: one rank more than busy cores is right
# for tasks.
#BSUB -n 4
#BSUB -R "span[ptile=4]"
#BSUB -W 1:00
# One file for both streams.
#BSUB -o module-%J.out

echo "job $LSB_JOBID, on $(sort -u "$LSB_DJOB_HOSTFILE" | tr '\n' ' '), $(date)"

# Threads of numerical libraries.
export OMP_NUM_THREADS=1

# mpiexec learns the hosts from LSF.
taskfarm run -n 4 -m package.module
