"""Tasks that come in rounds: both runners ask for more, and keep their workers in between."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
from runners.faulty_worker import FaultyWorker, calls

from raybench.core.work import Outcome, Resources, Runner, Task
from raybench.runners.dispatch import Dispatch, Start, Submit


def tasks(first: int, last: int) -> list[Task]:
    return [Task(0, shard, "ab"[shard % 2]) for shard in range(first, last)]


def run(
    runner: Runner, tmp_path: Path, rounds: list[list[Task]], **options: object
) -> tuple[Outcome, list[int]]:
    seen: list[int] = []
    todo = list(rounds)

    def more(outcome: Outcome) -> Iterable[Task]:
        seen.append(len(outcome.receipts) + len(outcome.failures))
        return todo.pop(0) if todo else []

    factory = partial(FaultyWorker, str(tmp_path), **options)
    resources = Resources(actors=2, max_attempts=2)
    outcome = runner(
        factory, todo.pop(0), resources, listener=lambda event: None, stop=lambda: None, more=more
    )
    return outcome, seen


pytestmark = pytest.mark.timeout(120)


def test_rounds_follow_each_other_with_the_same_workers(runner: Runner, tmp_path: Path) -> None:
    outcome, seen = run(runner, tmp_path, [tasks(0, 2), tasks(2, 7), tasks(7, 8)])
    assert sorted(task.shard for task in outcome.receipts) == list(range(8))
    assert seen == [2, 7, 8]
    assert len({process for _, _, process in calls(tmp_path)}) <= 2


def test_failures_are_told_before_the_next_round(runner: Runner, tmp_path: Path) -> None:
    rounds = [tasks(0, 3), tasks(3, 5)]
    outcome, seen = run(runner, tmp_path, rounds, raises=frozenset({1}))
    assert [task.shard for task in outcome.failures] == [1]
    assert seen == [3, 5]
    assert len(outcome.receipts) == 4


def test_an_error_of_the_asker_ends_the_run(runner: Runner, tmp_path: Path) -> None:
    def more(outcome: Outcome) -> Iterable[Task]:
        raise LookupError("no more")

    with pytest.raises(LookupError):
        runner(
            partial(FaultyWorker, str(tmp_path)),
            tasks(0, 2),
            Resources(actors=1),
            listener=lambda event: None,
            stop=lambda: None,
            more=more,
        )


def test_added_tasks_go_to_idle_workers_that_hold_their_model() -> None:
    policy = Dispatch(tasks(0, 1), slots=2, max_attempts=1, no_progress_s=10, now=0)
    assert policy.begin() == [Start(worker=0)]
    policy.ready(0)
    policy.failed(0, Task(0, 0, "a"), "error")
    assert policy.over
    actions = policy.add([Task(0, 1, "b"), Task(0, 2, "a")], now=100)
    assert not policy.over
    assert Start(worker=1) in actions
    assert Submit(worker=0, task=Task(0, 2, "a")) in actions
    policy.tick(105)  # the wait for the next round counts for nothing
    assert not policy.over
    with pytest.raises(AssertionError, match="already given up"):
        policy.add([Task(0, 0, "a")], now=110)
