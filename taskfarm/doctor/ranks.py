"""Checks of what the ranks of a real job reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskfarm.doctor.findings import Finding, Level
from taskfarm.units import format_bytes, format_seconds

__all__ = ["check_clocks", "check_links", "check_thread_level", "check_versions"]

Report = Mapping[str, Any]  # a `taskfarm.transport.inspection.RankReport` as JSON

MAX_CLOCK_S = 1.0  # NTP keeps hosts within milliseconds; more than this confuses time stamps and make
# What is usual, with room for busy machines: 1 us and 5 GB/s on one host; 2 us and 10 GB/s over InfiniBand, 30 us and
# 0.1 GB/s over Gigabit Ethernet between hosts.
MAX_LATENCY_S = {"one host": 500e-6, "fabric": 20e-6, "network": 500e-6}
MIN_BYTES_PER_S = {"one host": 0.3e9, "fabric": 1e9, "network": 0.05e9}


def check_versions(reports: Sequence[Report]) -> Finding:
    """Compare Python and packages of all ranks with those of rank 0."""
    check = "versions"
    mine = reports[0]
    for report in reports:
        if _minor(report["python"]) != _minor(mine["python"]):
            return Finding(
                Level.ERROR,
                check,
                f"rank {report['rank']} on {report['host']} runs Python {report['python']} ({report['executable']}), "
                f"rank 0 {mine['python']}: functions that travel by value do not run there",
                "install the same environment on all hosts, or put it on a shared file system",
            )
    for report in reports:
        different = {name: version for name, version in report["packages"].items() if mine["packages"][name] != version}
        if different or report["python"] != mine["python"]:
            found = {"Python": report["python"]} if report["python"] != mine["python"] else {}
            text = ", ".join(f"{name} {version}" for name, version in (found | different).items())
            return Finding(
                Level.WARNING,
                check,
                f"rank {report['rank']} on {report['host']} has {text}; rank 0 has others",
                "install the same packages on all hosts, or put the environment on a shared file system",
            )
    packages = ", ".join(f"{name} {version}" for name, version in mine["packages"].items())
    n_hosts = len({report["host"] for report in reports})
    return Finding(Level.OK, check, f"Python {mine['python']}, {packages} on {n_hosts} host{'s' * (n_hosts > 1)}")


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def check_thread_level(reports: Sequence[Report]) -> Finding:
    """Look at what MPI allows threads to do."""
    levels = Counter(report["thread_level"] for report in reports)
    text = "MPI grants MPI_THREAD_" + ", ".join(levels)
    if set(levels) & {"SINGLE", "FUNNELED"}:
        return Finding(
            Level.WARNING,
            "thread level",
            f"{text}: executors need SERIALIZED, and stuck calls end by os._exit instead of MPI_Abort",
            "use an MPI that was built with thread support, and leave mpi4py.rc.thread_level alone",
        )
    return Finding(Level.OK, "thread level", text)


def check_clocks(reports: Sequence[Report]) -> Finding:
    """Compare the hosts' time of day."""
    offsets = {report["host"]: report["link"]["clock_offset_s"] for report in reports if report["link"]}
    for host, offset in offsets.items():
        if abs(offset) > MAX_CLOCK_S:
            return Finding(
                Level.WARNING,
                "clocks",
                f"the clock of {host} is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} that of "
                f"{reports[0]['host']}; time stamps of files and logs do not compare (traces are aligned)",
                "have NTP or chrony run on all hosts",
            )
    if len({report["host"] for report in reports}) == 1:
        return Finding(Level.OK, "clocks", "one host, one clock")
    largest = max((abs(offset) for offset in offsets.values()), default=0.0)
    return Finding(Level.OK, "clocks", f"hosts differ by less than {max(1.0, 2.0 * largest * 1e3):.0f} ms")


def check_links(reports: Sequence[Report]) -> Iterator[Finding]:
    """Compare latency and bandwidth with what is usual."""
    mine = reports[0]["host"]
    for report in reports:
        link, host = report["link"], report["host"]
        if not link:
            continue
        kind = "one host" if host == mine else "fabric" if report["fabrics"] and reports[0]["fabrics"] else "network"
        text = (
            f"rank 0 to rank {report['rank']} on {host}: {format_seconds(link['latency_s'])}, "
            f"{format_bytes(link['bytes_per_s'])}/s"
        )
        if link["latency_s"] <= MAX_LATENCY_S[kind] and link["bytes_per_s"] >= MIN_BYTES_PER_S[kind]:
            yield Finding(Level.OK, "network", text)
            continue
        fixes = {
            "one host": "look for other work on this host, and at the binding of ranks to cores",
            "fabric": f"the hosts have {', '.join(report['fabrics'])}, but MPI seems to use TCP: take the MPI of this "
            "cluster instead of a wheel (docs/hpc.md)",
            "network": "look for other traffic, and for an interface that should not be used (FI_TCP_IFACE, "
            "OMPI_MCA_btl_tcp_if_include)",
        }
        usual = (
            f"usual are below {format_seconds(MAX_LATENCY_S[kind])} and above {format_bytes(MIN_BYTES_PER_S[kind])}/s"
        )
        yield Finding(Level.WARNING, "network", f"{text}; {usual}", fixes[kind])
