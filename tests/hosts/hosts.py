"""Make hosts out of one machine: each has network, name, processes and shared memory of its own; files are shared.

A host is a set of Linux namespaces that a first process keeps alive; when it is killed, the kernel kills all others of
the host. The hosts are joined by a switch that lives in a namespace as well, so nothing is added to the network of the
machine. It takes root, `unshare` and `nsenter` (util-linux) and `ip` (iproute2). `ssh_like.py` plays ssh for launchers.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Hosts", "missing_tools"]

_NET = "10.77.0"
_TOOLS = ("unshare", "nsenter", "ip")
_READY_S = 10.0
# The first process of a host takes in those whose parents have ended.
_INIT = "sleep infinity & wait"


def missing_tools() -> list[str]:
    """Return what hosts need and this machine does not have."""
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    if os.geteuid() != 0:
        return [*missing, "root"]
    if not missing and subprocess.run(["unshare", "-n", "-u", "-m", "-i", "true"], check=False).returncode != 0:
        return ["the right to make namespaces"]
    return missing


class Hosts:
    """Some hosts, and the switch between them.

    Parameters
    ----------
    folder : Path
        Where their process ids and ``/etc/hosts`` are kept; new, or that of hosts that are there already.
    names : sequence of str
        Of the hosts; the first one has the address 10.77.0.1.
    own_processes : bool
        Whether a host sees its own processes only. If not, `ssh_like.py` can reach the others from it.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, own_processes: bool = True) -> None:
        self._spaces = ["-n", "-u", "-m", "-i", *(["-p"] if own_processes else [])]
        self.folder = folder
        self.names = list(names)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # those that this object has started

    def up(self) -> None:
        """Start them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{self.address(name)} {name}" for name in self.names)]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        self._start("switch", ["-n", "-p"], "ip link set lo up && ip link add br0 type bridge && ip link set br0 up")
        for name in self.names:
            self.start(name)

    def start(self, name: str) -> None:
        """Start one host, which may have been killed before."""
        commands = [
            f"hostname {name}",
            "mount -t tmpfs tmpfs /dev/shm",
            f"mount --bind {self.folder / 'hosts'} /etc/hosts",
            "ip link set lo up",
        ]
        proc = ["--mount-proc"] if "-p" in self._spaces else []
        flags = [*self._spaces, *proc, "--propagation", "private"]
        self._start(name, flags, " && ".join(commands))
        host, switch = self._pid(name), self._pid("switch")
        plug = f"to-{name}"
        # The hardware address stays the same over a restart, as the other hosts expect.
        card = ["name", "eth0", "address", f"02:00:00:00:00:{self.names.index(name) + 1:02x}", "netns", str(host)]
        _call(*_inside(switch, "-n"), "ip", "link", "add", plug, "type", "veth", "peer", *card)
        _call(*_inside(switch, "-n"), "ip", "link", "set", plug, "master", "br0", "up")
        _call(*_inside(host, "-n"), "ip", "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        _call(*_inside(host, "-n"), "ip", "link", "set", "eth0", "up")

    def _start(self, name: str, flags: Sequence[str], commands: str) -> None:
        ready = self.folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        script = f"{commands} && touch {ready} && {{ {_INIT}; }}"
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                ["unshare", *flags, "--fork", "--kill-child", "bash", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip
        deadline = time.monotonic() + _READY_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"host {name} does not start: {(self.folder / f'{name}.log').read_text()}")
            time.sleep(0.01)
        self._processes[name] = process
        first = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        (self.folder / f"{name}.pid").write_text(f"{process.pid} {first}")

    def address(self, name: str) -> str:
        """Return the address of a host."""
        return f"{_NET}.{self.names.index(name) + 1}"

    def command(self, name: str, *words: str) -> list[str]:
        """Return the command that runs `words` on the host `name`, in this process's working directory."""
        return [*_inside(self._pid(name), *self._spaces), f"--wd={os.getcwd()}", "--", *words]

    def is_up(self, name: str) -> bool:
        """Tell whether a host was started, and not killed since."""
        return (self.folder / f"{name}.pid").exists()

    def kill(self, name: str) -> None:
        """Cut the power: the network is silent at once, then all processes are gone."""
        _call(*_inside(self._pid("switch"), "-n"), "ip", "link", "delete", f"to-{name}")
        self._kill(name)

    def pull(self, name: str) -> None:
        """Pull the network cable: nobody is told, no connection is closed, the processes go on."""
        (self.folder / f"{name}.pulled").touch()  # for `ssh_like.py`
        _call(*_inside(self._pid(name), "-n"), "ip", "link", "set", "eth0", "down")

    def processes(self, *names: str) -> dict[int, str]:
        """Return what runs on these hosts, as ``{pid: command line}``."""
        keepers = {int(pid) for name in names for pid in (self.folder / f"{name}.pid").read_text().split()}
        found = {pid: command for name in names for pid, command in self._all_on(name).items()}
        return {pid: command for pid, command in found.items() if pid not in keepers and command != "sleep infinity"}

    def _all_on(self, name: str) -> dict[int, str]:
        space = os.readlink(f"/proc/{self._pid(name)}/ns/uts")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(entry / "ns" / "uts") == space:
                        command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                        found[int(entry.name)] = command.strip()
        return found

    def _kill(self, name: str) -> None:
        path = self.folder / f"{name}.pid"
        with contextlib.suppress(OSError):
            outer, first = map(int, path.read_text().split())
            others = () if "-p" in self._spaces or name not in self.names else self._all_on(name)
            path.unlink()
            for pid in (*others, first, outer):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if name in self._processes:
                self._processes.pop(name).wait()

    def down(self) -> None:
        """End everything."""
        for path in self.folder.glob("*.pid"):
            self._kill(path.stem)

    def _pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text().split()[1])


def _inside(pid: int, *namespaces: str) -> list[str]:
    return ["nsenter", "-t", str(pid), *namespaces]


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
