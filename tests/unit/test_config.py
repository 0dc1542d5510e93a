"""Options and the environment variables that set them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from taskfarm.config import Config, OnError, Receive
from taskfarm.errors import UsageError


def test_defaults() -> None:
    """An empty environment gives the documented defaults."""
    assert Config.from_environment({}) == Config()
    assert dataclasses.asdict(Config()) == {
        "on_error": OnError.DEFERRED,
        "stuck_s": 60.0,
        "stuck_comm_s": 2.0,
        "open_s": 300.0,
        "leave_s": 5.0,
        "spin": None,
        "doorbell": True,
        "receive": None,
        "blas_threads": None,
        "tags": frozenset(),
        "rank_tags": {},
        "heartbeat_s": 30.0,
        "hang_s": None,
        "isolate": False,
        "journal": "",
        "trace": "",
        "log": "",
        "forward_logs": False,
        "watch": "",
        "group_size": None,
    }


VARIABLES: list[tuple[str, str, str, Any]] = [
    ("TASKFARM_ON_ERROR", "wait", "on_error", OnError.WAIT),
    ("TASKFARM_ON_ERROR", "print", "on_error", OnError.PRINT),
    ("TASKFARM_WATCH", "/dev/pts/3", "watch", "/dev/pts/3"),
    ("TASKFARM_LOG", "info", "log", "INFO"),
    ("TASKFARM_FORWARD_LOGS", "1", "forward_logs", True),
    ("TASKFARM_TRACE", "/tmp/run.json", "trace", "/tmp/run.json"),
    ("TASKFARM_STUCK_S", "1.5", "stuck_s", 1.5),
    ("TASKFARM_STUCK_S", "inf", "stuck_s", math.inf),
    ("TASKFARM_STUCK_COMM_S", "7", "stuck_comm_s", 7.0),
    ("TASKFARM_OPEN_S", "1e3", "open_s", 1000.0),
    ("TASKFARM_LEAVE_S", "0.25", "leave_s", 0.25),
    ("TASKFARM_SPIN", "1", "spin", True),
    ("TASKFARM_SPIN", "0", "spin", False),
    ("TASKFARM_DOORBELL", "0", "doorbell", False),
    ("TASKFARM_DOORBELL", "1", "doorbell", True),
    ("TASKFARM_RECEIVE", "posted", "receive", Receive.POSTED),
    ("TASKFARM_RECEIVE", "matched", "receive", Receive.MATCHED),
    ("TASKFARM_RECEIVE", "plain", "receive", Receive.PLAIN),
    ("TASKFARM_TAGS", "gpu, bigmem,", "tags", frozenset({"gpu", "bigmem"})),
    ("TASKFARM_RANK_TAGS", "gpu=1,3;big=2-3", "rank_tags", {1: {"gpu"}, 2: {"big"}, 3: {"gpu", "big"}}),
    ("TASKFARM_BLAS_THREADS", "0", "blas_threads", 0),
    ("TASKFARM_BLAS_THREADS", "12", "blas_threads", 12),
    ("TASKFARM_HEARTBEAT_S", "2.5", "heartbeat_s", 2.5),
    ("TASKFARM_HANG_S", "600", "hang_s", 600.0),
    ("TASKFARM_ISOLATE", "0", "isolate", False),
    ("TASKFARM_ISOLATE", "1", "isolate", True),
    ("TASKFARM_GROUP_SIZE", "0", "group_size", 0),
    ("TASKFARM_GROUP_SIZE", "128", "group_size", 128),
]


@pytest.mark.parametrize(("name", "text", "option", "value"), VARIABLES)
def test_every_variable_sets_its_option(name: str, text: str, option: str, value: Any) -> None:
    """A variable sets its option and no other."""
    assert Config.from_environment({name: text}) == dataclasses.replace(Config(), **{option: value})


@pytest.mark.parametrize("name", sorted({name for name, *_ in VARIABLES}))
def test_empty_variables_are_unset(name: str) -> None:
    """An empty variable is as good as none."""
    assert Config.from_environment({name: ""}) == Config()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TASKFARM_ON_ERROR", "ignore"),
        ("TASKFARM_ON_ERROR", "WAIT"),
        ("TASKFARM_RECEIVE", "probe"),
        ("TASKFARM_LOG", "loud"),
        ("TASKFARM_FORWARD_LOGS", "yes"),
        ("TASKFARM_RECEIVE", "0"),
        *[
            (name, text)
            for name in ("TASKFARM_STUCK_S", "TASKFARM_STUCK_COMM_S")
            for text in ("0", "-1", "nan", "soon")
        ],
        *[(name, text) for name in ("TASKFARM_OPEN_S", "TASKFARM_LEAVE_S") for text in ("0", "-inf", "1 s", "1,5")],
        *[(name, text) for name in ("TASKFARM_SPIN", "TASKFARM_DOORBELL") for text in ("2", "yes", "True", " 1")],
    ],
)
def test_a_bad_value_is_refused_by_name(name: str, text: str) -> None:
    """A value that cannot be is an error that names variable and value, not a silent default."""
    with pytest.raises(UsageError, match=name) as caught:
        Config.from_environment({name: text})
    assert repr(text) in str(caught.value)


def test_other_variables_do_not_matter() -> None:
    """Only the documented variables are looked at."""
    assert Config.from_environment({"TASKFARM_UNKNOWN": "1", "PATH": "/bin", "STUCK_S": "3"}) == Config()


@pytest.mark.parametrize("value", ["wait", OnError.WAIT])
def test_modes_are_given_as_text_or_member(value: str | OnError) -> None:
    """A mode may be named by its text or be the member."""
    assert OnError.parse(value, "on_error") is OnError.WAIT


@pytest.mark.parametrize("value", ["later", "", None, 3, ["wait"]])
def test_an_unknown_mode_is_refused(value: Any) -> None:
    """The message names where the mode came from and which there are."""
    with pytest.raises(UsageError, match="mode=.* is not one of 'deferred', 'wait', 'print'"):
        OnError.parse(value, "mode")
