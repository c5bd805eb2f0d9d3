"""The policy against a fake executor in simulated time: failures, deaths, strays, deadlines."""

import heapq
import math
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.core.work import Event, Outcome, Receipt, Task
from raybench.runners.dispatch import (
    MAX_LOSSES,
    MAX_RELEASES,
    Action,
    Dispatch,
    Start,
    Stop,
    Submit,
)


def receipt(task: Task) -> Receipt:
    return Receipt(
        task=task, file="f", sha256="0", size=1, rows=1, errors=0, queries=0, seconds=0.0
    )


@dataclass(kw_only=True)
class World:
    """A cluster of workers whose every misfortune is a probability or a named task."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    fails: float = 0.0
    dies: float = 0.0
    dies_idle: float = 0.0
    dies_at_start: float = 0.0
    stray: float = 0.0
    hangs: float = 0.0
    told: float = 0.0  # to end, half through a task, within `grace`
    grace: float = 0.3
    raising: frozenset[Task] = frozenset()
    killing: frozenset[Task] = frozenset()
    bad_from: int = 1 << 60  # the first worker of those that cannot be started
    seconds: float = 1.0


class Simulation:
    """Carries out a policy's actions and checks that each one is legal when it comes."""

    def __init__(self, policy: Dispatch, world: World, slots: int) -> None:
        self.policy, self.world, self.slots = policy, world, slots
        self.now = 0.0
        self.queue: list[tuple[float, int, str, int, Task | None]] = []
        self.count = 0
        self.alive: set[int] = set()
        self.ready: set[int] = set()
        self.busy: dict[int, Task] = {}
        self.started: set[int] = set()
        self.residents: dict[int, list[str]] = {}
        self.submits: Counter[Task] = Counter()
        self.verdicts: Counter[Task] = Counter()
        self.events: list[Event] = []

    def run(self) -> Outcome:
        self.carry_out(self.policy.begin())
        for _ in range(100_000):
            if self.policy.over:
                return self.policy.outcome()
            step = 0.25 if self.world.told else 1.0
            if not self.queue or self.queue[0][0] > self.now + step:
                self.now += step
                self.carry_out(self.policy.tick(self.now))
                continue
            self.now, _, kind, worker, task = heapq.heappop(self.queue)
            self.deliver(kind, worker, task)
        raise AssertionError("the policy does not come to an end")

    def later(self, delay: float, kind: str, worker: int, task: Task | None = None) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay, self.count, kind, worker, task))

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.start(action.worker)
            elif isinstance(action, Submit):
                self.submit(action.worker, action.task)
            elif isinstance(action, Stop):
                self.end(action.worker)
            else:
                self.events.append(action)
                if action.kind in ("done", "failed"):
                    self.verdicts[action.task] += 1

    def start(self, worker: int) -> None:
        assert worker not in self.started
        self.started.add(worker)
        self.alive.add(worker)
        assert len(self.alive) <= self.slots
        died = worker >= self.world.bad_from or self.world.rng.random() < self.world.dies_at_start
        self.later(0.1, "lost" if died else "ready", worker)

    def submit(self, worker: int, task: Task) -> None:
        assert worker in self.ready, "given work before it was ready, or after its death"
        assert worker not in self.busy, "given a second task"
        self.busy[worker] = task
        self.submits[task] += 1
        if self.residents.setdefault(worker, [])[-1:] != [task.resident]:
            self.residents[worker].append(task.resident)
        rng, world = self.world.rng, self.world
        if rng.random() < world.told:
            self.later(world.seconds / 2, "told", worker)
        if rng.random() < world.hangs:
            return
        if task in world.killing or rng.random() < world.dies:
            self.later(world.seconds, "lost", worker, task)
            if rng.random() < world.stray and task not in world.killing:
                self.later(world.seconds + rng.random() * 5, "finished", worker, task)
        elif task in world.raising or rng.random() < world.fails:
            self.later(world.seconds, "failed", worker, task)
            if rng.random() < world.stray:
                self.later(world.seconds + rng.random() * 5, "failed", worker, task)
        else:
            self.later(world.seconds, "finished", worker, task)
            if rng.random() < world.stray:
                self.later(world.seconds + rng.random() * 5, "finished", worker, task)
                self.later(world.seconds + rng.random() * 5, "lost-twice", worker, task)
            if rng.random() < world.dies_idle:
                self.later(world.seconds, "lost", worker)

    def deliver(self, kind: str, worker: int, task: Task | None) -> None:
        if kind == "ready":
            self.ready.add(worker)
            self.carry_out(self.policy.ready(worker))
        elif kind == "told":
            notice = self.policy.leaving(
                worker, "told", now=self.now, until=self.now + self.world.grace
            )
            self.carry_out(notice)
        elif kind == "lost" and worker in self.alive:
            self.end(worker)
            self.carry_out(self.policy.lost(worker, "gone"))
        elif kind in ("lost", "lost-twice"):
            if worker not in self.alive:
                self.carry_out(self.policy.lost(worker, "gone again"))
        elif task is not None:
            if self.busy.get(worker) == task:
                del self.busy[worker]
            if kind == "finished":
                # Timings are told only where they matter: most tests want a policy without any.
                seconds = self.world.seconds if self.world.told else 0.0
                done = replace(receipt(task), seconds=seconds)
                self.carry_out(self.policy.finished(worker, done, now=self.now))
            else:
                self.carry_out(self.policy.failed(worker, task, "raised"))

    def end(self, worker: int) -> None:
        assert worker in self.alive, "ended twice"
        for group in (self.alive, self.ready):
            group.discard(worker)
        self.busy.pop(worker, None)
        # Nothing a dead worker was doing is answered, but for the strays above.
        self.queue = [e for e in self.queue if e[3] != worker or self.is_stray(e)]
        heapq.heapify(self.queue)

    def is_stray(self, entry: tuple[float, int, str, int, Task | None]) -> bool:
        return entry[2] == "lost-twice" or (entry[2] == "finished" and self.world.stray > 0)


