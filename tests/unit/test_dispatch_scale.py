"""The policy at the size of a large leaderboard, in simulated time: how near the best, how costly.

1,000 workers, 500 models, 200,000 shards. A shard's cost is its model's times 0.7 to 1.3; loading a
model takes seconds that differ by model and count where a worker changes to it.

No schedule is shorter than both of these (the bound):

- all work and the loads that nothing spares, shared evenly: each model is loaded once, and each
  worker beyond the number of models loads at least the model that loads fastest;
- the longest shard, after its model is loaded.
"""

import heapq
import math
import random
import time
from dataclasses import dataclass, field

import pytest

from raybench.core.work import Receipt, Task
from raybench.runners.dispatch import Action, Dispatch, Start, Submit

WORKERS, MODELS, SHARDS = 1_000, 500, 200_000


@dataclass(frozen=True, kw_only=True)
class World:
    """What each shard costs and each model takes to load, in seconds."""

    cost: dict[Task, float]
    load: dict[str, float]

    def bound(self, workers: int) -> float:
        spared = max(0, workers - len(self.load)) * min(self.load.values())
        total = sum(self.cost.values()) + sum(self.load.values()) + spared
        longest = max(cost + self.load[task.resident] for task, cost in self.cost.items())
        return max(total / workers, longest)


def make_world(seed: int, *, sizes: float, costs: float) -> World:
    """Return a world whose models differ in size and cost by these standard deviations (log)."""
    rng = random.Random(seed)
    weights = [math.exp(rng.gauss(0, sizes)) for _ in range(MODELS)]
    counts = [max(1, int(SHARDS * weight / sum(weights))) for weight in weights]
    counts[0] += SHARDS - sum(counts)
    means = [5 * math.exp(rng.gauss(0, costs)) for _ in range(MODELS)]
    cost = {
        Task(model, shard, f"model-{model}"): means[model] * rng.uniform(0.7, 1.3)
        for model in range(MODELS)
        for shard in range(counts[model])
    }
    load = {f"model-{model}": rng.uniform(5, 30) for model in range(MODELS)}
    assert len(cost) == SHARDS
    return World(cost=cost, load=load)


@dataclass
class Run:
    """One run in simulated time: when it ended, how many loads it took, what deciding cost."""

    world: World
    now: float = 0.0
    loads: int = 0
    cpu: float = 0.0
    queue: list[tuple[float, int, int, Task | None, float]] = field(default_factory=list)
    resident: dict[int, str] = field(default_factory=dict)
    count: int = 0

    def __call__(self, workers: int) -> "Run":
        begun = time.process_time()
        policy = Dispatch(
            self.world.cost, slots=workers, max_attempts=3, no_progress_s=math.inf, now=0.0
        )
        actions = policy.begin()
        self.cpu += time.process_time() - begun
        self.carry_out(actions)
        while not policy.over:
            self.now, _, worker, task, seconds = heapq.heappop(self.queue)
            begun = time.process_time()
            if task is None:
                actions = policy.ready(worker)
            else:
                actions = policy.finished(worker, receipt(task, seconds), now=self.now)
            self.cpu += time.process_time() - begun
            self.carry_out(actions)
        assert len(policy.outcome().receipts) == len(self.world.cost)
        return self

    def carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.later(0.0, action.worker, None)
            elif isinstance(action, Submit):
                seconds = self.world.cost[action.task]
                if self.resident.get(action.worker) != action.task.resident:
                    self.resident[action.worker] = action.task.resident
                    seconds += self.world.load[action.task.resident]
                    self.loads += 1
                self.later(seconds, action.worker, action.task)

    def later(self, seconds: float, worker: int, task: Task | None) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + seconds, self.count, worker, task, seconds))


def receipt(task: Task, seconds: float) -> Receipt:
    return Receipt(
        task=task, file="f", sha256="0", size=1, rows=1, errors=0, queries=0, seconds=seconds
    )


@pytest.mark.parametrize(
    ("seed", "sizes", "costs"),
    [
        (0, 1.0, 1.0),
        pytest.param(1, 0.3, 0.3, marks=pytest.mark.slow),
        pytest.param(2, 2.0, 1.5, marks=pytest.mark.slow),
        pytest.param(3, 1.0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_makespan_is_near_the_bound_and_deciding_is_cheap(
    seed: int, sizes: float, costs: float
) -> None:
    world = make_world(seed, sizes=sizes, costs=costs)
    run = Run(world)(WORKERS)
    assert run.now <= 1.05 * world.bound(WORKERS)
    assert run.cpu < 10.0
    # Workers keep their model: on average they load but a few.
    assert run.loads < 4 * WORKERS


def test_a_worker_stands_by_where_it_would_be_late_and_helps_where_that_was_wrong() -> None:
    """Shards of "a" take a second, its loading a hundred; one more worker would only be late."""
    tasks = [Task(0, shard, "a") for shard in range(6)] + [Task(1, 0, "b"), Task(2, 0, "c")]
    policy = Dispatch(tasks, slots=3, max_attempts=3, no_progress_s=1e6, now=0.0)
    held: dict[int, Task] = {}

    def follow(actions: list[Action]) -> int:
        given = {action.worker: action.task for action in actions if isinstance(action, Submit)}
        held.update(given)
        return len(given)

    def finish(worker: int, seconds: float, now: float) -> int:
        return follow(policy.finished(worker, receipt(held.pop(worker), seconds), now=now))

    policy.begin()
    for worker in range(3):
        follow(policy.ready(worker))
    first, second, third = (
        next(worker for worker, task in held.items() if task.resident == name) for name in "abc"
    )
    assert finish(first, 101.0, 101.0) == 1
    assert finish(first, 1.0, 102.0) == 1
    assert finish(second, 5.0, 103.0) == 1  # what loading takes is not known: it helps
    assert held[second].resident == "a"
    assert finish(second, 101.0, 204.0) == 1  # now it is
    assert finish(third, 205.0, 205.0) == 0
    assert follow(policy.tick(206.0)) == 0
    assert follow(policy.tick(250.0)) == 0
    assert follow(policy.tick(400.0)) == 1
    assert held[third].resident == "a"


def test_a_model_that_kills_its_workers_stops_no_other() -> None:
    tasks = [Task(model, shard, f"m{model}") for model in range(6) for shard in range(40)]
    policy = Dispatch(tasks, slots=2, max_attempts=3, no_progress_s=1e6, now=0.0)
    actions, now = policy.begin(), 0.0
    while not policy.over:
        following: list[Action] = []
        for action in actions:
            now += 1.0
            if isinstance(action, Start):
                following += policy.ready(action.worker)
            elif isinstance(action, Submit) and action.task.resident == "m0":
                following += policy.lost(action.worker, "killed")
            elif isinstance(action, Submit):
                following += policy.finished(action.worker, receipt(action.task, 1.0), now=now)
        actions = following
    done = policy.outcome().receipts
    assert {task for task in tasks if task.resident != "m0"} == set(done)
