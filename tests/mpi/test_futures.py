"""``taskfarm.Executor`` on ranks and on processes of its own; the promises stand in ``programs/futures_*.py``.

One rank is a program without a launcher's ranks: its workers are processes that it starts.
"""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

TASKS = "futures_tasks.py"
MAPS = "futures_maps.py"


@pytest.mark.parametrize(("n", "name"), cases(TASKS, (1, 2, 4)))
def test_promise_of_submit(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(TASKS, n, name)


@pytest.mark.parametrize(("n", "name"), cases(MAPS, (1, 2, 4)))
def test_promise_of_map(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(MAPS, n, name)
