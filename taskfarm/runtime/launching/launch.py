"""Decide how to start N ranks: the launcher that fits the MPI library, with the flags and variables that it needs.

The library decides (`taskfarm.runtime.launching.libmpi`); an ``mpiexec`` of another family would start N worlds of one
rank. `plan_launch` only decides: what it knows of the machine comes in a `Situation`, what it decides leaves in a
`LaunchPlan`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskfarm.runtime.launching.blas import thread_variables
from taskfarm.runtime.launching.launchers import Launcher, Situation, choose_launcher
from taskfarm.runtime.launching.libmpi import Family, MpiLibrary, mpi_library
from taskfarm.runtime.launching.surroundings import OUTPOST_VARIABLE, default_ranks, slurm_cores

__all__ = ["LaunchPlan", "plan_launch"]

# Batch systems whose allocation mpiexec reads by itself: the job may then span hosts.
_BATCH_VARIABLES = (
    "SLURM_JOB_ID", "PBS_JOBID", "PBS_NODEFILE", "LSB_JOBID", "LSB_HOSTS", "PE_HOSTFILE", "COBALT_JOBID", "FLUX_JOB_ID",
)  # fmt: skip
# Variables by which a user of Open MPI names hosts or tunes the transports.
_OPENMPI_HOSTS = ("PRTE_MCA_prte_default_hostfile", "PRTE_MCA_hostfile", "OMPI_MCA_orte_default_hostfile")
_OPENMPI_TUNING = ("OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl")
_OPENMPI_USER_FILES = (".openmpi/mca-params.conf", ".prte/mca-params.conf")


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """A command to execute, and what it needs in its environment beyond what is there.

    Attributes
    ----------
    one_host : bool
        Whether the job certainly stays on this host.
    """

    command: tuple[str, ...]
    added_environment: Mapping[str, str]
    n_ranks: int
    launcher: Launcher
    library: MpiLibrary
    one_host: bool

    def shell_line(self) -> str:
        """Return the command as a line for a shell."""
        settings = [f"{name}={value}" for name, value in sorted(self.added_environment.items())]
        return shlex.join([*(["env", *settings] if settings else []), *self.command])


def plan_launch(
    program: Sequence[str],
    n_ranks: int | None,
    mpiexec: str | None,
    situation: Situation,
    *,
    tag_output: bool = False,
    survive: bool = False,
) -> LaunchPlan:
    """Decide how to run `program` (arguments of the interpreter) on every one of `n_ranks` ranks.

    Parameters
    ----------
    program : sequence of str
        Arguments of the Python interpreter, such as ``["-m", "taskfarm.cli.rank", "script.py"]``.
    n_ranks : int, optional
        By default `default_ranks`.
    mpiexec : str, optional
        The user's own launcher, a command with arguments, instead of the one that would be found.
    situation : Situation
        What is known of the machine.
    tag_output : bool
        Have the launcher put the rank before each line that a rank prints.
    survive : bool
        Whether the job shall outlive ranks.

    Raises
    ------
    UsageError
        If mpi4py or an MPI library or a fitting launcher is missing, or `mpiexec` is not one that fits.
    """
    library = mpi_library(situation.paths, situation.environ, situation.run)
    launcher = choose_launcher(library, mpiexec, situation, survive=survive)
    n = default_ranks(situation.environ, situation.cores) if n_ranks is None else n_ranks
    added: dict[str, str] = {}
    flags: list[str] = []
    if launcher.is_srun:
        cores = slurm_cores(situation.environ)
        if mpiexec is None and cores is not None and n > cores:
            flags.append("--overcommit")
    elif launcher.family is Family.OPENMPI:
        added = _open_mpi_environment(launcher, n, situation)
    one_host = not launcher.is_srun and _is_one_host(launcher, situation)
    if launcher.family is Family.OPENMPI and not launcher.is_srun and not one_host:  # others pass on everything
        told = [OUTPOST_VARIABLE] * survive  # set when it is started
        names = sorted({*told, *(name for name in situation.environ if name.startswith("TASKFARM_"))})
        flags += [word for name in names for word in ("-x", name)]
    if one_host:  # Slurm gives every rank its own cores
        added |= thread_variables(n - 1, situation.cores, situation.environ)
    if tag_output:
        flags += _tagging(launcher)
    command = (*launcher.command, *flags, "-n", str(n), situation.paths.python, *program)
    return LaunchPlan(command, added, n, launcher, library, one_host)


def _tagging(launcher: Launcher) -> list[str]:
    """Return the flags by which a launcher tags output: it sees whole lines, also those of a rank that crashes."""
    if launcher.is_srun:
        return ["--label"]
    if launcher.family is Family.OPENMPI:
        return ["--tag-output"] if launcher.version and launcher.version < (5, 0) else ["--output", "tag"]
    return ["-prepend-rank"]


# Open MPI


def _open_mpi_environment(launcher: Launcher, n_ranks: int, situation: Situation) -> dict[str, str]:
    """Return the variables for Open MPI; not flags, so that what the user's own flags or variables say comes first."""
    modern = not launcher.version or launcher.version >= (5, 0)
    wanted: dict[str, str] = {}
    if situation.is_root:
        wanted |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    # It counts physical cores and refuses more ranks; rank 0 mostly waits, so one more than cores is the normal case.
    if modern:
        # By slot: without that word Open MPI 5.0.11 puts all ranks on the first host of a Slurm job.
        wanted["PRTE_MCA_rmaps_default_mapping_policy"] = "slot:oversubscribe"
    else:
        wanted["OMPI_MCA_rmaps_base_oversubscribe"] = "1"
    if n_ranks > situation.cores:
        wanted["PRTE_MCA_hwloc_default_binding_policy" if modern else "OMPI_MCA_hwloc_base_binding_policy"] = "none"
    if modern and _is_one_host(launcher, situation) and not _tunes_open_mpi(situation):
        # Without the fabric library, whose search costs a second: 4 ranks to the first barrier take 1.18 s, so 0.18 s
        # (5.0.11). Not btl=self,sm, which is as fast but leaves ranks of a Spawn unreachable.
        wanted |= {"OMPI_MCA_pml": "ob1", "OMPI_MCA_btl": "^ofi"}
    return {name: value for name, value in wanted.items() if name not in situation.environ}


def _is_one_host(launcher: Launcher, situation: Situation) -> bool:
    """Tell whether the job certainly stays on this host."""
    if len(launcher.command) > 1 or any(name in situation.environ for name in (*_BATCH_VARIABLES, *_OPENMPI_HOSTS)):
        return False
    hostfile = Path(launcher.command[0]).resolve().parent.parent / "etc" / "prte-default-hostfile"
    try:
        lines = hostfile.read_text().splitlines()
    except OSError:
        return True
    return not any(line.strip() and not line.lstrip().startswith("#") for line in lines)


def _tunes_open_mpi(situation: Situation) -> bool:
    return any(name in situation.environ for name in _OPENMPI_TUNING) or any(
        os.path.exists(os.path.join(situation.home, name)) for name in _OPENMPI_USER_FILES
    )
