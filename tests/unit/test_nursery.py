"""The fork server: children that come, end and are killed; who dies with whom. In processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

BEGIN = """
import os, select, signal, socket, sys, time
from taskfarm.runtime.isolation.nursery import Nursery, check_possible
from taskfarm.errors import UsageError, WorkerLostError

def main(sock, page):
    word = sock.recv(100)
    if word == b"exit":
        os._exit(3)
    if word == b"page":
        page.begin(7); page.mark(5, 1.25)
        sock.send(repr(page.content()).encode())
        sock.recv(1)
    if word == b"family":
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        sock.send(f"{os.getpid()} {pid}".encode())
        time.sleep(1000)

def ended(nursery, limit_s=20):
    deadline = time.monotonic() + limit_s
    while (found := nursery.next_ended()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found

def gone(*pids, limit_s=20):
    deadline = time.monotonic() + limit_s
    def lives(pid):
        try:
            return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False
    while any(map(lives, pids)):
        assert time.monotonic() < deadline, pids
        time.sleep(0.005)
"""


def run(body: str) -> None:
    program = textwrap.dedent(BEGIN) + textwrap.dedent(body)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_children_end_and_are_reported() -> None:
    """The rank learns how each child ended, and sees what it noted even after its death."""
    run("""
    nursery = Nursery(main)
    first, second = nursery.new_child({"a": 1}), nursery.new_child(None)
    first.sock.send(b"page")
    assert first.sock.recv(100) == b"{'a': 1}"
    second.sock.send(b"exit")
    assert ended(nursery) == (second.number, 3 << 8)
    nursery.send_signal(first.number, signal.SIGKILL)
    assert ended(nursery) == (first.number, 9)
    assert first.page.read() == (7, 5, 1.25)
    nursery.send_signal(first.number, signal.SIGKILL)
    assert nursery.next_ended() is None
    nursery.close()
    gone(nursery.pid)
    """)


def test_what_a_task_started_dies_with_the_child() -> None:
    """A child that is killed takes its own children along; the end of the server takes all."""
    run("""
    nursery = Nursery(main)
    families = []
    for _ in range(2):
        child = nursery.new_child(None)
        child.sock.send(b"family")
        families.append((child, list(map(int, child.sock.recv(100).split()))))
    nursery.send_signal(families[0][0].number, signal.SIGKILL)
    assert ended(nursery)[0] == families[0][0].number
    gone(*families[0][1])
    nursery.close()
    gone(nursery.pid, *families[1][1])
    """)


def test_who_dies_with_whom() -> None:
    """When the rank is killed nothing of it stays; when the server is killed, the rank learns it."""
    run("""
    pids = socket.socketpair()
    rank = os.fork()
    if rank == 0:
        nursery = Nursery(main)
        child = nursery.new_child(None)
        child.sock.send(b"family")
        pids[1].send(f"{nursery.pid} ".encode() + child.sock.recv(100))
        time.sleep(1000)
    found = list(map(int, pids[0].recv(100).split()))
    os.kill(rank, signal.SIGKILL)
    os.waitpid(rank, 0)
    gone(*found)

    nursery = Nursery(main)
    child = nursery.new_child(None)
    child.sock.send(b"page")
    child.sock.recv(100)
    os.kill(nursery.pid, signal.SIGKILL)
    assert child.sock.recv(100) == b""
    for attempt in (nursery.next_ended, lambda: nursery.new_child(None)):
        try:
            attempt()
        except WorkerLostError:
            continue
        raise SystemExit("not noticed")
    """)


def test_when_it_is_too_late() -> None:
    """A process with other threads, or with MPI, does not fork; the message names the cure."""
    run("""
    import threading, types
    thread = threading.Thread(target=time.sleep, args=(5,), name="busy", daemon=True)
    thread.start()
    try:
        check_possible()
    except UsageError as exc:
        assert "busy" in str(exc) and "--isolate" in str(exc)
    else:
        raise SystemExit("threads")
    sys.modules["mpi4py.MPI"] = types.ModuleType("mpi4py.MPI")
    try:
        Nursery(main)
    except UsageError as exc:
        assert "mpi4py.MPI has been imported" in str(exc) and "--isolate" in str(exc)
    else:
        raise SystemExit("MPI")
    """)
