"""``taskfarm.objects``: what travels. The promises stand in ``programs/objects_arguments.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

PROGRAM = "objects_arguments.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the contract."""
    checklist.verify(PROGRAM, n, name)
