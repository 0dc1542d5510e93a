#!/bin/bash
# Made by `taskfarm script pbs`, for PBS Professional and OpenPBS. Submit it with `qsub FILE`, look at it with `qstat -u $USER`.

#PBS -N module
# Hosts, and on each of them so many cores and ranks. Rank 0 hands out work and mostly sleeps: one rank more than busy cores
# is right for tasks.
#PBS -l select=1:ncpus=4:mpiprocs=4
#PBS -l walltime=01:00:00
# One file for both streams.
#PBS -j oe

# PBS starts scripts in the home folder.
cd "$PBS_O_WORKDIR" || exit 1
echo "job $PBS_JOBID, on $(sort -u "$PBS_NODEFILE" | tr '\n' ' '), $(date)"

# Threads of numerical libraries.
export OMP_NUM_THREADS=1

# mpiexec learns the hosts from PBS.
taskfarm run -n 4 -m package.module
status=$?

exit $status
