"""A trace as a picture: what every rank did over time, how busy the workers were, and which ranks were busier.

The rows of the ranks are an image, not bars: each pixel is the mix of what happened in its moment. So a million short
tasks look as busy as they were, and 256 ranks fit as well as 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from taskfarm.runtime.recording.recorder import Track
from taskfarm.trace.coverage import BATCH, IDLE, OTHER, WAITING, rank_coverage
from taskfarm.trace.reading import Floats, RankTrace, Trace
from taskfarm.trace.summary import functions_of

__all__ = ["Picture", "draw", "save_plot"]

_N_BINS = 1600  # about the pixels of a row
_MAX_NAMES = 6  # functions with a colour of their own
_FUNCTION_COLOURS = ("#3d6fb4", "#e39a3b", "#4f9d69", "#8f63ad", "#c2577c", "#45a5b8")
_COLOURS = {OTHER: "#8d99ae", BATCH: "#b9cbe6", WAITING: "#f0b7a8", IDLE: "#f3f4f6"}
_TEXT, _FAINT, _MARK = "#2b2d33", "#8a8f98", "#c1121f"
_MIN_BORDER = 0.004  # of the whole time: shorter tasks are not drawn apart
_LEGEND_LETTERS = 165  # in one line
_LABELLED_RANKS = 40  # of more, only some rows have labels
# Inches.
_WIDTH = 15.0
_DPI = 130
_MIN_ROW, _MAX_ROW, _MIN_ROWS, _MAX_ROWS = 0.02, 0.42, 1.4, 8.5
_CURVE, _MARGINS = 1.25, 1.95


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes
    ----------
    edges : ndarray
        Of the bins of time; seconds, shape (n_bins + 1,).
    names : list of str
        Functions with a colour of their own, then the other things that ranks do.
    shares : ndarray
        Of the time of each rank, bin and name; float64, shape (n_ranks, n_bins, n_names).
    """

    trace: Trace
    edges: Floats
    names: Sequence[str]
    shares: Floats

    @classmethod
    def of(cls, trace: Trace, n_bins: int = _N_BINS) -> Picture:
        """Return the picture of `trace`."""
        edges = np.linspace(0.0, max(trace.length_s, 1e-6), n_bins + 1)
        functions = list(functions_of(trace.ranks))[:_MAX_NAMES]
        names = [*functions, OTHER, BATCH, WAITING]
        found = [rank_coverage(rank, functions, edges) for rank in trace.ranks]
        shares = np.stack([np.stack([rank[name] for name in names], axis=1) for rank in found])
        return cls(trace, edges, names, np.clip(shares, 0.0, 1.0))

    @property
    def colours(self) -> Mapping[str, str]:
        """The colour of each name."""
        return dict(zip(self.names, _FUNCTION_COLOURS, strict=False)) | _COLOURS

    @property
    def working(self) -> Floats:
        """How much of each moment each rank was busy; shape (n_ranks, n_bins)."""
        busy: Floats = self.shares[:, :, [name != WAITING for name in self.names]].sum(axis=2)
        return np.minimum(busy, 1.0)

    def image(self) -> Floats:
        """Return the mixed colours of each rank and bin; shape (n_ranks, n_bins, 3)."""
        colours = np.array([_rgb(self.colours[name]) for name in self.names])
        total = np.maximum(self.shares.sum(axis=2, keepdims=True), 1.0)
        shares = self.shares / total
        rest = 1.0 - shares.sum(axis=2, keepdims=True)
        mixed: Floats = shares @ colours + rest * np.array(_rgb(_COLOURS[IDLE]))
        return np.clip(mixed, 0.0, 1.0)


def save_plot(trace: Trace, path: Path) -> None:
    """Draw `trace` into a PNG file."""
    figure = draw(Picture.of(trace))
    figure.savefig(path, dpi=_DPI, facecolor="white")


