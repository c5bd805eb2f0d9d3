"""Workers that are told to end: what they hold is finished or put back, and nobody is blamed."""

import random
from dataclasses import replace

import pytest
from unit.test_dispatch import Simulation, World, grid, receipt, simulate

from raybench.core.work import Event, Task
from raybench.runners.dispatch import MAX_RELEASES, Action, Dispatch, Start, Stop, Submit
from raybench.runners.places import MAX_LOSSES

TASKS = grid(1, 4)


def begun(*, slots: int = 1, attempts: int = 3, seconds: float | None = 10.0) -> Dispatch:
    """A policy whose first worker has one task behind it, which took `seconds`, and holds another.

    None: the task is its first.
    """
    policy = Dispatch(TASKS, slots=slots, max_attempts=attempts, no_progress_s=1e6, now=0.0)
    policy.begin()
    policy.ready(0)
    if seconds is not None:
        # The first task of a worker loads the model too, so that the second one is what counts.
        for now, task in enumerate(TASKS[:2], 1):
            policy.finished(0, replace(receipt(task), seconds=seconds), now=float(now))
    return policy


def submits(actions: list[Action]) -> list[tuple[int, Task]]:
    return [(action.worker, action.task) for action in actions if isinstance(action, Submit)]


def kinds(actions: list[Action]) -> list[str]:
    return [action.kind for action in actions if isinstance(action, Event)]


def test_a_task_that_fits_is_finished_and_its_worker_gets_no_other() -> None:
    policy = begun()
    assert policy.leaving(0, "notice", now=5.0, until=12.5) == []
    actions = policy.finished(0, replace(receipt(TASKS[2]), seconds=10.0), now=12.0)
    assert kinds(actions) == ["done", "worker-left"]
    assert [a for a in actions if isinstance(a, Stop | Start)] == [Stop(worker=0), Start(worker=1)]
    assert submits(actions) == []
    assert submits(policy.ready(1)) == [(1, TASKS[3])]


def test_a_task_that_does_not_fit_is_put_back_at_once_and_first() -> None:
    policy = begun()
    actions = policy.leaving(0, "notice", now=5.0, until=11.5)
    released = next(a for a in actions if isinstance(a, Event) and a.kind == "released")
    assert released == Event(
        kind="released",
        task=TASKS[2],
        text="put back: notice; it needs 7.0 s more, 6.5 s are left",
        worker=0,
    )
    assert [a for a in actions if isinstance(a, Stop | Start)] == [Stop(worker=0), Start(worker=1)]
    assert submits(policy.ready(1)) == [(1, TASKS[2])]


def test_a_release_costs_no_attempt() -> None:
    policy = begun(attempts=2)
    policy.leaving(0, "notice", now=5.0, until=5.0)
    policy.ready(1)
    assert kinds(policy.failed(1, TASKS[2], "raised"))[0] == "retry"
    policy.finished(1, receipt(TASKS[3]), now=6.0)
    assert kinds(policy.failed(1, TASKS[2], "raised"))[0] == "failed"


def test_with_nothing_known_a_task_goes_on_until_the_time_is_up() -> None:
    policy = begun(seconds=None)
    assert policy.leaving(0, "notice", now=5.0, until=9.0) == []
    assert policy.tick(8.9) == []
    actions = policy.tick(9.0)
    assert kinds(actions) == ["released", "worker-left"]
    assert submits(policy.ready(1)) == [(1, TASKS[0])]


def test_an_estimate_that_was_wrong_ends_with_the_time() -> None:
    policy = begun(seconds=1.0)
    assert policy.leaving(0, "notice", now=2.1, until=9.0) == []
    assert "released" in kinds(policy.tick(9.5))


def test_a_worker_says_itself_that_it_leaves() -> None:
    """With its receipt, or with a release: then no estimate is asked."""
    policy = begun(slots=2)
    assert policy.leaving(0, "told", now=3.0) == []
    assert Stop(worker=0) in policy.finished(0, receipt(TASKS[2]), now=3.0)
    policy = begun(slots=2)
    policy.leaving(0, "told", now=3.0)
    actions = policy.released(0, TASKS[2], "no time", now=3.0)
    assert kinds(actions) == ["released", "worker-left"]
    assert Stop(worker=0) in actions
    # A second account of the same thing changes nothing.
    assert policy.released(0, TASKS[2], "no time", now=3.0) == []
    assert policy.lost(0, "gone", told=True) == []


