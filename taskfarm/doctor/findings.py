"""What a check found."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Finding", "Level", "format_finding", "verdict"]

_WIDTH = 118
_INDENT = " " * 25


class Level(IntEnum):
    """How bad it is."""

    OK = 0
    WARNING = 1  #: jobs run, but not as well as they could
    ERROR = 2  #: jobs do not run


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes
    ----------
    level : Level
        How bad it is.
    check : str
        What was looked at, in one or two words.
    text : str
        What was found.
    fix : str
        What to do; not empty unless all is well.
    """

    level: Level
    check: str
    text: str
    fix: str = ""


def format_finding(finding: Finding) -> str:
    """Return a finding as lines for a terminal."""
    head = f"{finding.level.name.lower():<8} {finding.check:<15} "
    lines = textwrap.wrap(finding.text, _WIDTH, initial_indent=head, subsequent_indent=_INDENT, break_on_hyphens=False)
    if finding.fix:
        first = f"{_INDENT}do: "
        lines += textwrap.wrap(finding.fix, _WIDTH, initial_indent=first, subsequent_indent=_INDENT + "    ")
    return "\n".join(lines)


def verdict(findings: Iterable[Finding]) -> tuple[int, str]:
    """Return the exit status, and one line that says why: 1 if anything is an error."""
    levels = [finding.level for finding in findings]
    n_errors, n_warnings = levels.count(Level.ERROR), levels.count(Level.WARNING)
    counts = ", ".join(
        f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((n_errors, "error"), (n_warnings, "warning")) if n
    )
    if n_errors:
        return 1, f"Not fit to run: {counts}."
    return 0, f"Fit to run{', with ' + counts if counts else ''}."