def draw(picture: Picture) -> Any:
    """Return the picture as a figure of matplotlib."""
    from matplotlib.figure import Figure

    n = len(picture.trace.ranks)
    rows = min(_MAX_ROWS, max(_MIN_ROWS, n * _MAX_ROW if n * _MAX_ROW < _MAX_ROWS else n * _MIN_ROW, _room(n)))
    height = rows + _CURVE + _MARGINS
    figure = Figure(figsize=(_WIDTH, height))
    grid = figure.add_gridspec(
        2, 2, height_ratios=[_CURVE, rows], width_ratios=[1.0, 0.085], hspace=0.18 * 2 / (rows + _CURVE), wspace=0.012,
        left=0.085, right=0.975, top=1 - 0.78 / height, bottom=0.98 / height,
    )  # fmt: skip
    curve = figure.add_subplot(grid[0, 0])
    ranks = figure.add_subplot(grid[1, 0], sharex=curve)
    profile = figure.add_subplot(grid[1, 1], sharey=ranks)
    factor, unit = _unit(picture.trace.length_s)
    _draw_curve(curve, picture, factor)
    _draw_ranks(ranks, picture, factor, unit)
    _draw_profile(profile, picture)
    _draw_head(figure, picture, height)
    _draw_legend(figure, picture)
    return figure


def _room(n: int) -> float:
    """Return the height of the rows of many ranks, which need less each."""
    return _MAX_ROWS * min(1.0, 0.45 + n / 400) if n * _MAX_ROW >= _MAX_ROWS else 0.0


def _draw_head(figure: Any, picture: Picture, height: float) -> None:
    trace = picture.trace
    factor, unit = _unit(trace.length_s)
    hosts = len({rank.host for rank in trace.ranks})
    workers = [index for index, rank in enumerate(trace.ranks) if rank in trace.workers]
    busy = picture.working[workers].mean()
    about = [
        f"{trace.size} rank{'s' if trace.size > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}",
        f"{trace.length_s * factor:.3g} {unit}",
        f"workers busy {busy:.0%} of the time",
    ]
    figure.text(0.085, 1 - 0.36 / height, trace.name, fontsize=14, fontweight="bold", color=_TEXT)
    figure.text(0.975, 1 - 0.36 / height, "   ·   ".join(about), fontsize=11, color=_TEXT, ha="right")


def _draw_curve(axes: Any, picture: Picture, factor: float) -> None:
    workers = [index for index, rank in enumerate(picture.trace.ranks) if rank in picture.trace.workers]
    centres = (picture.edges[1:] + picture.edges[:-1]) / 2 * factor
    window = max(1, len(centres) // 200)
    kernel = np.ones(window)
    weight = np.convolve(np.ones(len(centres)), kernel, mode="same")
    means = picture.shares[workers].mean(axis=0).T
    layers = [np.convolve(mean, kernel, mode="same") / weight for mean in means]
    axes.set_facecolor(_COLOURS[IDLE])
    colours = [picture.colours[name] for name in picture.names]
    axes.stackplot(centres, np.clip(np.array(layers), 0, 1) * 100, colors=colours, linewidth=0)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 50, 100], ["0", "50", "100 %"])
    axes.set_ylabel("workers", color=_TEXT, fontsize=10)
    axes.grid(axis="y", color="white", linewidth=0.8)
    _plain(axes)
    axes.tick_params(axis="x", labelbottom=False, length=0)


def _draw_ranks(axes: Any, picture: Picture, factor: float, unit: str) -> None:
    ranks = picture.trace.ranks
    n = len(ranks)
    extent = (0.0, picture.edges[-1] * factor, n - 0.5, -0.5)
    axes.imshow(picture.image(), aspect="auto", interpolation="nearest", extent=extent)
    if n <= _LABELLED_RANKS:
        for edge in range(1, n):
            axes.axhline(edge - 0.5, color="white", linewidth=2.5 if n <= 16 else 1.2)
        _draw_borders(axes, picture, factor)
    _draw_marks(axes, ranks, factor)
    shown = range(n) if n <= _LABELLED_RANKS else range(0, n, _step(n))
    axes.set_yticks(list(shown), [f"rank {ranks[index].rank}" for index in shown], fontsize=9 if n <= 24 else 8)
    axes.set_xlabel(f"time since the ranks met [{unit}]", color=_TEXT, fontsize=10)
    axes.set_xlim(0, picture.edges[-1] * factor)
    _draw_hosts(axes, ranks)
    _plain(axes)