def test_one_without_work_or_not_ready_leaves_at_once() -> None:
    policy = Dispatch(TASKS, slots=2, max_attempts=3, no_progress_s=1e6, now=0.0)
    policy.begin()
    actions = policy.leaving(1, "notice", now=1.0, until=31.0)
    assert [a for a in actions if isinstance(a, Stop | Start)] == [Stop(worker=1), Start(worker=2)]
    policy.ready(0)
    policy.ready(2)
    for worker, task in zip((0, 2, 0), TASKS, strict=False):
        policy.finished(worker, receipt(task), now=1.0)
    actions = policy.leaving(0, "notice", now=3.0, until=33.0)
    assert actions == [
        Stop(worker=0),
        Event(kind="worker-left", text="worker 0: notice", worker=0),
    ]


def test_a_death_by_request_costs_no_attempt() -> None:
    policy = begun(attempts=1)
    actions = policy.lost(0, "its node is gone", told=True)
    assert kinds(actions) == ["worker-left", "released"]
    assert submits(policy.ready(1)) == [(1, TASKS[2])]


def test_one_that_dies_while_it_leaves_was_told() -> None:
    policy = begun(attempts=1)
    policy.leaving(0, "notice", now=5.0, until=1e6)
    assert kinds(policy.lost(0, "killed")) == ["worker-left", "released"]


def test_a_task_that_always_ends_its_workers_is_charged_in_the_end() -> None:
    """Where something answers to its memory with SIGTERM, say."""
    tasks = grid(1, 30)
    policy = Dispatch(tasks, slots=1, max_attempts=2, no_progress_s=1e6, now=0.0)
    actions, releases = policy.begin(), 0
    while not policy.over:
        following: list[Action] = []
        for action in actions:
            if isinstance(action, Start):
                following += policy.ready(action.worker)
            elif isinstance(action, Submit) and action.task == tasks[5]:
                following += policy.lost(action.worker, "told", told=True)
                releases += 1
            elif isinstance(action, Submit):
                following += policy.finished(action.worker, receipt(action.task), now=1.0)
        actions = following
    outcome = policy.outcome()
    assert outcome.gave_up is None
    assert list(outcome.failures) == [tasks[5]]
    assert releases == MAX_RELEASES + 2


def test_a_slot_where_nothing_gets_done_any_more_closes() -> None:
    policy = Dispatch(grid(1, 99), slots=2, max_attempts=3, no_progress_s=1e6, now=0.0)
    policy.begin()
    worker = 0
    for _ in range(MAX_LOSSES - 1):
        actions = policy.lost(worker, "told", told=True)
        worker = next(action.worker for action in actions if isinstance(action, Start))
    actions = policy.lost(worker, "told", told=True)
    assert kinds(actions) == ["worker-left", "note"]
    assert not [action for action in actions if isinstance(action, Start)]


@pytest.mark.parametrize("grace", [0.0, 0.3, 1.0])
def test_on_spot_machines_every_task_is_done_once(grace: float) -> None:
    """Every fifth task is met by a notice half through; with a second's grace none is repeated."""
    tasks = grid(3, 60)
    world = World(rng=random.Random(3), told=0.2, grace=grace)
    outcome, simulation = simulate(tasks, world, slots=6, attempts=1, deadline=1e6)
    assert outcome.receipts.keys() == set(tasks)
    assert outcome.failures == {}
    repeated = sum(simulation.submits.values()) - len(tasks)
    released = sum(event.kind == "released" for event in simulation.events)
    assert repeated == released
    assert (released == 0) is (grace == 1.0)
    left = sum(event.kind == "worker-left" for event in simulation.events)
    assert left > 10


def test_the_simulation_ends_a_worker_only_once() -> None:
    simulation = Simulation(begun(), World(), slots=1)
    with pytest.raises(AssertionError, match="ended twice"):
        simulation.end(7)


def test_room_that_comes_later_is_filled_and_less_of_it_changes_nothing() -> None:
    tasks = [Task(0, shard, "m") for shard in range(4)]
    policy = Dispatch(tasks, slots=1, max_attempts=3, no_progress_s=60.0, now=0.0)
    assert policy.begin() == [Start(worker=0)]
    assert submits(policy.ready(0)) == [(0, tasks[0])]
    assert policy.widen(1) == policy.widen(0) == []
    assert policy.widen(3) == [Start(worker=1), Start(worker=2)]
    assert policy.widen(3) == []
    assert submits(policy.ready(2)) == [(2, tasks[1])]
    # No more than there are tasks, now and later.
    assert policy.widen(9) == [Start(worker=3)]
    policy.finished(0, receipt(tasks[0]), now=1.0)
    assert policy.widen(10) == []


def test_a_slot_that_was_added_closes_as_any_other() -> None:
    tasks = [Task(0, shard, "m") for shard in range(3)]
    policy = Dispatch(tasks, slots=1, max_attempts=1, no_progress_s=60.0, now=0.0)
    policy.begin()
    policy.ready(0)
    policy.widen(2)
    assert "going on with 1 of 2 workers: no" in [
        action.text for action in policy.lost(1, "no") if isinstance(action, Event)
    ]
    assert policy.widen(2) == []
