"""Recorded results as tables for a page: ``python benchmarks/markdown.py results/mpich.json results/openmpi.json``.

A column per file. Ratios are ours / other with the smallest and largest round in brackets; what misses its target is
bold. The second table says how many times faster ours is than each peer, per file, divided by strokes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskfarm.bench.measure import OURS, PEERS
from taskfarm.bench.table import faster_than, reference
from taskfarm.units import format_number

__all__: list[str] = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="written by taskfarm bench --json")
    results = [json.loads(path.read_text()) for path in parser.parse_args().files]
    titles = [result["environment"]["mpi"] for result in results]
    rows = [result["rows"] for result in results]
    names = list(dict.fromkeys(name for part in rows for name in part))
    _print(["row / ranks", "against", "target", *titles], [_line(name, rows) for name in names])
    print()
    peers = [peer for peer in PEERS if any(peer in row["ratio"] for part in rows for row in part.values())]
    lines = [[name, *(_faster(name, peer, rows) for peer in peers)] for name in names]
    _print(["times faster than", *peers], [line for line in lines if any(line[1:])])


def _print(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    for cells in (head, ["---"] * len(head), *lines):
        print(f"| {' | '.join(cells)} |")


def _line(name: str, results: Sequence[dict[str, Any]]) -> list[str]:
    row = next(rows[name] for rows in results if name in rows)
    cells = [_cell(rows[name]) if name in rows else "" for rows in results]
    return [f"`{name}`", _other(row), row["target"] or "", *cells]


def _other(row: dict[str, Any]) -> str:
    """Return what ours is compared with; empty where the target is for ours itself."""
    return reference(row) if row["against"] != "" else ""


def _cell(row: dict[str, Any]) -> str:
    other = _other(row)
    value = row["ratio"][other] if other else row[OURS]
    low, high = row["spread"][f"ratio {other}" if other else OURS]
    unit = "" if other else f" {row['unit']}"
    text = f"{format_number(value)}{unit}"
    text = f"**{text}**" if row["met"] is False else text
    return f"{text} ({format_number(low)}..{format_number(high)})"


def _faster(name: str, peer: str, results: Sequence[dict[str, Any]]) -> str:
    found = [rows[name] for rows in results if name in rows and peer in rows[name]["ratio"]]
    return " / ".join(format_number(faster_than(row, peer)) for row in found)


if __name__ == "__main__":
    main()