def simulate(
    tasks: list[Task], world: World, *, slots: int = 2, attempts: int = 3, deadline: float = 60.0
) -> tuple[Outcome, Simulation]:
    policy = Dispatch(tasks, slots=slots, max_attempts=attempts, no_progress_s=deadline, now=0.0)
    simulation = Simulation(policy, world, slots)
    return simulation.run(), simulation


def grid(models: int, shards: int) -> list[Task]:
    return [Task(m, s, f"model-{m}") for s in range(shards) for m in range(models)]


chance = st.sampled_from([0.0, 0.1, 0.5, 0.95])


@settings(max_examples=300, deadline=None)
@given(
    models=st.integers(1, 5),
    shards=st.integers(1, 8),
    slots=st.integers(1, 6),
    attempts=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    fails=chance,
    dies=chance,
    dies_idle=chance,
    dies_at_start=chance,
    stray=chance,
    hangs=st.sampled_from([0.0, 0.0, 0.05]),
    told=chance,
    grace=st.sampled_from([0.0, 0.3, 2.0]),
)
def test_whatever_happens_each_task_gets_at_most_one_verdict_and_the_run_ends(
    models: int, shards: int, slots: int, attempts: int, seed: int, **odds: float
) -> None:
    tasks = grid(models, shards)
    outcome, simulation = simulate(
        tasks, World(rng=random.Random(seed), **odds), slots=slots, attempts=attempts
    )
    assert not outcome.receipts.keys() & outcome.failures.keys()
    assert all(found.task == task for task, found in outcome.receipts.items())
    decided = outcome.receipts.keys() | outcome.failures.keys()
    assert simulation.verdicts == Counter(decided)
    released = Counter(e.task for e in simulation.events if e.kind == "released")
    assert max(released.values(), default=0) <= MAX_RELEASES
    assert all(count <= attempts + released[task] for task, count in simulation.submits.items())
    if outcome.gave_up is None:
        assert decided == set(tasks)
    else:
        assert decided < set(tasks)
        assert outcome.gave_up
    for task in outcome.failures:
        retries = [e for e in simulation.events if e.kind == "retry" and e.task == task]
        assert len(retries) == attempts - 1


