"""The results as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskfarm.bench.measure import OURS, PEERS, RAW
from taskfarm.units import format_number

__all__ = ["faster_than", "format_tables", "reference"]

BUSY = 0.1  # of the cores: more than what a desktop does beside
_MARK = {True: "yes", False: "NO", None: "-"}
_NOT_SHOWN = ("cpus", "peers")  # of the environment


def format_tables(found: Mapping[str, Any]) -> str:
    """Return what the JSON file holds as text: where it was measured, ours against raw and targets, and the peers."""
    rows = found["rows"]
    parts = [_environment(found["environment"])]
    busy = found["environment"].get("busy_before", 0.0)
    if busy > BUSY:
        parts.append(
            f"Other jobs kept {busy:.0%} of the cores busy before the run: figures scatter, and rows that wait suffer "
            "most. Repeat it on an idle machine."
        )
    if rows:
        parts.append(_own_table(rows))
    if any(peer in row["ratio"] for row in rows.values() for peer in PEERS):
        parts.append(
            "How many times faster than ... (below 1: slower); its own figure in brackets:\n" + _peer_table(rows)
        )
    left_out = _left_out(rows)
    parts += ["\n".join(left_out)] if left_out else []
    met = [row["met"] for row in rows.values() if row["met"] is not None]
    parts += [f"Targets met: {sum(met)} of {len(met)}"] if met else []
    return "\n\n".join(parts)


def faster_than(row: Mapping[str, Any], other: str) -> float:
    """Return how many times faster ours is than a contender."""
    ratio: float = row["ratio"][other]
    return ratio if row["more_is_better"] else 1.0 / ratio


def reference(row: Mapping[str, Any]) -> str:
    """Return the contender that ours is compared with in the first place; empty if there is none."""
    for name in (row["against"], RAW, *row["ratio"]):
        if name in row["ratio"]:
            return str(name)
    return ""


def _environment(environment: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in environment.items() if name not in _NOT_SHOWN)


def _own_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["row/ranks", "unit", OURS, "other", "", "ours/other", "(min..max)", "best", "target", "met"]
    return _align([head, *(_own_cells(name, row) for name, row in rows.items())], left=(0, 1, 4, 8, 9))


def _own_cells(name: str, row: Mapping[str, Any]) -> list[str]:
    other = reference(row)
    low, high = row["spread"][f"ratio {other}" if other else OURS]
    return [
        name,
        row["unit"],
        format_number(row[OURS]),
        format_number(row[other]) if other else "",
        other,
        format_number(row["ratio"][other]) if other else "",
        f"({format_number(low)}..{format_number(high)})",
        format_number(row["best"][other]) if other else "",
        row["target"] or "",
        _MARK[row["met"]],
    ]


def _peer_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a column for raw MPI and for each peer."""
    shown = {name: row for name, row in rows.items() if any(peer in row["ratio"] for peer in PEERS)}
    others = [other for other in (RAW, *PEERS) if any(other in row["ratio"] for row in shown.values())]
    lines = [["row/ranks", "unit", OURS, *others]]
    for name, row in shown.items():
        cells = [
            f"{format_number(faster_than(row, o))} ({format_number(row[o])})" if o in row["ratio"] else ""
            for o in others
        ]
        lines.append([name, row["unit"], format_number(row[OURS]), *cells])
    return _align(lines, left=(0, 1))


def _left_out(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line per contender and reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, row in rows.items():
        for left_out in row["left_out"].items():
            names.setdefault(left_out, []).append(name)
    return [f"Left out of {', '.join(rows)}: {peer}, {reason}" for (peer, reason), rows in names.items()]


def _align(lines: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Return the cells in columns; those numbered in `left` begin at their left edge, the others end at the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
