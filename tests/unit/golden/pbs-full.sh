#!/bin/bash
# Made by `taskfarm script pbs`, for PBS Professional and OpenPBS. Submit it with `qsub FILE`, look at it with `qstat -u $USER`.

#PBS -N points
# Hosts, and on each of them so many cores and ranks. Rank 0 hands out work and mostly sleeps: one rank more than busy cores
# is right for tasks.
#PBS -l select=2:ncpus=66:mpiprocs=33
#PBS -l walltime=10:00:00
#PBS -q long
#PBS -A p1
# One file for both streams.
#PBS -j oe
# After the loss of a node PBS may start the job again by itself.
#PBS -r y

# PBS starts scripts in the home folder.
cd "$PBS_O_WORKDIR" || exit 1
echo "job $PBS_JOBID, on $(sort -u "$PBS_NODEFILE" | tr '\n' ' '), $(date)"

# Software. Take the MPI of this cluster, which knows its network, not a wheel.
module purge
module load openmpi/5.0
module load python
. /opt/env/bin/activate

# Threads of numerical libraries.
export OMP_NUM_THREADS=2

# mpiexec learns the hosts from PBS.
taskfarm run -n 65 --survive --isolate --journal run.db --trace run.json sweep.py --points 100
status=$?

# Once more after a failure (2 is a wrong command line), up to 3 times, on the same hosts.
attempt=1
while [ $status -ne 0 ] && [ $status -ne 2 ] && [ $attempt -le 3 ]; do
    attempt=$((attempt + 1))
    echo "status $status: attempt $attempt"
    taskfarm run -n 65 --survive --isolate --journal run.db --trace run.json sweep.py --points 100
    status=$?
done

exit $status
