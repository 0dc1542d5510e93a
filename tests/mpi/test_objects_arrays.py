"""Explicit array buffers of ``taskfarm.objects``. The promises stand in ``programs/objects_arrays.py``."""

from __future__ import annotations

import pytest
from checklist import Checklist, cases

PROGRAM = "objects_arrays.py"


@pytest.mark.parametrize(("n", "name"), cases(PROGRAM))
def test_promise(checklist: Checklist, n: int, name: str) -> None:
    """Each check of the program is one promise of the documentation."""
    checklist.verify(PROGRAM, n, name)
