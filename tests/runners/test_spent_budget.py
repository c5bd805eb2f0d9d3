"""A spent budget drops the rest of one model, untried, on both runners; the others go on."""

import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from runners.faulty_worker import calls
from runners.spent_worker import SpentWorker

from raybench.core.work import Event, Outcome, Receipt, Resources, Runner, Task
from raybench.runners.dispatch import Dispatch, Start, Submit

pytestmark = pytest.mark.timeout(120)


def test_the_rest_of_a_model_is_dropped_untried(runner: Runner, tmp_path: Path) -> None:
    tasks = [Task(m, shard, f"model-{m}") for shard in range(12) for m in range(3)]
    events: list[Event] = []
    outcome = runner(
        partial(SpentWorker, str(tmp_path), {"model-1": 4}),
        tasks,
        Resources(actors=2, max_attempts=3),
        listener=events.append,
        stop=lambda: None,
    )
    done = [task for task in tasks if task in outcome.receipts]
    assert [sum(task.resident == f"model-{m}" for task in done) for m in range(3)] == [12, 4, 12]
    assert (outcome.failures, outcome.gave_up) == ({}, None)
    assert set(outcome.spent) == set(tasks) - set(done)
    assert set(outcome.spent.values()) == {"model-1: no tickets left"}
    tried = [resident for _, resident, _ in calls(tmp_path) if resident == "model-1"]
    # Nothing is tried twice; of two workers, the other may be at it too when the first is told.
    assert 5 <= len(tried) <= 6
    assert 1 <= sum(event.kind == "spent" for event in events) <= 2
    assert not any(event.kind in ("retry", "failed") for event in events)


def test_later_rounds_leave_a_spent_model_alone(runner: Runner, tmp_path: Path) -> None:
    rounds = [
        [Task(0, shard, "poor") for shard in range(2, 4)]
        + [Task(1, shard, "rich") for shard in range(2, 4)],
        [Task(0, 9, "poor")],
        [Task(1, 9, "rich")],
    ]

    def more(outcome: Outcome) -> Iterable[Task]:
        return rounds.pop(0) if rounds else []

    outcome = runner(
        partial(SpentWorker, str(tmp_path), {"poor": 1}),
        [Task(m, shard, name) for shard in range(2) for m, name in enumerate(("poor", "rich"))],
        Resources(actors=2),
        listener=lambda event: None,
        stop=lambda: None,
        more=more,
    )
    assert sorted(task.shard for task in outcome.spent) in ([0, 2, 3, 9], [1, 2, 3, 9])
    assert sum(task.resident == "rich" for task in outcome.receipts) == 5
    assert rounds == []


def receipt(task: Task) -> Receipt:
    return Receipt(
        task=task, file="f", sha256="0", size=1, rows=1, errors=0, queries=0, seconds=0.0
    )


@pytest.mark.parametrize("seed", range(60))
def test_every_task_is_decided_once_whatever_happens(seed: int) -> None:
    """Random receipts, errors, losses and spent budgets, in any order, against the policy."""
    rng = random.Random(seed)
    tasks = [Task(m, shard, f"m{m}") for m in range(4) for shard in range(rng.randint(1, 9))]
    policy = Dispatch(tasks, slots=3, max_attempts=2, no_progress_s=1e9, now=0.0)
    alive: set[int] = set()
    held: dict[int, Task] = {}
    said: set[str] = set()
    submitted_after: list[str] = []

    def carry_out(actions: Iterable[object]) -> None:
        for action in actions:
            if isinstance(action, Start):
                alive.add(action.worker)
                carry_out(policy.ready(action.worker))
            elif isinstance(action, Submit):
                assert action.worker not in held
                held[action.worker] = action.task
                if action.task.resident in said:
                    submitted_after.append(action.task.resident)

    carry_out(policy.begin())
    while not policy.over:
        worker = rng.choice(sorted(held))
        task = held.pop(worker)
        luck = rng.random()
        if luck < 0.5:
            carry_out(policy.finished(worker, receipt(task), now=0.0))
        elif luck < 0.65:
            carry_out(policy.failed(worker, task, "raised"))
        elif luck < 0.75:
            alive.discard(worker)
            carry_out(policy.lost(worker, "gone"))
        else:
            said.add(task.resident)
            carry_out(policy.spent(worker, task, "spent"))
        outcome = policy.outcome()
        groups = (outcome.receipts, outcome.failures, outcome.spent)
        assert sum(map(len, groups)) == len(set().union(*groups))
    outcome = policy.outcome()
    decided = {*outcome.receipts, *outcome.failures, *outcome.spent}
    assert decided == set(tasks) or outcome.gave_up is not None
    assert not submitted_after
    assert {task.resident for task in outcome.spent} <= said
    # Strays change nothing.
    assert policy.spent(99, tasks[0], "late") == []
    assert policy.outcome() == outcome
