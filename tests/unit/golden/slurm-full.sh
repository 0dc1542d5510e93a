#!/bin/bash
# Made by `taskfarm script slurm`. Submit it with `sbatch FILE`, look at it with `squeue --me`.

#SBATCH --job-name=points
#SBATCH --nodes=2
# Ranks. Rank 0 hands out work and mostly sleeps: one rank more than busy cores is right for tasks.
#SBATCH --ntasks=65
# Cores per rank, for threads of numerical libraries.
#SBATCH --cpus-per-task=2
#SBATCH --time=10:00:00
#SBATCH --partition=long
#SBATCH --account=p1
# One file for all attempts.
#SBATCH --output=points-%j.out
#SBATCH --open-mode=append
# After the loss of a node Slurm starts the job again by itself.
#SBATCH --requeue

# Which machine, which attempt: what one wants to know first when a job has failed.
echo "job $SLURM_JOB_ID, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST, $(date)"

# Software. Take the MPI of this cluster, which knows its network, not a wheel.
module purge
module load openmpi/5.0
module load python
. /opt/env/bin/activate

# Threads of numerical libraries, and the cores that srun gives to a rank (it does not take them from sbatch).
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

# `taskfarm run` starts the ranks by srun, with the plug-in that the MPI library understands.
taskfarm run --survive --isolate --journal run.db --trace run.json sweep.py --points 100
status=$?

# Once more after a failure (2 is a wrong command line), up to 3 times: this script starts from its beginning.
if [ $status -ne 0 ] && [ $status -ne 2 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 3 ]; then
    echo "status $status: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi

exit $status
