"""When there are groups of workers, and when they are refused."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from runtime_support import local_farm

from taskfarm.config import Config
from taskfarm.errors import UsageError
from taskfarm.runtime.executor import crews
from taskfarm.runtime.executor.relay_crew import RelayCrew


def session(size: int | None, *, isolated: bool = False, lifeline: object = None) -> Any:
    return SimpleNamespace(config=Config(group_size=size), isolated=isolated, lifeline=lifeline)


@pytest.mark.parametrize("of_job", [{"isolated": True}, {"lifeline": object()}])
def test_what_groups_are_not_for(of_job: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Isolated tasks and survived deaths: an error for who asks for groups, one level and a word for who has many."""
    with local_farm(6) as farm:
        with pytest.raises(UsageError, match="TASKFARM_GROUP_SIZE=3: .*; set TASKFARM_GROUP_SIZE=0"):
            crews._crew_of(range(1, 6), session(3, **of_job), farm.controller)
        assert not crews._crew_of(range(1, 6), session(0, **of_job), farm.controller).has_groups


@pytest.mark.parametrize(("of_job", "has_groups"), [({}, True), ({"isolated": True}, False)])
def test_groups_by_size(
    of_job: dict[str, Any], has_groups: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many workers make groups; where groups cannot be, rank 0 feeds all workers and says so."""
    monkeypatch.setattr(crews, "group_size", lambda n_workers, wanted: 3)
    with local_farm(6) as farm, caplog.at_level(logging.WARNING, "taskfarm"):
        crew = crews._crew_of(range(1, 6), session(None, **of_job), farm.controller)
        assert isinstance(crew, RelayCrew) == crew.has_groups == has_groups
        assert ("rank 0 feeds all of them" in caplog.text) is not has_groups
