"""The results as a table of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness import OURS, RAW

__all__ = ["print_table"]

_MARK = {True: "yes", False: "NO", None: "-"}
_NOT_CONTENDERS = ("unit", "n_ranks", "ratio", "best", "spread", "samples", "target", "met")
_TO_THE_LEFT = (0, 1, 7, 8)


def print_table(found: Mapping[str, Any]) -> None:
    """Print the results as the JSON file holds them."""
    environment = found["environment"]
    if environment:
        print(", ".join(f"{name} {value}" for name, value in environment.items()))
    head = ["row/ranks", "unit", OURS, RAW, "ours/raw", "(min..max)", "best", "peers", "target", "met"]
    lines = [head, *(_cells(name, row) for name, row in found["rows"].items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = [
            cell.ljust(width) if column in _TO_THE_LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    ratio, spread = row["ratio"], row["spread"]
    between = spread[f"ratio {RAW}" if RAW in ratio else OURS]
    peers = [
        f"{peer} {_number(row[peer])} (ours/{peer} {_number(ratio[peer])})"
        for peer in row
        if peer not in (*_NOT_CONTENDERS, OURS, RAW)
    ]
    return [
        name,
        row["unit"],
        _number(row[OURS]),
        _number(row[RAW]) if RAW in row else "",
        _number(ratio[RAW]) if RAW in ratio else "",
        f"({_number(between[0])}..{_number(between[1])})",
        _number(row["best"][RAW]) if RAW in ratio else "",
        ", ".join(peers),
        row["target"] or "",
        _MARK[row["met"]],
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
