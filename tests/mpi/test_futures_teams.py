"""Tasks of several ranks, and placed ones; the promises stand in ``programs/futures_teams.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

TEAMS = "futures_teams.py"


@pytest.mark.parametrize(("n", "name"), cases(TEAMS, (1, 4)))
def test_promise_of_teams(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(TEAMS, n, name)
