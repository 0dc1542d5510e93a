"""The results as a picture: ours against raw MPI, against the peers, against limits of its own, and how it scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskfarm.bench.measure import OURS, PEERS, RAW
from taskfarm.bench.table import faster_than, reference
from taskfarm.units import format_number

__all__ = ["Bar", "limit_bars", "peer_bars", "raw_bars", "save_plot", "scaling_curves"]

_SCALING = "scaling_"  # rows that are drawn as curves
_MET = "#2a7f62"
_MISSED = "#c44536"
_NO_TARGET = "#8d99ae"
_COLOURS = {True: _MET, False: _MISSED, None: _NO_TARGET}
_PEER_COLOURS = dict(zip(PEERS, ("#1d4e89", "#f79256", "#7b2d8b", "#00a6a6", "#b8a000", "#8a5a44"), strict=True))

# Inches.
_WIDTH = 16.0
_LINE = 0.25
_MARGINS = 2.2
_CURVES = 4.0
_MIN_LINES = 8
_DPI = 120

Rows = Mapping[str, Mapping[str, Any]]
Curves = Mapping[str, Mapping[str, Sequence[tuple[int, float]]]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar that begins at 1.

    Attributes
    ----------
    label : str
        At its left; a headline has nothing else.
    value, low, high : float
        The end of the bar, and the range over the rounds. Without a `colour` nothing is drawn.
    target : float or None
        Where the target is marked.
    note : str
        At its right.
    """

    label: str
    value: float = 1.0
    low: float = 1.0
    high: float = 1.0
    target: float | None = None
    note: str = ""
    colour: str = ""


def raw_bars(rows: Rows) -> list[Bar]:
    """Return a bar per row that has raw MPI: how many times as long ours takes, and the target if it is against raw."""
    bars = []
    for name, row in rows.items():
        if RAW not in row["ratio"] or name.startswith(_SCALING):
            continue
        judged = row["against"] == RAW
        low, high = sorted(_times_as_long(row, ratio) for ratio in row["spread"][f"ratio {RAW}"])
        target = _times_as_long(row, row["limit"] + row["plus"] / row[RAW]) if judged else None
        value, colour = 1.0 / faster_than(row, RAW), _COLOURS[row["met"] if judged else None]
        bars.append(Bar(name, value, low, high, target, format_number(value), colour))
    return bars


def _times_as_long(row: Mapping[str, Any], ratio: float) -> float:
    return 1.0 / ratio if row["more_is_better"] else ratio


def peer_bars(rows: Rows) -> list[Bar]:
    """Return, under a headline per row, a bar per peer: how many times faster ours is."""
    bars = []
    for name, row in rows.items():
        peers = [peer for peer in PEERS if peer in row["ratio"]]
        if peers and not name.startswith(_SCALING):
            bars += [Bar(name), *(_peer_bar(row, peer) for peer in peers)]
    return bars


def _peer_bar(row: Mapping[str, Any], peer: str) -> Bar:
    low, high = sorted(1.0 / _times_as_long(row, ratio) for ratio in row["spread"][f"ratio {peer}"])
    target = 1.0 / _times_as_long(row, row["limit"]) if row["against"] == peer else None
    value = faster_than(row, peer)
    return Bar(peer, value, low, high, target, format_number(value), _PEER_COLOURS[peer])


def limit_bars(rows: Rows) -> list[Bar]:
    """Return a bar per row with another target, not against raw MPI or a peer: the part of the limit that is taken."""
    bars = []
    for name, row in rows.items():
        if row["reached"] is None or row["against"] in (RAW, *PEERS):
            continue
        other = row["against"]
        note = f"{format_number(row['reached'])} {f'x {other}' if other else row['unit']}"
        spread = row["spread"][f"ratio {other}" if other else OURS]
        value, low, high = (_part_of_limit(row, reached) for reached in (row["reached"], *spread))
        bars.append(Bar(name, value, min(low, high), max(low, high), 1.0, note, _COLOURS[row["met"]]))
    return bars


def _part_of_limit(row: Mapping[str, Any], reached: float) -> float:
    part: float = row["limit"] / reached if row["more_is_better"] else reached / row["limit"]
    return part


