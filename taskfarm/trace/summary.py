"""A trace as text: who worked, who waited, what took long, what went wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from taskfarm.runtime.recording.recorder import Track
from taskfarm.trace.reading import RankTrace, Trace
from taskfarm.units import format_bytes, format_seconds

__all__ = ["FunctionSums", "functions_of", "summarise"]

_MAX_RANKS = 16  # listed; of more, those that worked least and most
_MAX_FUNCTIONS = 10
_MAX_LONGEST = 5
_MAX_MARKS = 8
_BAR = 20  # characters


@dataclass
class FunctionSums:
    """All runs of one function: how many, the time they took, and the longest (seconds)."""

    n: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0


def functions_of(ranks: Sequence[RankTrace]) -> dict[str, FunctionSums]:
    """Return what each function took on `ranks`, the largest sum first."""
    sums: defaultdict[str, FunctionSums] = defaultdict(FunctionSums)
    for rank in ranks:
        for track in (Track.TASK, Track.ITEM):
            for name, line in rank.lines.get(track, {}).items():
                single = line.n == 1
                entry = sums[name]
                entry.n += int(single.sum())
                entry.seconds += float(line.busy[single].sum())
                entry.longest_s = max([entry.longest_s, *line.busy[single].tolist()])
        for name, (n, seconds, longest_s) in rank.merged.items():
            entry = sums[name]
            entry.n += n
            entry.seconds += seconds
            entry.longest_s = max(entry.longest_s, longest_s)
    found = {name: entry for name, entry in sums.items() if entry.n}
    return dict(sorted(found.items(), key=lambda item: -item[1].seconds))


def summarise(trace: Trace) -> str:
    """Return the summary."""
    parts = [_head(trace), _utilisation(trace), _functions(trace), _longest(trace), _waiting(trace), _transfers(trace)]
    return "\n\n".join("\n".join(part) for part in [*parts, _marks(trace), _notes(trace)] if part)


def _head(trace: Trace) -> list[str]:
    hosts = len({rank.host for rank in trace.ranks})
    n_ranks = f"{trace.size} rank{'s' if trace.size > 1 else ''} on {hosts} host{'s' if hosts > 1 else ''}"
    return [f"{trace.name}: {n_ranks}, {format_seconds(trace.length_s)}"]


def _share(rank: RankTrace, trace: Trace) -> float:
    return rank.busy_s / trace.length_s if trace.length_s else 0.0


def _utilisation(trace: Trace) -> list[str]:
    workers = sorted(trace.workers, key=lambda rank: _share(rank, trace))
    shares = [_share(rank, trace) for rank in workers]
    mean = sum(shares) / len(shares)
    imbalance = max(shares) / mean - 1 if mean else 0.0
    lines = [f"Workers were busy {mean:.0%} of the time; the busiest {imbalance:.0%} longer than the mean."]
    by_host: defaultdict[str, list[float]] = defaultdict(list)
    for rank, share in zip(workers, shares, strict=True):
        by_host[rank.host].append(share)
    if len(by_host) > 1:
        for host, values in sorted(by_host.items()):
            lines.append(f"  host {host:<18} {_bar(sum(values) / len(values))}  {len(values)} workers")
    half = _MAX_RANKS // 2
    shown = sorted(workers, key=lambda rank: rank.rank) if len(workers) <= _MAX_RANKS else workers[:half]
    for rank in shown:
        lines.append(f"  rank {rank.rank:<18} {_bar(_share(rank, trace))}")
    if len(workers) > _MAX_RANKS:
        lines.append(f"  ... {len(workers) - 2 * half} ranks between")
        lines += [f"  rank {rank.rank:<18} {_bar(_share(rank, trace))}" for rank in workers[-half:]]
    return lines


def _bar(share: float) -> str:
    full = round(min(share, 1.0) * _BAR)
    return f"{'#' * full}{'.' * (_BAR - full)} {share:4.0%}"


def _functions(trace: Trace) -> list[str]:
    functions = functions_of(trace.ranks)
    if not functions:
        return []
    width = min(40, max(len(name) for name in functions))
    lines = [f"{'Functions':<{width + 2}} {'runs':>9} {'together':>10} {'mean':>10} {'longest':>10}"]
    for name, sums in list(functions.items())[:_MAX_FUNCTIONS]:
        times = (sums.seconds, sums.seconds / sums.n, sums.longest_s)
        columns = " ".join(f"{format_seconds(seconds):>10}" for seconds in times)
        lines.append(f"  {_cut(name, width):<{width}} {sums.n:>9,} {columns}")
    if len(functions) > _MAX_FUNCTIONS:
        lines.append(f"  ... and {len(functions) - _MAX_FUNCTIONS} more")
    return lines


def _longest(trace: Trace) -> list[str]:
    found: list[tuple[float, float, int, str]] = []
    for rank in trace.ranks:
        for track in (Track.TASK, Track.ITEM):
            for name, line in rank.lines.get(track, {}).items():
                single = line.n == 1
                spans = zip(line.busy[single].tolist(), line.start[single].tolist(), strict=True)
                found += [(busy, start, rank.rank, name) for busy, start in sorted(spans)[-_MAX_LONGEST:]]
    longest = sorted(found, reverse=True)[:_MAX_LONGEST]
    return ["Longest tasks"] * bool(longest) + [
        f"  {format_seconds(busy):>10}  {name}, rank {rank}, at {format_seconds(start)}"
        for busy, start, rank, name in longest
    ]


def _waiting(trace: Trace) -> list[str]:
    total = trace.length_s * len(trace.workers)
    kinds = {
        "nothing to do": Track.IDLE,
        "tasks waiting for messages": Track.WAIT,
        "calls inside objects.comm": Track.COMM,
    }
    lines = []
    for text, track in kinds.items():
        seconds = sum(rank.seconds(track) for rank in trace.workers)
        if seconds:
            lines.append(f"  {text:<28} {format_seconds(seconds):>10}  {seconds / total:4.0%}")
    return ["Time of workers lost to waiting"] * bool(lines) + lines


def _transfers(trace: Trace) -> list[str]:
    n_frames, n_bytes = (sum(rank.sent[i] for rank in trace.ranks) for i in (0, 1))
    lines = [f"Transfers: {n_frames:,} messages, {format_bytes(n_bytes)}"]
    largest = sorted(trace.ranks, key=lambda rank: -rank.sent[1])[:3]
    for rank in largest:
        if rank.sent[1]:
            sent, received = format_bytes(rank.sent[1]), format_bytes(rank.received[1])
            lines.append(f"  rank {rank.rank:<4} sent {sent:>10} in {rank.sent[0]:,}, received {received:>10}")
    return lines


def _marks(trace: Trace) -> list[str]:
    marks = sorted((mark.at, rank.rank, mark) for rank in trace.ranks for mark in rank.marks)
    total = sum(rank.n_marks for rank in trace.ranks)
    if not total:
        return ["No failures."]
    counts = Counter((mark.event, mark.text) for _, _, mark in marks)
    lines = [f"Failures and other events: {total}"]
    for (event, text), n in counts.most_common(_MAX_MARKS):
        at, rank = next((at, rank) for at, rank, mark in marks if (mark.event, mark.text) == (event, text))
        lines.append(f"  {n} x {event}: {text} (first on rank {rank}, at {format_seconds(at)})")
    return lines


def _notes(trace: Trace) -> Iterator[str] | list[str]:
    """Return what limits this trace."""
    lines = []
    if trace.absent:
        lines.append(f"Ranks {list(trace.absent)} handed in nothing: they were gone, or busy until the end.")
    resolution = max(rank.resolution_s for rank in trace.ranks)
    if resolution:
        lines.append(
            f"There were more spans than are kept: neighbours within {format_seconds(resolution)} are drawn as one. "
            "Sums are exact."
        )
    elif any((line.n > 1).any() for rank in trace.ranks for line in rank.lines.get(Track.ITEM, {}).values()):
        lines.append(
            "Items of a map that take less than 10 us each were timed together, batch by batch, after the first ones: "
            "`longest` is that of the others."
        )
    unaligned = [rank.rank for rank in trace.ranks if not rank.clock.aligned]
    if unaligned:
        lines.append(f"The clocks of ranks {unaligned} were not aligned: they did not answer in time.")
    aligned = [rank.clock for rank in trace.ranks if rank.clock.aligned and rank.rank > 0]
    if aligned:
        error = max(clock.error_s for clock in aligned)
        offset = max(abs(clock.offset_s) for clock in aligned)
        corrected = f"differences of up to {format_seconds(offset)} were corrected" if offset else "no difference found"
        lines.append(f"Clocks are aligned to within {format_seconds(error)}; {corrected}.")
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]