@settings(max_examples=100, deadline=None)
@given(
    slots=st.integers(1, 5),
    raising=st.sets(st.sampled_from(grid(3, 5)), max_size=15),
    killing=st.sets(st.sampled_from(grid(3, 5)), max_size=MAX_LOSSES - 1),
    attempts=st.integers(1, 4),
)
def test_poison_fails_after_its_attempts_and_nothing_else_does(
    slots: int, raising: set[Task], killing: set[Task], attempts: int
) -> None:
    tasks = grid(3, 5)
    world = World(raising=frozenset(raising), killing=frozenset(killing))
    outcome, simulation = simulate(tasks, world, slots=slots, attempts=attempts)
    assert outcome.gave_up is None
    assert outcome.failures.keys() == raising | killing
    assert outcome.receipts.keys() == set(tasks) - raising - killing
    # Only what failed was ever tried again: a death charges nobody but the task in flight.
    for task in tasks:
        assert simulation.submits[task] == (attempts if task in raising | killing else 1)


@settings(max_examples=100, deadline=None)
@given(
    models=st.integers(1, 12),
    shards=st.integers(1, 30),
    slots=st.integers(1, 12),
)
def test_no_worker_idles_and_models_are_loaded_seldom(models: int, shards: int, slots: int) -> None:
    tasks = grid(models, shards)
    _, simulation = simulate(tasks, World(), slots=slots)
    workers = min(slots, len(tasks))
    assert simulation.now == pytest.approx(0.1 + math.ceil(len(tasks) / workers))
    loads = sum(map(len, simulation.residents.values()))
    assert models <= loads <= models + workers * (1 + math.log(workers))
    if workers >= models:
        first = [held[0] for held in simulation.residents.values()]
        assert set(first) == {f"model-{m}" for m in range(models)}
        assert max(Counter(first).values()) <= math.ceil(workers / models) + 1


def test_every_worker_helps_the_last_model() -> None:
    tasks = [Task(0, 0, "short"), *(Task(1, s, "long") for s in range(40))]
    _, simulation = simulate(tasks, World(), slots=4)
    assert all("long" in held for held in simulation.residents.values())
    assert simulation.now == pytest.approx(0.1 + math.ceil(41 / 4))


def test_models_take_turns_in_order_of_appearance() -> None:
    _, simulation = simulate(grid(5, 3), World(), slots=1)
    assert simulation.residents == {0: [f"model-{m}" for m in range(5)]}