def scaling_curves(rows: Rows) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return, by row and contender, the rate at each number of workers."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for key, row in rows.items():
        name, _, n_ranks = key.partition("/")
        if name.startswith(_SCALING):
            for contender in filter(None, (OURS, reference(row))):
                curve = curves.setdefault(name, {}).setdefault(contender, [])
                curve.append((int(n_ranks) - 1, row[contender]))
    return curves


def save_plot(found: Mapping[str, Any], path: Path) -> None:
    """Draw the results as the JSON file holds them and write them to `path`; its ending decides on the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = found["rows"]
    raw, peers, limits, curves = raw_bars(rows), peer_bars(rows), limit_bars(rows), scaling_curves(rows)
    n_lines = max(len(raw), len(peers) + len(limits) + 6 if peers and limits else len(peers) + len(limits), _MIN_LINES)
    heights = [n_lines * _LINE + _MARGINS, *([_CURVES] if curves else [])]
    figure = Figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    environment = found["environment"]
    figure.suptitle(
        f"taskfarm {environment['taskfarm']}: {environment['mpi']}, mpi4py {environment['mpi4py']}, Python "
        f"{environment['python']}, {environment['cores']} cores. Medians; thin lines: smallest and largest round\n"
        "black marks: targets; green: met, red: missed"
    )
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    left, right = parts[0].subfigures(1, 2)
    _draw_bars(left.subplots(), "time of ours / time of raw mpi4py (left is better)", raw)
    upper, lower = right.subplots(2, 1, height_ratios=[len(peers) + 3, len(limits) + 3])
    _draw_bars(upper, "times faster than a peer (right is better)", peers)
    _draw_bars(lower, "part of a limit of its own (left is better)", limits)
    if curves:
        _draw_curves(parts[1], curves)
    figure.savefig(path, dpi=_DPI)


def _draw_bars(axes: Any, title: str, bars: Sequence[Bar]) -> None:
    """Draw bars from the top."""
    axes.set_title(title, fontsize=11)
    drawn = [(position, bar) for position, bar in enumerate(bars) if bar.colour]
    if not drawn:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color=_NO_TARGET)
        axes.set_axis_off()
        return
    left, right = _limits([bar for _, bar in drawn])
    for position, bar in drawn:
        value, low, high = (min(max(end, left), right) for end in (bar.value, bar.low, bar.high))
        axes.barh(position, value - 1.0, left=1.0, color=bar.colour, height=0.62)
        axes.plot([low, high], [position] * 2, color="black", linewidth=0.9, alpha=0.6)
        ends = [value, high, 1.0]
        if bar.target is not None:
            axes.plot([bar.target] * 2, [position - 0.42, position + 0.42], color="black", linewidth=2.4)
            ends.append(bar.target)
        axes.annotate(bar.note, (max(ends), position), (5, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(len(bars) - 0.3, -0.7)
    _label(axes, bars)


def _limits(bars: Sequence[Bar]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis: a tenth is the least that is shown, and notes have room at the right."""
    ends = [value for bar in bars for value in (bar.value, bar.low, bar.high, bar.target) if value is not None]
    return max(min(*ends, 0.8) / 1.25, 0.1), max(*ends, 1.25) * 2.2


def _label(axes: Any, bars: Sequence[Bar]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    for text, bar in zip(axes.get_yticklabels(), bars, strict=True):
        text.set_fontweight("normal" if bar.colour else "bold")
    left, right = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if right / left < 100 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="major", alpha=0.35)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_curves(part: Any, curves: Curves) -> None:
    """Draw the rates against the number of workers, and the line of perfect scaling."""
    for axes, (name, contenders) in zip(part.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for contender, points in contenders.items():
            axes.loglog(*zip(*points, strict=True), marker="o", label=contender)
        workers, rates = zip(*contenders[OURS], strict=True)
        perfect = [rates[0] * n / workers[0] for n in workers]
        axes.loglog(workers, perfect, color="black", linestyle=":", label="in proportion")
        axes.set_title(name, fontsize=11)
        axes.set_xlabel("workers")
        axes.set_ylabel("tasks/s")
        axes.set_xticks(workers, [str(n) for n in workers])
        axes.minorticks_off()
        axes.grid(alpha=0.35)
        axes.legend(fontsize=8)
