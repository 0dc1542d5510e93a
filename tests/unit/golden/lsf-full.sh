#!/bin/bash
# Made by `taskfarm script lsf`. Submit it with `bsub < FILE`, look at it with `bjobs`.

#BSUB -J points
# Ranks, and how many of them on a host. Rank 0 hands out work and mostly sleeps: one rank more than busy cores is right
# for tasks.
#BSUB -n 65
#BSUB -R "span[ptile=33]"
# Cores per rank, for threads of numerical libraries.
#BSUB -R "affinity[core(2)]"
#BSUB -W 10:00
#BSUB -q long
#BSUB -P p1
# One file for both streams.
#BSUB -o points-%J.out
# After the loss of a host LSF starts the job again by itself, and also after these exit statuses: 75 means that ranks were
# stuck in a failed call, 137 that one was killed, for its memory for example. How often is a setting of the queue.
#BSUB -r -Q "75 137"

echo "job $LSB_JOBID, on $(sort -u "$LSB_DJOB_HOSTFILE" | tr '\n' ' '), $(date)"

# Software. Take the MPI of this cluster, which knows its network, not a wheel.
module purge
module load openmpi/5.0
module load python
. /opt/env/bin/activate

# Threads of numerical libraries.
export OMP_NUM_THREADS=2

# mpiexec learns the hosts from LSF.
taskfarm run -n 65 --survive --isolate --journal run.db --trace run.json sweep.py --points 100
