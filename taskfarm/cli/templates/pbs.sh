#!/bin/bash
# Made by `taskfarm script pbs`, for PBS Professional and OpenPBS. Submit it with `qsub FILE`, look at it with `qstat -u $USER`.

#PBS -N @NAME@
#: Hosts, and on each of them so many cores and ranks. Rank 0 hands out work and mostly sleeps: one rank more than busy cores
#: is right for tasks.
#PBS -l select=@NODES@:ncpus=@CORES_PER_NODE@:mpiprocs=@RANKS_PER_NODE@
#PBS -l walltime=@TIME@
#PBS -q @QUEUE@
#PBS -A @ACCOUNT@
#: One file for both streams.
#PBS -j oe
#: After the loss of a node PBS may start the job again by itself.
#PBS @REQUEUE_FLAG@

# PBS starts scripts in the home folder.
cd "$PBS_O_WORKDIR" || exit 1
echo "job $PBS_JOBID, on $(sort -u "$PBS_NODEFILE" | tr '\n' ' '), $(date)"

#: Software. Take the MPI of this cluster, which knows its network, not a wheel.
@SOFTWARE@

# Threads of numerical libraries.
export OMP_NUM_THREADS=@THREADS@

# mpiexec learns the hosts from PBS.
taskfarm run -n @RANKS@ @WORDS@
status=$?

@REQUEUE@
exit $status
