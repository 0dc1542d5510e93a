"""Tags of ranks on the command line and in the environment, and groups of slots."""

from __future__ import annotations

import pytest

from taskfarm.cli import main
from taskfarm.cli._arguments import new_parser
from taskfarm.cli.run import _settings
from taskfarm.config import Config, parse_tag
from taskfarm.errors import UsageError
from taskfarm.scheduling.farm import Farm


def test_ranks_of_a_tag() -> None:
    """Single ranks and ranges."""
    assert parse_tag("gpu=1,3,5-7", "--tag") == ("gpu", [1, 3, 5, 6, 7])


@pytest.mark.parametrize("text", ["gpu", "gpu=", "=1", "gpu=a", "gpu=1-", "gpu=-1", "a,b=1", "gpu=1;2"])
def test_what_is_no_tag(text: str) -> None:
    """The error shows the text and its source."""
    with pytest.raises(UsageError, match="--tag .* is not of the form"):
        parse_tag(text, "--tag")


def test_tags_of_the_command_line_join_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--tag`` adds to ``TASKFARM_RANK_TAGS``."""
    monkeypatch.setenv("TASKFARM_RANK_TAGS", "big=1")
    options = new_parser().parse_args(["run", "--tag", "gpu=1,2", "--tag", "big=2"])
    assert Config.from_environment(_settings(options)).rank_tags == {1: {"big", "gpu"}, 2: {"gpu", "big"}}


def test_tags_are_passed_on_to_the_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    """In the command line, since launchers do not pass variables to all hosts; a wrong one is refused at once."""
    assert main(["run", "--dry-run", "-n", "3", "--tag", "gpu=1", "--tag", "big=1-2", "-m", "this"]) == 0
    assert "--set 'TASKFARM_RANK_TAGS=gpu=1;big=1-2' -m this" in capsys.readouterr().out
    assert main(["run", "--dry-run", "-n", "3", "--tag", "gpu", "-m", "this"]) == 2
    assert "--tag 'gpu'" in capsys.readouterr().err


def test_a_group_gets_slots_of_one_host() -> None:
    """The smallest host that has enough; else as few hosts as can be; nothing if there are not so many."""
    farm = Farm({1: "a", 2: "a", 3: "a", 4: "b", 5: "b"})
    assert [slot.rank for slot in farm.assign_group(2)] == [4, 5]
    farm.check_invariants()
    assert farm.assign_group(4) == []
    assert [slot.rank for slot in farm.assign_group(1, ["a"])] == [1]
    assert farm.assign_group(1, ["b"]) == []
    with pytest.raises(UsageError, match="unknown host"):
        farm.assign_group(1, ["nowhere"])
    spread = Farm({1: "a", 2: "b", 3: "b", 4: "c"})
    assert {slot.rank for slot in spread.assign_group(3)} >= {2, 3}
    spread.check_invariants()
