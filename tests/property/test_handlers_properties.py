"""Whatever frames arrive, rank 0 and workers go on: a frame that does not fit is dropped and changes nothing."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from random_bytes import harmless_bytes
from runtime_support import LocalFarm, where

from taskfarm.runtime.endpoint import TASK_ENDED
from taskfarm.runtime.executor.jobs import Pieces
from taskfarm.runtime.executor.portions import group_frame, portion_frame
from taskfarm.runtime.options import BatchOption
from taskfarm.runtime.work import pack_work
from taskfarm.wire.frames import Frame, Kind

WORK = pack_work("x", where, (), {}).body
BODIES = harmless_bytes(40) | st.sampled_from([b"", b"garbage", bytes(32), b"\x80\x05N.", WORK, WORK[:-3]])
NUMBERS = st.integers(-3, 5) | st.integers(-(2**63), 2**63 - 1)
FRAMES = st.builds(Frame, st.sampled_from(Kind), NUMBERS, NUMBERS, st.integers(0, 255), BODIES)


@pytest.fixture(autouse=True, scope="module")
def _silent() -> Iterator[None]:
    """What is dropped is logged; the examples would log thousands of lines."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@given(st.lists(st.tuples(st.integers(1, 2), FRAMES), max_size=12), st.booleans())
@example([(1, Frame(Kind.LOST, 1, body=b"was killed"))], False)
@example([(1, Frame(Kind.LOST, 1, body=b"was killed")), (1, Frame(Kind.DONE, 1))], True)
def test_rank_0_survives_any_frames(arriving: list[tuple[int, Frame]], may_lose: bool) -> None:
    """No frame raises into the user's program, frees a slot that is taken, or doubles the end of a task."""
    farm = LocalFarm(3)
    controller = farm.controller
    controller.may_lose = may_lose
    farm.spawn(where, count=2)
    with redirect_stdout(io.StringIO()):  # what workers want to be printed
        for source, frame in arriving:
            controller.handle(source, frame)
            controller.farm.check_invariants()
    ended = []
    while (letter := controller.take_letter(0.0)) is not None:
        if letter.content is TASK_ENDED:
            ended.append(letter.rank)
    controller.farm.check_invariants()
    assert len(ended) == len(set(ended)) == 2 - controller.farm.n_running
    assert may_lose or not controller.lost
    assert controller.farm.free == set(ended) - set(controller.lost)


@given(st.lists(FRAMES.filter(lambda frame: abs(frame.b) < 100), max_size=12))
def test_a_worker_survives_any_frames(arriving: list[Frame]) -> None:
    """No frame ends a worker's loop but the one that says so; every spawn is answered by one end."""
    farm = LocalFarm(2)
    worker = farm.new_worker(1)
    worker._home = str(Path.cwd())
    for frame in arriving:
        worker.handle(0, frame)
    n_done = 0
    while (item := farm.transports[0].receive_nowait()) is not None:
        n_done += item[1].kind is Kind.DONE
    assert n_done == sum(frame.kind is Kind.SPAWN for frame in arriving)
    assert worker._quitting is any(frame.kind is Kind.QUIT for frame in arriving)


SMALL = st.integers(0, 4)
OPTIONS = st.sampled_from([BatchOption.NOTHING, BatchOption.STAR, BatchOption.ONE_TASK])
PIECE_BODIES = st.lists(st.binary(max_size=4), max_size=4)
PIECES = st.tuples(st.integers(0, 3), st.integers(0, 12), OPTIONS, PIECE_BODIES).map(lambda it: Pieces(*it))
OF_A_GROUP = (
    st.builds(portion_frame, SMALL, SMALL, st.integers(1, 2), PIECES)
    | st.tuples(st.sampled_from([Kind.FUNCTION, Kind.FORGET, Kind.RECALL]), SMALL, SMALL).map(lambda it: Frame(*it))
    | st.tuples(SMALL, SMALL, SMALL).map(lambda it: Frame(Kind.BATCH_DONE, *it, bytes(20)))
)


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 2, 3]), OF_A_GROUP | FRAMES.filter(lambda frame: abs(frame.b) < 100)), max_size=30
    )
)
def test_the_controller_of_a_group_survives_any_frames(arriving: list[tuple[int, Frame]]) -> None:
    """Whatever rank 0 and the workers of a group say, in whatever order, its dealer stays consistent."""
    farm = LocalFarm(4)
    worker = farm.new_worker(1)
    worker._home = str(Path.cwd())
    worker.handle(0, group_frame(2, [2, 3]))
    for source, frame in arriving:
        if frame.kind is not Kind.GROUP:
            worker.handle(source, frame)
            assert worker._group is not None
            worker._group._dealer.check_invariants()
