"""``taskfarm.vm``: results of tasks, and tasks that fail. The promises stand in ``programs/vm_results.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

PROGRAM = "vm_results.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name)
