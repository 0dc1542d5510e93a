#!/bin/bash
# Made by `taskfarm script lsf`. Submit it with `bsub < FILE`, look at it with `bjobs`.

#BSUB -J @NAME@
#: Ranks, and how many of them on a host. Rank 0 hands out work and mostly sleeps: one rank more than busy cores is right
#: for tasks.
#BSUB -n @RANKS@
#BSUB -R "span[ptile=@RANKS_PER_NODE@]"
#: Cores per rank, for threads of numerical libraries.
#BSUB -R "affinity[core(@CORES@)]"
#BSUB -W @TIME_HM@
#BSUB -q @QUEUE@
#BSUB -P @ACCOUNT@
#: One file for both streams.
#BSUB -o @NAME@-%J.out
#: After the loss of a host LSF starts the job again by itself, and also after these exit statuses: 75 means that ranks were
#: stuck in a failed call, 137 that one was killed, for its memory for example. How often is a setting of the queue.
#BSUB @REQUEUE_FLAG@

echo "job $LSB_JOBID, on $(sort -u "$LSB_DJOB_HOSTFILE" | tr '\n' ' '), $(date)"

#: Software. Take the MPI of this cluster, which knows its network, not a wheel.
@SOFTWARE@

# Threads of numerical libraries.
export OMP_NUM_THREADS=@THREADS@

# mpiexec learns the hosts from LSF.
taskfarm run -n @RANKS@ @WORDS@
