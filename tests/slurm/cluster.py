"""A throw-away Slurm cluster on one machine: as many hosts as one likes, each with a slurmd of its own.

``python tests/slurm/cluster.py up 3`` starts one, ``... exec control sinfo`` runs a command on a host of it, ``...
down`` ends it. Nothing of the machine's own configuration is read or changed: munge's key, Slurm's configuration and
state lie in one folder, which `down` removes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hosts"))

from hosts import Hosts, missing_tools

__all__ = ["CONTROL", "Cluster", "missing"]

CONTROL = "control"  # the host of slurmctld, from which jobs are submitted
_CPUS = 4  # of each host, as Slurm counts them; the machine may have fewer
_READY_S = 30.0
_END_S = 5.0
_COMMANDS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "munged")

# Times are short: a host counts as lost after some seconds, and a job that goes back into the queue starts soon instead
# of after two minutes (cred_expire).
_CONFIGURATION = """\
ClusterName=throwaway
SlurmctldHost={control}({address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000,bf_interval=1
JobRequeue=1
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=8
MessageTimeout=5
TCPTimeout=2
KillWait=2
UnkillableStepTimeout=20
NodeName={nodes} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return what a cluster needs and this machine does not have."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return missing_tools() + [name for name in _COMMANDS if shutil.which(name, path=path) is None]


class Cluster:
    """Slurm on some hosts.

    Parameters
    ----------
    folder : Path
        For all that belongs to it; only root may write there, else munge refuses it.
    n_nodes : int
        Hosts that run jobs: n1, n2, ...
    """

    def __init__(self, folder: Path, n_nodes: int) -> None:
        self.folder = folder
        self.nodes = [f"n{number}" for number in range(1, n_nodes + 1)]
        self.hosts = Hosts(folder / "hosts", [*self.nodes, CONTROL])
        self._environ = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

    def up(self) -> None:
        """Start hosts and daemons; returns when all hosts are idle."""
        (self.folder / "state").mkdir(parents=True)
        self.folder.chmod(0o755)  # munge's socket must be within reach of everybody
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        # Files are shared by the hosts, /tmp too; shared memory is not.
        (self.folder / "mpi.conf").write_text("PMIxCliTmpDirBase=/dev/shm\n")
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                control=CONTROL,
                address=self.hosts.address(CONTROL),
                folder=self.folder,
                nodes=f"n[1-{len(self.nodes)}]",
                cpus=_CPUS,
            )
        )
        self.hosts.up()
        self._daemon(
            CONTROL, "munged", f"--key-file={key}", f"--socket={self.folder}/munge.socket", "--num-threads=2",
            *(f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")),
        )  # fmt: skip
        self._daemon(CONTROL, "slurmctld")
        for name in self.nodes:
            self._daemon(name, "slurmd")
        self.wait_idle(self.nodes)

    def _daemon(self, host: str, *words: str) -> None:
        done = self.run(*words, host=host)
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]} does not start: {done.stdout}")

    def wait_idle(self, nodes: list[str]) -> None:
        """Wait until Slurm counts these hosts as usable."""
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            done = self.run("sinfo", "-h", "-N", "-o", "%N %T")
            states = dict(line.split() for line in done.stdout.splitlines()) if done.returncode == 0 else {}
            if all(states.get(name) == "idle" for name in nodes):
                return
            time.sleep(0.2)
        raise RuntimeError(f"the hosts are not ready: {done.stdout}")

    def command(self, *words: str, host: str = CONTROL) -> list[str]:
        """Return the command that runs `words` on a host; it needs `environ`."""
        return self.hosts.command(host, *words)

    @property
    def environ(self) -> Mapping[str, str]:
        """What commands of this cluster need in their environment."""
        return self._environ

    def run(
        self, *words: str, host: str = CONTROL, timeout_s: float = 60.0, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host; both of its streams are in ``stdout``."""
        return subprocess.run(
            self.command(*words, host=host), env={**self._environ, **(environ or {})}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def is_up(self, node: str) -> bool:
        """Tell whether a host has power."""
        return self.hosts.is_up(node)

    def kill(self, node: str) -> None:
        """Cut the power of a host."""
        self.hosts.kill(node)

    def start_again(self, node: str) -> None:
        """Switch a host on again."""
        self.hosts.start(node)
        self._daemon(node, "slurmd")
        self.wait_idle([node])

    def down(self) -> None:
        """End everything, and remove the folder."""
        self.hosts.down()
        shutil.rmtree(self.folder, ignore_errors=True)


def main(words: list[str]) -> int:
    """Start a cluster, use it, end it."""
    folder = Path(os.environ.get("TASKFARM_TEST_CLUSTER", "/run/taskfarm-slurm"))
    match words:
        case ["check"]:
            lacking = missing()
            if lacking:
                print(f"Slurm cannot be tested here; missing: {', '.join(lacking)}.")
                print("Debian, Ubuntu, as root: apt install slurm-wlm munge libpmix-dev iproute2 util-linux")
            return bool(lacking)
        case ["up", n]:
            if main(["check"]):
                return 1
            Cluster(folder, int(n)).up()
            print(f"{n} hosts are ready: {sys.executable} {__file__} exec {CONTROL} sinfo")
        case ["exec" | "kill" as what, host, *rest]:
            n_nodes = sum(path.stem != "switch" for path in (folder / "hosts").glob("*.log")) - 1
            cluster = Cluster(folder, n_nodes)
            if what == "kill":
                cluster.kill(host)
                return 0
            os.execvpe("nsenter", cluster.command(*rest, host=host), dict(cluster.environ))
        case ["down"]:
            Cluster(folder, 1).down()
        case _:
            print(f"usage: {__file__} check | up N | exec HOST COMMAND... | kill HOST | down")
            return 2
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
