"""``taskfarm.vm``: identifiers, slots, spawning. The promises stand in ``programs/vm_tasks.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

PROGRAM = "vm_tasks.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name)
