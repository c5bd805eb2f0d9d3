"""What a task costs the driver when its worker does nothing: `run()` returns milliseconds."""

import time

from raybench.core.work import Receipt, Resources, Task
from raybench.runners.dispatch import Dispatch, Submit
from raybench.runners.ray import ray_session, run_on_ray

NUM_TASKS = 2_000
NUM_PLANNED = 200_000


class NullWorker:
    def __call__(self, task: Task) -> Receipt:
        return receipt(task)


def receipt(task: Task) -> Receipt:
    return Receipt(
        task=task, file="f", sha256="0", size=1, rows=1, errors=0, queries=0, seconds=0.0
    )


def run() -> dict[str, float]:
    """Return wall and driver CPU milliseconds for each task on Ray, and the policy's share."""
    tasks = [Task(shard % 6, shard, f"model-{shard % 6}") for shard in range(NUM_TASKS)]
    with ray_session(Resources(address="local")):
        # The first run starts the processes; the second is timed from its first receipt.
        run_on_ray(NullWorker, tasks[:4], Resources(), listener=ignore, stop=never)
        first: list[tuple[float, float]] = []

        def listener(event: object) -> None:
            if not first and getattr(event, "receipt", None) is not None:
                first.append((time.perf_counter(), time.process_time()))

        outcome = run_on_ray(NullWorker, tasks, Resources(), listener=listener, stop=never)
        wall, cpu = time.perf_counter() - first[0][0], time.process_time() - first[0][1]
    assert len(outcome.receipts) == NUM_TASKS
    return {
        "ray_wall_ms_per_task": 1e3 * wall / NUM_TASKS,
        "ray_driver_cpu_ms_per_task": 1e3 * cpu / NUM_TASKS,
        "policy_cpu_ms_per_task": 1e3 * plan_seconds() / NUM_PLANNED,
    }


def plan_seconds() -> float:
    """Return the CPU seconds in which the policy alone hands out NUM_PLANNED tasks."""
    tasks = [Task(shard % 6, shard, f"model-{shard % 6}") for shard in range(NUM_PLANNED)]
    begun = time.process_time()
    policy = Dispatch(tasks, slots=16, max_attempts=3, no_progress_s=60.0, now=0.0)
    todo = [action for start in range(len(policy.begin())) for action in policy.ready(start)]
    for action in todo:
        if isinstance(action, Submit):
            todo += policy.finished(action.worker, receipt(action.task), now=0.0)
    assert policy.over
    return time.process_time() - begun


def ignore(event: object) -> None:
    return None


def never() -> None:
    return None


if __name__ == "__main__":
    print(run())
