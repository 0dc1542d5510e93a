"""``taskfarm.objects``: failures from which a job goes on. The promises stand in ``programs/objects_failures.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

PROGRAM = "objects_failures.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name)
