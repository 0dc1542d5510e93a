#!/bin/bash
# Made by `taskfarm script slurm`. Submit it with `sbatch FILE`, look at it with `squeue --me`.

#SBATCH --job-name=module
#SBATCH --nodes=1
# Ranks. Rank 0 hands out work and mostly sleeps: one rank more than busy cores is right for tasks.
#SBATCH --ntasks=4
#SBATCH --time=01:00:00
# One file for all attempts.
#SBATCH --output=module-%j.out
#SBATCH --open-mode=append

# Which machine, which attempt: what one wants to know first when a job has failed.
echo "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, $(date)"

# Threads of numerical libraries, and the cores that srun gives to a rank (it does not take them from sbatch).
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# `taskfarm run` starts the ranks by srun, with the plug-in that the MPI library understands.
taskfarm run -m package.module
status=$?

exit $status
