"""What every runner owes its caller, whatever it runs on."""

import threading
import time
from functools import partial
from pathlib import Path

import pytest
from runners.faulty_worker import FaultyWorker, calls, make_none

from raybench.core.errors import Interrupted
from raybench.core.work import Event, Resources, Runner, Task

pytestmark = pytest.mark.timeout(120)

TASKS = [Task(m, s, f"model-{m}") for s in range(4) for m in range(2)]


def never() -> None:
    return None


def test_every_task_done_once(runner: Runner, tmp_path: Path) -> None:
    events: list[Event] = []
    outcome = runner(
        partial(FaultyWorker, str(tmp_path)),
        iter(TASKS),
        Resources(),
        listener=events.append,
        stop=never,
    )
    assert set(outcome.receipts) == set(TASKS)
    assert all(receipt.task == task for task, receipt in outcome.receipts.items())
    assert (outcome.failures, outcome.gave_up) == ({}, None)
    done = [event for event in events if event.kind == "done"]
    assert sorted(event.task for event in done) == sorted(TASKS)
    assert all(event.receipt is outcome.receipts[event.task] for event in done)
    assert len(calls(tmp_path)) == len(TASKS)


def test_no_tasks_no_worker(runner: Runner) -> None:
    outcome = runner(make_none, [], Resources(), listener=lambda event: None, stop=never)
    assert (outcome.receipts, outcome.failures, outcome.gave_up) == ({}, {}, None)


def test_poison_task_is_reported_and_the_rest_finish(runner: Runner, tmp_path: Path) -> None:
    events: list[Event] = []
    tasks = [Task(0, shard, "m") for shard in range(6)]
    outcome = runner(
        partial(FaultyWorker, str(tmp_path), raises=frozenset({2}), raises_once=frozenset({4})),
        tasks,
        Resources(max_attempts=3),
        listener=events.append,
        stop=never,
    )
    assert set(outcome.receipts) == set(tasks) - {tasks[2]}
    assert list(outcome.failures) == [tasks[2]]
    assert outcome.failures[tasks[2]].startswith("ArithmeticError: shard 2 is poison")
    assert "faulty_worker.py" in outcome.failures[tasks[2]]
    attempts = [shard for shard, _, _ in calls(tmp_path)]
    assert [attempts.count(shard) for shard in range(6)] == [1, 1, 3, 1, 2, 1]
    retried = [event.task.shard for event in events if event.kind == "retry"]
    assert sorted(retried) == [2, 2, 4]
    assert [event.task.shard for event in events if event.kind == "failed"] == [2]


def test_worker_that_cannot_be_made_ends_the_run(runner: Runner) -> None:
    begun = time.monotonic()
    outcome = runner(make_none, TASKS, Resources(), listener=lambda event: None, stop=never)
    assert outcome.gave_up is not None
    assert "LookupError: no weights under that name" in outcome.gave_up
    assert (outcome.receipts, outcome.failures) == ({}, {})
    assert time.monotonic() - begun < 60


def test_stop_raises_with_its_exit_code(runner: Runner, tmp_path: Path) -> None:
    begun = threading.Event()

    def listener(event: Event) -> None:
        if event.kind == "done":
            begun.set()
            listener.at = time.monotonic()

    with pytest.raises(Interrupted) as caught:
        runner(
            partial(FaultyWorker, str(tmp_path), seconds=0.3),
            [Task(0, shard, "m") for shard in range(1000)],
            Resources(),
            listener=listener,
            stop=lambda: 143 if begun.is_set() else None,
        )
    assert caught.value.exit_code == 143
    assert time.monotonic() - listener.at < 5


def test_no_progress_gives_up(runner: Runner, tmp_path: Path) -> None:
    outcome = runner(
        partial(FaultyWorker, str(tmp_path), raises=frozenset(range(50)), seconds=0.2),
        [Task(0, shard, "m") for shard in range(50)],
        Resources(no_progress_s=0.5),
        listener=lambda event: None,
        stop=never,
    )
    assert outcome.gave_up is not None
    assert "no task finished for 0.5 s" in outcome.gave_up
    assert len(outcome.failures) < 50


def test_models_are_not_interleaved(runner: Runner, tmp_path: Path) -> None:
    tasks = [Task(m, s, f"model-{m}") for s in range(10) for m in range(3)]
    outcome = runner(
        partial(FaultyWorker, str(tmp_path), seconds=0.01),
        tasks,
        Resources(actors=2),
        listener=lambda event: None,
        stop=never,
    )
    assert len(outcome.receipts) == len(tasks)
    held: dict[int, list[str]] = {}
    for _, resident, pid in calls(tmp_path):
        if resident not in held.setdefault(pid, [])[-1:]:
            held[pid].append(resident)
    loads = sum(map(len, held.values()))
    # Three models, and at the end both workers may share the last ones.
    assert 3 <= loads <= 3 + 2 * len(held)