def test_the_same_history_gives_the_same_decisions() -> None:
    odds = {"fails": 0.2, "dies": 0.2, "stray": 0.5}
    runs = [
        simulate(grid(4, 20), World(rng=random.Random(7), **odds), slots=3)[1].events
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_failures_carry_the_last_error() -> None:
    task = Task(0, 0, "m")
    policy = Dispatch([task], slots=1, max_attempts=2, no_progress_s=60.0, now=0.0)
    assert policy.begin() == [Start(worker=0)]
    assert Submit(worker=0, task=task) in policy.ready(0)
    again = policy.failed(0, task, "first")
    assert again[0] == Event(kind="retry", task=task, text="attempt 1 of 2 failed: first", worker=0)
    assert Submit(worker=0, task=task) in again
    last = policy.lost(0, "second")
    assert [event.kind for event in last if isinstance(event, Event)] == ["worker-lost", "failed"]
    assert policy.over
    assert policy.outcome() == Outcome({}, {task: "the worker died computing it: second"}, None)


def test_a_late_receipt_counts_once_and_spares_the_second_try() -> None:
    task, other, third = grid(1, 3)
    policy = Dispatch([task, other, third], slots=1, max_attempts=3, no_progress_s=60.0, now=0.0)
    policy.begin()
    policy.ready(0)
    assert Start(worker=1) in policy.lost(0, "node gone")
    assert Submit(worker=1, task=other) in policy.ready(1)
    assert policy.ready(1) == []
    assert [event.kind for event in policy.finished(0, receipt(task), now=1.0)] == ["done"]
    assert policy.finished(0, receipt(task), now=1.0) == []
    assert Submit(worker=1, task=third) in policy.failed(1, other, "raised")
    # The task decided by the stray is out of the queue: what failed comes next.
    assert Submit(worker=1, task=other) in policy.finished(1, receipt(third), now=1.0)
    policy.finished(1, receipt(other), now=2.0)
    assert policy.over
    assert policy.outcome().receipts.keys() == {task, other, third}


def test_the_model_of_a_dead_worker_is_held_by_nobody() -> None:
    tasks = [*(Task(0, s, "large") for s in range(20)), *(Task(1, s, "small") for s in range(3))]
    policy = Dispatch(tasks, slots=2, max_attempts=3, no_progress_s=60.0, now=0.0)
    policy.begin()
    policy.ready(0)
    assert Submit(worker=1, task=tasks[20]) in policy.ready(1)
    policy.lost(1, "gone")
    assert Submit(worker=2, task=tasks[21]) in policy.ready(2)


def test_no_more_workers_than_tasks_and_no_replacement_without_need() -> None:
    tasks = grid(1, 2)
    policy = Dispatch(tasks, slots=5, max_attempts=3, no_progress_s=60.0, now=0.0)
    assert policy.begin() == [Start(worker=0), Start(worker=1)]
    policy.ready(0)
    policy.finished(0, receipt(tasks[0]), now=0.0)
    assert not [action for action in policy.lost(1, "gone") if isinstance(action, Start)]
    assert [action for action in policy.lost(0, "gone") if isinstance(action, Start)]


def test_a_slot_closes_for_losses_in_a_row_only() -> None:
    tasks = grid(1, 5 * MAX_LOSSES)
    often = World(killing=frozenset(tasks[::2]))
    outcome, _ = simulate(tasks, often, slots=1, attempts=1)
    assert outcome.gave_up is None
    assert outcome.receipts.keys() == set(tasks[1::2])


def test_a_slot_closes_for_failed_starts_in_a_row_only() -> None:
    policy = Dispatch(grid(1, 9), slots=1, max_attempts=3, no_progress_s=60.0, now=0.0)
    policy.begin()
    for worker in (0, 3, 6):
        policy.lost(worker, "gone at its start")
        policy.lost(worker + 1, "gone at its start")
        assert policy.outcome().gave_up is None
        policy.ready(worker + 2)
        assert Start(worker=worker + 3) in policy.lost(worker + 2, "gone at work")
    for worker in (9, 10, 11):
        policy.lost(worker, "gone at its start")
    assert policy.outcome().gave_up is not None


def test_start_failures_end_the_run_soon_and_name_the_reason() -> None:
    outcome, simulation = simulate(grid(3, 100), World(dies_at_start=1.0), slots=8)
    assert outcome.gave_up == "no worker could be started; the last one was lost at its start: gone"
    assert len(simulation.started) <= 16
    outcome, simulation = simulate(grid(3, 100), World(dies_at_start=1.0), slots=1)
    assert len(simulation.started) == 3


def test_one_bad_slot_is_closed_and_the_others_go_on() -> None:
    tasks = grid(1, 200)
    outcome, simulation = simulate(tasks, World(bad_from=1), slots=2)
    assert outcome.gave_up is None
    assert outcome.receipts.keys() == set(tasks)
    assert simulation.started == {0, 1, 2, 3}
    notes = [event.text for event in simulation.events if event.kind == "note"]
    assert notes == ["going on with 1 of 2 workers: gone"]


def test_a_cluster_where_everything_dies_is_given_up() -> None:
    outcome, simulation = simulate(grid(1, 1000), World(dies=1.0), slots=2)
    assert outcome.gave_up is not None
    assert outcome.gave_up.startswith("no worker could keep running")
    assert len(simulation.started) == 2 * MAX_LOSSES


def test_no_progress_names_what_hangs() -> None:
    outcome, simulation = simulate(grid(1, 4), World(hangs=1.0), slots=2, deadline=30.0)
    assert outcome.gave_up is not None
    assert "no task finished for 30 s: 4 undecided, 2 of 2 workers ready" in outcome.gave_up
    assert str(Task(0, 0, "model-0")) in outcome.gave_up
    assert 30 < simulation.now < 33


def test_progress_of_others_keeps_a_run_alive() -> None:
    outcome, simulation = simulate(grid(1, 50), World(seconds=10.0), slots=1, deadline=11.0)
    assert outcome.gave_up is None
    assert simulation.now > 490


@pytest.mark.parametrize("models", [3, 100_000])
def test_planning_200_000_tasks_takes_seconds(models: int) -> None:
    tasks = grid(models, 200_000 // models)
    begun = time.process_time()
    policy = Dispatch(tasks, slots=64, max_attempts=3, no_progress_s=60.0, now=0.0)
    started = [action.worker for action in policy.begin()]
    todo = [action for worker in started for action in policy.ready(worker)]
    for action in todo:
        if isinstance(action, Submit):
            todo += policy.finished(action.worker, receipt(action.task), now=0.0)
    assert policy.over
    assert len(policy.outcome().receipts) == len(tasks)
    assert time.process_time() - begun < 15
