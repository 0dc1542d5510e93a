#!/bin/bash
# Made by `taskfarm script slurm`. Submit it with `sbatch FILE`, look at it with `squeue --me`.

#SBATCH --job-name=@NAME@
#SBATCH --nodes=@NODES@
#: Ranks. Rank 0 hands out work and mostly sleeps: one rank more than busy cores is right for tasks.
#SBATCH --ntasks=@RANKS@
#: Cores per rank, for threads of numerical libraries.
#SBATCH --cpus-per-task=@CORES@
#SBATCH --time=@TIME@
#SBATCH --partition=@QUEUE@
#SBATCH --account=@ACCOUNT@
#: One file for all attempts.
#SBATCH --output=@NAME@-%j.out
#SBATCH --open-mode=append
#: After the loss of a node Slurm starts the job again by itself.
#SBATCH @REQUEUE_FLAG@

# Which machine, which attempt: what one wants to know first when a job has failed.
echo "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, $(date)"

#: Software. Take the MPI of this cluster, which knows its network, not a wheel.
@SOFTWARE@

# Threads of numerical libraries, and the cores that srun gives to a rank (it does not take them from sbatch).
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# `taskfarm run` starts the ranks by srun, with the plug-in that the MPI library understands.
taskfarm run @WORDS@
status=$?

@REQUEUE@
exit $status
