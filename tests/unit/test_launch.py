"""The launcher fits the MPI library, and gets what it needs. Fake folders and commands; nothing is started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from taskfarm.errors import UsageError
from taskfarm.runtime.launching.blas import VARIABLES
from taskfarm.runtime.launching.launch import plan_launch
from taskfarm.runtime.launching.launchers import Situation, wrong_launcher
from taskfarm.runtime.launching.libmpi import Family, MpiLibrary, SearchPaths, ask_library, find_library, mpi_library

MPICH_LIB = b"\x7fELF....MPI_Get_version....MPICH Version"
OPENMPI_LIB = b"\x7fELF....MPI_Get_version....ompi_mpi_comm_self"
INTEL_LIB = b"\x7fELF....MPI_Get_version....I_MPI_Check_image_status....MPICH Version"
LINKER_SCRIPT = b"INPUT(libmpi.so.12)\n"
VERSIONS = {
    "mpich": "HYDRA build details:\n    Version:      5.0.2\n",
    "openmpi": "mpiexec (Open MPI) 5.0.11\n",
    "openmpi4": "mpiexec (OpenRTE) 4.1.4\n",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.18 Build 20250101\n",
    "pals": "mpiexec version 1.2.11\n",
}
PROGRAM = ["-m", "taskfarm.cli.rank", "script.py"]


class Machine:
    """A machine made of files under `root`: a virtual environment, prefixes, commands that tell their version."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ: dict[str, str] = {"PATH": str(root / "path")}
        self.outputs: dict[tuple[str, ...], tuple[int, str]] = {}
        self.asked: list[tuple[str, ...]] = []
        self.cores = 2
        self.is_root = False
        self.prefixes = [root / "venv", root / "base"]
        self.mpi4py: Path | None = root / "venv" / "mpi4py"
        self.file("venv/mpi4py/MPI.mpich.cpython-311-x86_64-linux-gnu.so", b"")
        self.file("venv/mpi4py/MPI.openmpi.cpython-311-x86_64-linux-gnu.so", b"")

    def file(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def command(self, name: str, version: str) -> str:
        path = self.file(name, b"#!/bin/sh\n")
        path.chmod(0o755)
        self.outputs[(str(path), "--version")] = (0, VERSIONS[version])
        return str(path)

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        self.asked.append(tuple(command))
        return self.outputs.get(tuple(command), (127, "no such command"))

    @property
    def situation(self) -> Situation:
        package = None if self.mpi4py is None else str(self.mpi4py)
        paths = SearchPaths(str(self.root / "venv/bin/python"), tuple(map(str, self.prefixes)), package)
        return Situation(self.environ, paths, self.cores, self.is_root, str(self.root / "home"), self.run)

    def plan(self, n: int | None = 2, mpiexec: str | None = None, *, survive: bool = False) -> Sequence[str]:
        return plan_launch(PROGRAM, n, mpiexec, self.situation, survive=survive).command

    def added(self, n: int | None = 2, mpiexec: str | None = None) -> Mapping[str, str]:
        """Return what the plan adds to the environment, without the numbers of threads."""
        everything = plan_launch(PROGRAM, n, mpiexec, self.situation).added_environment
        return {name: value for name, value in everything.items() if name not in VARIABLES}

    def threads(self, n: int, mpiexec: str | None = None) -> str | None:
        """Return how many threads of numerical libraries the plan allows each rank."""
        return plan_launch(PROGRAM, n, mpiexec, self.situation).added_environment.get("OMP_NUM_THREADS")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def mpich(machine: Machine) -> Machine:
    machine.file("venv/lib/libmpi.so", LINKER_SCRIPT)
    machine.file("venv/lib/libmpi.so.12", MPICH_LIB)
    machine.command("venv/bin/mpiexec", "mpich")
    return machine


@pytest.fixture
def openmpi(machine: Machine) -> Machine:
    machine.file("venv/lib/libmpi.so", LINKER_SCRIPT)
    machine.file("venv/lib/libmpi.so.40", OPENMPI_LIB)
    machine.command("venv/bin/mpiexec", "openmpi")
    return machine


# Which library


@pytest.mark.parametrize(
    ("name", "content", "family"),
    [
        ("libmpi.so.12", MPICH_LIB, Family.MPICH),
        ("libmpi.so.12", INTEL_LIB, Family.INTEL),
        ("libmpi.so.40", OPENMPI_LIB, Family.OPENMPI),
        ("libmpi.so", OPENMPI_LIB, Family.OPENMPI),
        ("libmpi.so", b"\x7fELF....MPI_Get_version....", Family.UNKNOWN),
    ],
)
def test_family_is_read_from_the_library(machine: Machine, name: str, content: bytes, family: Family) -> None:
    machine.file(f"venv/lib/{name}", content)
    library = find_library(machine.situation.paths, machine.environ)
    assert library is not None
    assert (library.family, library.path) == (family, str(machine.root / "venv/lib" / name))


def test_search_order_is_that_of_mpi4py(machine: Machine) -> None:
    machine.file("base/lib/libmpi.so.40", OPENMPI_LIB)
    library = find_library(machine.situation.paths, machine.environ)
    assert library is not None
    assert library.family is Family.OPENMPI
    machine.file("venv/lib/libmpi.so.12", MPICH_LIB)
    library = find_library(machine.situation.paths, machine.environ)
    assert library is not None
    assert library.family is Family.MPICH


def test_mpi4py_libmpi_comes_first(mpich: Machine) -> None:
    other = mpich.file("other/lib/libmpi.so.40", OPENMPI_LIB)
    for value in (str(other), str(other.parent), f"/nowhere{os.pathsep}{other}"):
        library = find_library(mpich.situation.paths, {"MPI4PY_LIBMPI": value})
        assert library is not None
        assert (library.family, library.source) == (Family.OPENMPI, "set by MPI4PY_LIBMPI")


@pytest.mark.parametrize("environ", [{"MPI4PY_LIBMPI": "libmpi.so.40"}, {"LD_PRELOAD": "/x/libmpi.so"}])
def test_what_only_the_loader_knows_is_not_guessed(mpich: Machine, environ: dict[str, str]) -> None:
    assert find_library(mpich.situation.paths, environ) is None


def test_source_build_of_mpi4py_is_asked(mpich: Machine) -> None:
    mpich.file("venv/mpi4py/MPI.cpython-311-x86_64-linux-gnu.so", b"")
    assert find_library(mpich.situation.paths, mpich.environ) is None
    python = mpich.situation.paths.python
    mpich.run = lambda command: (0, "a warning\npath: /opt/ompi/lib/libmpi.so.40\nversion: Open MPI v5.0.11\n")  # type: ignore[method-assign]
    library = mpi_library(mpich.situation.paths, mpich.environ, mpich.run)
    assert library == MpiLibrary(Family.OPENMPI, "/opt/ompi/lib/libmpi.so.40", "as mpi4py reports it")
    assert ask_library(python, mpich.run) == library


def test_no_library_names_the_cure(machine: Machine) -> None:
    with pytest.raises(UsageError, match="pip install mpich"):
        machine.plan()
    assert machine.asked[0][0] == machine.situation.paths.python


def test_no_mpi4py_names_the_cure(machine: Machine) -> None:
    machine.mpi4py = None
    with pytest.raises(UsageError, match="pip install mpi4py mpich"):
        machine.plan()
    assert machine.asked == []


# Which launcher


def test_wheel_is_started_by_its_own_launcher(mpich: Machine) -> None:
    mpich.command("path/mpiexec", "openmpi")
    expected = (str(mpich.root / "venv/bin/mpiexec"), "-n", "4", str(mpich.root / "venv/bin/python"), *PROGRAM)
    assert mpich.plan(4) == expected
    assert mpich.added(4) == {}


def test_library_of_the_base_installation_has_its_launcher_there(machine: Machine) -> None:
    machine.file("base/lib/libmpi.so.12", MPICH_LIB)
    launcher = machine.command("base/bin/mpiexec", "mpich")
    machine.command("venv/bin/mpiexec", "openmpi")
    assert machine.plan()[0] == launcher


def test_launcher_of_another_family_on_path_is_passed_over(mpich: Machine) -> None:
    (mpich.root / "venv/bin/mpiexec").unlink()
    mpich.command("path/mpiexec", "openmpi")
    mpich.command("path/mpirun", "intel")
    fitting = mpich.command("path/mpiexec.mpich", "mpich")
    assert mpich.plan()[0] == fitting


def test_launcher_that_does_not_say_is_the_last_choice(mpich: Machine) -> None:
    (mpich.root / "venv/bin/mpiexec").unlink()
    silent = mpich.command("path/mpiexec", "pals")
    assert mpich.plan()[0] == silent
    fitting = mpich.command("path/mpirun", "mpich")
    assert mpich.plan()[0] == fitting


def test_no_fitting_launcher_names_what_was_found(mpich: Machine) -> None:
    (mpich.root / "venv/bin/mpiexec").unlink()
    other = mpich.command("path/mpiexec", "openmpi")
    with pytest.raises(UsageError) as caught:
        mpich.plan()
    for part in ("MPICH", "libmpi.so.12", other, "Open MPI", "--mpiexec", "pip install"):
        assert part in str(caught.value)


def test_two_wheels_in_one_environment_are_named(mpich: Machine) -> None:
    mpich.file("venv/lib/libmpi.so.40", OPENMPI_LIB)
    mpich.command("venv/bin/mpiexec", "openmpi")
    with pytest.raises(UsageError, match="two MPIs: uninstall one"):
        mpich.plan()


def test_users_launcher_is_taken_with_its_flags(mpich: Machine) -> None:
    own = mpich.command("own/bin/mpiexec", "mpich")
    assert mpich.plan(3, f"{own} -hosts 'a,b'")[:5] == (own, "-hosts", "a,b", "-n", "3")
    silent = mpich.command("path/aprun", "pals")
    assert mpich.plan(3, "aprun")[:3] == (silent, "-n", "3")


@pytest.mark.parametrize(
    ("mpiexec", "reason"), [("nix", "no such command"), ("", "no such command"), ("'a", "cannot be split")]
)
def test_users_launcher_must_exist(mpich: Machine, mpiexec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        mpich.plan(2, mpiexec)


def test_users_launcher_must_fit(mpich: Machine) -> None:
    own = mpich.command("own/bin/mpiexec", "openmpi")
    with pytest.raises(UsageError, match="belongs to Open MPI, but mpi4py loads MPICH"):
        mpich.plan(2, own)


def test_default_is_one_rank_more_than_cores(mpich: Machine) -> None:
    mpich.cores = 6
    assert mpich.plan(None)[1:3] == ("-n", "7")


# Slurm


@pytest.fixture
def in_slurm() -> Callable[[Machine, str], str]:
    def enter(machine: Machine, plugins: str) -> str:
        machine.environ.update(SLURM_JOB_ID="77", SLURM_JOB_CPUS_PER_NODE="2(x2)")
        srun = machine.command("path/srun", "pals")
        machine.outputs[(srun, "--mpi=list")] = (0, f"MPI plugin types are...\n\tnone\n\t{plugins}\n")
        return srun

    return enter


def test_slurm_starts_mpich_by_pmi2(mpich: Machine, in_slurm: Callable[[Machine, str], str]) -> None:
    srun = in_slurm(mpich, "pmi2\n\tcray_shasta")
    assert mpich.plan(4)[:5] == (srun, "--mpi=pmi2", "--kill-on-bad-exit=1", "-n", "4")
    assert mpich.plan(5)[3] == "--overcommit"


@pytest.mark.parametrize(
    "listing", ["pmi2\n\tpmix\n\tpmix_v4", "pmi2\nspecific pmix plugin versions available: pmix_v4"]
)
def test_slurm_starts_open_mpi_by_pmix(openmpi: Machine, in_slurm: Callable[[Machine, str], str], listing: str) -> None:
    srun = in_slurm(openmpi, listing)
    assert openmpi.plan(4)[:2] == (srun, "--mpi=pmix")
    assert openmpi.added(4) == {}


def test_open_mpi_outlives_ranks_by_its_own_launcher(openmpi: Machine, in_slurm: Callable[[Machine, str], str]) -> None:
    """Slurm's PMIx ends the step with the first rank that dies, whatever srun is told."""
    in_slurm(openmpi, "pmi2\n\tpmix")
    assert openmpi.plan(4, survive=True)[0] == str(openmpi.root / "venv/bin/mpiexec")


def test_mpich_outlives_ranks_under_srun(mpich: Machine, in_slurm: Callable[[Machine, str], str]) -> None:
    """Slurm's PMI-2 leaves the step alone."""
    srun = in_slurm(mpich, "pmi2\n\tpmix")
    assert mpich.plan(4, survive=True)[:2] == (srun, "--mpi=pmi2")


def test_slurm_without_the_plugin_leaves_it_to_mpiexec(
    openmpi: Machine, in_slurm: Callable[[Machine, str], str]
) -> None:
    in_slurm(openmpi, "pmi2")
    assert openmpi.plan(4)[0] == str(openmpi.root / "venv/bin/mpiexec")
    assert "OMPI_MCA_btl" not in openmpi.added(4)


def test_inside_a_step_srun_shares_its_cpus(mpich: Machine, in_slurm: Callable[[Machine, str], str]) -> None:
    in_slurm(mpich, "pmi2")
    mpich.environ.update(SLURM_STEP_ID="3", SLURM_PROCID="0")
    assert "--overlap" in mpich.plan(2)
    mpich.environ["SLURM_STEP_ID"] = str(2**32 - 5)  # the batch script
    assert "--overlap" not in mpich.plan(2)


# Open MPI


def test_open_mpi_starts_fast_and_may_exceed_the_cores(openmpi: Machine) -> None:
    assert openmpi.added(2) == {
        "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "^ofi",
    }
    assert openmpi.added(3)["PRTE_MCA_hwloc_default_binding_policy"] == "none"


def test_open_mpi_as_root_is_allowed(openmpi: Machine) -> None:
    openmpi.is_root = True
    added = openmpi.added(2)
    assert (added["OMPI_ALLOW_RUN_AS_ROOT"], added["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"]) == ("1", "1")


def test_open_mpi_4_has_its_own_names(openmpi: Machine) -> None:
    openmpi.command("venv/bin/mpiexec", "openmpi4")
    assert openmpi.added(3) == {
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_hwloc_base_binding_policy": "none",
    }


def test_what_the_user_set_is_kept(openmpi: Machine) -> None:
    openmpi.environ["PRTE_MCA_rmaps_default_mapping_policy"] = "node"
    assert "PRTE_MCA_rmaps_default_mapping_policy" not in openmpi.added(2)


@pytest.mark.parametrize(
    "name", ["OMPI_MCA_pml", "OMPI_MCA_btl", "OMPI_MCA_mtl", "PBS_NODEFILE", "SLURM_JOB_ID", "LSB_HOSTS"]
)
def test_fast_start_needs_one_host_and_an_untuned_user(openmpi: Machine, name: str) -> None:
    openmpi.environ[name] = "x"
    assert not {"OMPI_MCA_pml", "OMPI_MCA_btl"} & set(openmpi.added(2))


def test_fast_start_yields_to_files_of_the_user_and_to_flags(openmpi: Machine) -> None:
    launcher = str(openmpi.root / "venv/bin/mpiexec")
    assert "OMPI_MCA_btl" in openmpi.added(2, launcher)
    assert "OMPI_MCA_btl" not in openmpi.added(2, f"{launcher} --host a,b")
    openmpi.file("venv/etc/prte-default-hostfile", b"# comment\n")
    assert "OMPI_MCA_btl" in openmpi.added(2)
    openmpi.file("venv/etc/prte-default-hostfile", b"# comment\nnode1 slots=2\n")
    assert "OMPI_MCA_btl" not in openmpi.added(2)
    (openmpi.root / "venv/etc/prte-default-hostfile").unlink()
    openmpi.file("home/.openmpi/mca-params.conf", b"btl = tcp,self\n")
    assert "OMPI_MCA_btl" not in openmpi.added(2)


# Threads of numerical libraries


def test_ranks_share_the_cores_of_one_host(mpich: Machine) -> None:
    """Each worker may use its share of the cores; rank 0 mostly waits."""
    mpich.cores = 8
    assert [mpich.threads(n) for n in (1, 2, 3, 5, 9, 50)] == ["8", "8", "4", "2", "1", "1"]
    mpich.environ["MKL_NUM_THREADS"] = "3"
    assert mpich.threads(5) is None


def test_ranks_of_several_hosts_are_left_alone(mpich: Machine) -> None:
    """Where it is not known who shares a host with whom, nothing is said at launch."""
    assert mpich.threads(5) is not None
    assert mpich.threads(5, f"{mpich.root / 'venv/bin/mpiexec'} -hosts a,b") is None
    mpich.environ["PBS_NODEFILE"] = "x"
    assert mpich.threads(5) is None


# Showing, and the launcher that is already there


def test_open_mpi_passes_our_variables_on_to_other_hosts(openmpi: Machine) -> None:
    """It does so for variables that are named; on one host nothing has to be said."""
    openmpi.environ |= {"TASKFARM_HEARTBEAT_S": "5"}
    plan = plan_launch(PROGRAM, 2, None, openmpi.situation, survive=True)
    assert plan.one_host
    assert "-x" not in plan.command
    mpiexec = f"{openmpi.root / 'venv/bin/mpiexec'} --host a,b"
    plan = plan_launch(PROGRAM, 2, mpiexec, openmpi.situation, survive=True)
    assert not plan.one_host
    assert tuple(plan.command[1:7]) == ("--host", "a,b", "-x", "TASKFARM_HEARTBEAT_S", "-x", "TASKFARM_WATCHDOG")


def test_shell_line_can_be_pasted(openmpi: Machine) -> None:
    openmpi.environ["OMP_NUM_THREADS"] = "1"
    line = plan_launch(["a b.py"], 2, None, openmpi.situation).shell_line()
    assert line.startswith("env 'OMPI_MCA_btl=^ofi' OMPI_MCA_pml=ob1 ")
    assert line.endswith("'a b.py'")


@pytest.mark.parametrize(
    ("family", "environ", "wrong"),
    [
        (Family.MPICH, {"PMI_SIZE": "4"}, False),
        (Family.MPICH, {"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"}, True),
        (Family.OPENMPI, {"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"}, False),
        (Family.OPENMPI, {"PMI_SIZE": "4"}, True),
        (Family.OPENMPI, {"PMI_SIZE": "1"}, False),
        (Family.OPENMPI, {"PMI_SIZE": "4", "SLURM_STEP_ID": "0"}, False),
        (Family.UNKNOWN, {"PMI_SIZE": "4"}, False),
        (Family.MPICH, {}, False),
    ],
)
def test_wrong_launcher_is_seen_before_mpi_starts(family: Family, environ: dict[str, str], wrong: bool) -> None:
    text = wrong_launcher(environ, MpiLibrary(family, "/x/libmpi.so", "test"))
    assert (text is not None) is wrong
    if text is not None:
        assert "taskfarm run -n 4" in text
