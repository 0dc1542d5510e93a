"""Hosts that are none: network namespaces of this machine, each with an address, a name and a /dev/shm of its own.

A bridge in a namespace of its own joins them; nothing is added to the machine's own network. Needs root, and the
commands ``ip`` (iproute2), ``unshare`` and ``nsenter`` (util-linux). `ssh_like.py` plays ssh for the launchers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Hosts", "what_is_missing"]

_SWITCH = "ip link set lo up && ip link add bridge0 type bridge && ip link set bridge0 up"
_HOST = (
    "hostname {name} && mount -t tmpfs tmpfs /dev/shm && mount --bind {table} /etc/hosts && ip link set lo up"
)  # fmt: skip
_STAY = " && echo ready && exec sleep infinity"


def what_is_missing() -> str:
    """Return what these hosts need and do not have here, or an empty string."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "root"
    commands = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if commands:
        return f"the command {commands[0]}"
    tried = subprocess.run(["unshare", "-n", "-u", "-m", "-i", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"the right to make namespaces ({tried.stderr.decode().strip()})"


class Hosts:
    """Some hosts; a context manager, which takes them down.

    Parameters
    ----------
    folder : Path
        For the table of names and for what `ssh_like.py` needs to know.
    n : int
        How many.

    Attributes
    ----------
    names : list of str
        host1, host2, ...
    """

    def __init__(self, folder: Path, n: int) -> None:
        self.folder = folder
        self.names = [f"host{number}" for number in range(1, n + 1)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._n = n

    def __enter__(self) -> Hosts:
        """Make them."""
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        """Take them down, with all that runs there."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait()

    def _make(self) -> None:
        table = self.folder / "table"
        lines = [f"10.77.0.{number} {name}" for number, name in enumerate(self.names, 1)]
        table.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        switch = self._start(["unshare", "-n"], _SWITCH)
        for number, name in enumerate(self.names, 1):
            setting = _HOST.format(name=name, table=table)
            pid = self._start(["unshare", "-n", "-u", "-m", "-i", "--propagation", "private"], setting)
            (self.folder / f"{name}.pid").write_text(str(pid))
            link = ["ip", "link", "add", f"to{number}", "type", "veth", "peer", "name", "eth0"]
            self._in_network(switch, [*link, "netns", f"/proc/{pid}/ns/net"])
            self._in_network(switch, ["ip", "link", "set", f"to{number}", "master", "bridge0", "up"])
            self._in_network(pid, ["ip", "addr", "add", f"10.77.0.{number}/24", "dev", "eth0"])
            self._in_network(pid, ["ip", "link", "set", "eth0", "up"])

    def _start(self, namespaces: Sequence[str], script: str) -> int:
        process = subprocess.Popen(
            [*namespaces, "sh", "-c", script + _STAY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        self._processes.append(process)
        assert process.stdout is not None
        with process.stdout as said:
            is_ready = said.readline() == b"ready\n"
        if not is_ready:
            raise RuntimeError(f"cannot make a host: {script}")
        return process.pid

    @staticmethod
    def _in_network(pid: int, command: Sequence[str]) -> None:
        subprocess.run(["nsenter", "-t", str(pid), "-n", *command], check=True)

    def pid_of(self, name: str) -> int:
        """Return the process whose namespaces are the host."""
        return int((self.folder / f"{name}.pid").read_text())

    def on(self, name: str, command: Sequence[str]) -> list[str]:
        """Return the command that runs `command` on a host."""
        return ["nsenter", "-t", str(self.pid_of(name)), "-n", "-u", "-m", "-i", f"--wd={os.getcwd()}", "--", *command]

    def pull(self, name: str) -> None:
        """Pull the network cable of a host: nobody is told, no connection is closed, its processes go on."""
        (self.folder / f"{name}.pulled").touch()
        self._in_network(self.pid_of(name), ["ip", "link", "set", "eth0", "down"])

    def processes(self, *names: str) -> dict[int, str]:
        """Return what runs on these hosts, by default on all, as ``{pid: command line}``."""
        keepers = {self.pid_of(name) for name in names or self.names if (self.folder / f"{name}.pid").exists()}
        spaces = {os.readlink(f"/proc/{pid}/ns/uts") for pid in keepers if Path(f"/proc/{pid}").exists()}
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in keepers:
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns" / "uts") in spaces:
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(entry.name)] = command.strip()
        return found