def _draw_borders(axes: Any, picture: Picture, factor: float) -> None:
    """Draw a fine line where a task begins behind another one, in rows in which that leaves something to see."""
    for row, rank in enumerate(picture.trace.ranks):
        lines = [line for track in (Track.TASK, Track.ITEM) for line in rank.lines.get(track, {}).values()]
        starts = np.concatenate([line.start for line in lines] or [np.empty(0)])
        long = np.concatenate([line.end for line in lines] or [np.empty(0)]) - starts > _MIN_BORDER * picture.edges[-1]
        axes.vlines(starts[long] * factor, row - 0.5, row + 0.5, color="white", linewidth=0.7, alpha=0.75)


def _draw_marks(axes: Any, ranks: Sequence[RankTrace], factor: float) -> None:
    points = [(mark.at * factor, row) for row, rank in enumerate(ranks) for mark in rank.marks]
    if points:
        at, rows = zip(*points, strict=True)
        size = 46 if len(ranks) <= _LABELLED_RANKS else 26
        axes.scatter(at, rows, marker="X", s=size, color=_MARK, edgecolors="white", linewidths=0.7, zorder=5)


def _draw_hosts(axes: Any, ranks: Sequence[RankTrace]) -> None:
    """Name the hosts at the left where there are several, with a line beside the rows of each."""
    groups = [(host, list(rows)) for host, rows in groupby(range(len(ranks)), key=lambda row: ranks[row].host)]
    if len(groups) < 2 or len(groups) > _LABELLED_RANKS:
        return
    transform = axes.get_yaxis_transform()
    for host, rows in groups:
        gap = max(0.1, len(ranks) / 200)
        first, last = rows[0] - 0.5 + gap, rows[-1] + 0.5 - gap
        axes.plot([-0.06, -0.06], [first, last], color=_FAINT, linewidth=1.6, transform=transform, clip_on=False)
        name = host.partition(".")[0]
        axes.text(
            -0.064, (first + last) / 2, name, rotation=90, transform=transform, ha="right", va="center", fontsize=8,
            color=_TEXT,
        )  # fmt: skip


def _draw_profile(axes: Any, picture: Picture) -> None:
    n = len(picture.trace.ranks)
    busy = picture.working.mean(axis=1) * 100
    axes.barh(range(n), busy, height=0.72 if n <= _LABELLED_RANKS else 1.0, color="#5a6475")
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 100], ["0", "100 %"])
    axes.set_xlabel("busy", color=_TEXT, fontsize=10)
    if n <= _LABELLED_RANKS:
        for row, value in enumerate(busy):
            inside = value > 45
            at, side, colour = (value - 4, "right", "white") if inside else (value + 4, "left", _TEXT)
            size = 8.5 if n <= 24 else 6.5
            axes.text(at, row, f"{value:.0f} %", va="center", ha=side, fontsize=size, color=colour)
    axes.set_facecolor(_COLOURS[IDLE])
    _plain(axes)
    axes.tick_params(axis="y", labelleft=False, length=0)
    for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
        label.set_horizontalalignment(side)


def _draw_legend(figure: Any, picture: Picture) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    used = [name for index, name in enumerate(picture.names) if picture.shares[:, :, index].sum() > 1e-3]
    handles: list[Any] = [Patch(color=picture.colours[name], label=_short(name)) for name in used]
    handles.append(Patch(facecolor=_COLOURS[IDLE], edgecolor="#c9cdd3", label=IDLE))
    if any(rank.marks for rank in picture.trace.ranks):
        handles.append(Line2D([], [], marker="X", linestyle="", color=_MARK, markersize=7, label="failure, event"))
    n_letters = sum(len(handle.get_label()) + 8 for handle in handles)
    n_columns = len(handles) if n_letters < _LEGEND_LETTERS else 5
    figure.legend(
        handles=handles, loc="lower center", ncols=n_columns, frameon=False, fontsize=9.5,
        bbox_to_anchor=(0.53, 0.0), handlelength=1.2, columnspacing=1.8,
    )  # fmt: skip


def _plain(axes: Any) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=9, length=3)


def _short(name: str, width: int = 32) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def _step(n: int) -> int:
    """Return how many ranks lie between two labels, so that there are some twenty."""
    return next(step for step in (4, 8, 16, 32, 64, 128, 256, 512, n) if n / step <= 20)


def _unit(length_s: float) -> tuple[float, str]:
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (300.0, 1.0, "s"), (18000.0, 1 / 60, "min")):
        if length_s < limit:
            return factor, unit
    return 1 / 3600, "h"


def _rgb(colour: str) -> npt.NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255.0
