"""The fault-injection simulator: the farm keeps its promises, and the simulator notices if it does not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from taskfarm.futures._maps import MapJob
from taskfarm.futures._tasks import TaskJob
from taskfarm.runtime.executor.team_desk import TeamDesk
from taskfarm.scheduling.dealing import Dealer
from taskfarm.testing import Plan, SimulationFailed, simulate

N_SEEDS = 200


@pytest.mark.parametrize("first", range(0, N_SEEDS, 20))
def test_no_fault_costs_a_task(first: int) -> None:
    """Deaths, stalls, late, doubled and torn replies, poison, bad pickles: every task ends once, and as it should."""
    n_lost = sum(simulate(seed).n_lost for seed in range(first, first + 20))
    assert n_lost > 0


def test_a_seed_always_does_the_same() -> None:
    """A failing seed can be replayed: nothing depends on the real clock or on chance."""
    assert [simulate(seed) for seed in range(30, 40)] == [simulate(seed) for seed in range(30, 40)]


def test_thousands_of_workers() -> None:
    """A farm that no test machine could hold, a third of which dies."""
    plan = Plan(7, 2000, 3000, task_s=1e-2, p_death=0.3, p_torn=0.5, horizon_s=0.05)
    summary = simulate(7, plan)
    assert summary.n_tasks > 0
    assert summary.n_lost > 400


def seeds_that_fail(n: int = 60) -> list[str]:
    """Return what the simulator says of the first seeds."""
    texts = []
    for seed in range(n):
        try:
            simulate(seed)
        except SimulationFailed as exc:
            texts.append(str(exc))
    return texts


def test_a_task_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the dealer forgot what a dead worker had, tasks would never end; the message has the line to see it again."""
    real = Dealer.on_worker_lost

    def forget(self: Dealer, worker: int, cause: str) -> Any:
        lost = real(self, worker, cause)
        for batch, _ in lost:
            self.drop_waiting(batch.job)
        return lost

    monkeypatch.setattr(Dealer, "on_worker_lost", forget)
    texts = seeds_that_fail()
    assert any("no progress" in text for text in texts)
    assert all("python -m taskfarm.testing --seed " in text for text in texts)


def test_a_placed_task_that_is_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a task of several workers were not tried again when one of them dies, its future would never end."""
    monkeypatch.setattr(TeamDesk, "_lose", lambda self, wanted, loss: None)
    assert any("no progress" in text for text in seeds_that_fail())


def test_items_that_died_with_their_process_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the other items of a batch were forgotten that was lost with a task's process, the farm would not hide it."""
    monkeypatch.setattr(Dealer, "_put_back", lambda self, job, ranges: None)
    assert any("no progress" in text for text in seeds_that_fail())


def test_a_slot_that_leaks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """If a worker were not free again after its batch, the tables would contradict each other."""
    monkeypatch.setattr(Dealer, "_place", lambda self, lane: None)
    assert any("the tables contradict each other" in text for text in seeds_that_fail(5))


@pytest.mark.parametrize("job", [MapJob, TaskJob])
def test_a_wrong_result_is_noticed(monkeypatch: pytest.MonkeyPatch, job: type) -> None:
    """If results were taken for those of the next item, the farm would not hide it."""
    real = job.on_results

    def shifted(self: Any, start: int, results: Any) -> None:
        real(self, start + 1 if start else start, results)

    monkeypatch.setattr(job, "on_results", shifted)
    assert seeds_that_fail(30)


def test_command_line() -> None:
    """``python -m taskfarm.testing`` runs a series of seeds, or one, and tells what happened."""
    command = [sys.executable, "-m", "taskfarm.testing", "--seeds", "3", "--first", "5", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("3 farms, ")
    assert ", 0 farms failed" in done.stdout
