"""Threads of numerical libraries."""

from __future__ import annotations

import pytest

from taskfarm.runtime.launching.blas import VARIABLES, thread_variables


def test_a_share_of_the_cores() -> None:
    """Every library is told the same number, at least 1."""
    assert thread_variables(3, 8, {}) == dict.fromkeys(VARIABLES, "2")
    assert set(thread_variables(0, 8, {}).values()) == {"8"}
    assert set(thread_variables(16, 8, {}).values()) == {"1"}


@pytest.mark.parametrize("environ", [{name: "4"} for name in VARIABLES] + [{"TASKFARM_BLAS_THREADS": "0"}])
def test_the_user_decides(environ: dict[str, str]) -> None:
    """A number that the user has set is kept, and the whole can be switched off."""
    assert thread_variables(3, 8, environ) == {}


def test_a_number_that_was_asked_for() -> None:
    """TASKFARM_BLAS_THREADS is used as it is; what is no number is reported when the session opens."""
    assert set(thread_variables(3, 8, {"TASKFARM_BLAS_THREADS": "5"}).values()) == {"5"}
    assert set(thread_variables(3, 8, {"TASKFARM_BLAS_THREADS": "many"}).values()) == {"2"}
