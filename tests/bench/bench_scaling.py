"""Two workers over one, with real work: what Ray and the dispatch cost beside a small CNN.

`run()` scores pieces of a photograph under the grid reading on one Ray actor and on two, in turn:

- ``two_actors_over_one``: images a second of two over those of one. On a machine whose cores share
  caches and memory two processes slow each other down whoever starts them, so
- ``two_processes_over_one`` is the same work in plain processes without Ray, the most there is;
- ``dispatch_share_one_actor`` and ``..._two_actors``: share of the actors' time, between first
  answers and the end, that is not spent in a shard: the way to the driver and back;
- ``ray_start_s``: seconds from nothing to a connected local cluster;
- ``first_shard_s``: from then until the first shard is stored (processes, imports, the model).

Wall time; nothing else should run on the machine.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from bench_lime import photograph
from paired import spread
from torch import nn

from raybench.config import ScoreConfig, make_config
from raybench.core.plan import Plan
from raybench.core.work import Event, Resources, Task
from raybench.job import build_job
from raybench.models.zoo_nets import build
from raybench.runners.ray import run_on_ray
from raybench.runners.ray_session import ray_session
from raybench.runners.worker import WorkerFactory

SHAPE = (3, 32, 32)
SHARD_SIZE, SHARDS, SAMPLES = 4, 14, 400
ROUNDS = 3


def network() -> nn.Module:
    """Return the network that workers load by its name."""
    torch.manual_seed(0)
    return build("cnn3", SHAPE, 10)


def run() -> dict[str, object]:
    """Return the figures named in the module's docstring."""
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.append(here)  # workers look for this module where the driver does
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as scratch:
        plan = make_plan(Path(scratch))
        tasks = [Task(0, index, plan.measurements[0].model.fingerprint) for index in range(SHARDS)]
        begun = time.perf_counter()
        with ray_session(Resources(address="local")):
            started = time.perf_counter() - begun
            timed: dict[int, list[Timing]] = {1: [], 2: []}
            for turn in range(ROUNDS):
                for actors in (1, 2):
                    out = Path(scratch) / f"ray-{turn}-{actors}"
                    timed[actors].append(on_ray(at(plan, out), tasks, actors))
        alone = [
            [in_processes(at(plan, Path(scratch) / f"plain-{turn}-{n}"), tasks, n) for n in (1, 2)]
            for turn in range(ROUNDS)
        ]
    one, two = timed[1], timed[2]
    return {
        "two_actors_over_one": spread([b.rate / a.rate for a, b in zip(one, two, strict=True)]),
        "two_processes_over_one": spread([rates[1] / rates[0] for rates in alone]),
        "dispatch_share_one_actor": spread([timing.idle for timing in one]),
        "dispatch_share_two_actors": spread([timing.idle for timing in two]),
        "ray_start_s": started,
        "first_shard_s": spread([timing.first for timing in one]),
    }


class Timing:
    """When shards were done, by what their receipts say, of a run on `actors` workers."""

    def __init__(self, actors: int) -> None:
        self.actors = actors
        self.begun = time.perf_counter()
        self.done: list[tuple[float, float]] = []

    def __call__(self, event: Event) -> None:
        if event.receipt is not None:
            self.done.append((time.perf_counter(), event.receipt.seconds))

    @property
    def first(self) -> float:
        return self.done[0][0] - self.begun

    def _inside(self) -> tuple[float, list[tuple[float, float]]]:
        """Return the seconds in which all actors had work, and (share in it, seconds) of shards.

        It begins when every actor has done its first shard, which imports and the model slow, and
        ends when the first of them finds no other.
        """
        ends = [at for at, _ in self.done]
        low, high = ends[self.actors - 1], ends[len(ends) - self.actors]
        shares = [
            (max(0.0, min(end, high) - max(end - took, low)) / took, took)
            for end, took in self.done
        ]
        return high - low, shares

    @property
    def rate(self) -> float:
        span, shares = self._inside()
        return sum(share for share, _ in shares) / span

    @property
    def idle(self) -> float:
        span, shares = self._inside()
        return 1 - sum(share * took for share, took in shares) / (self.actors * span)


def make_plan(scratch: Path) -> Plan:
    images = torch.stack([photograph(SHAPE).roll(i, 2) for i in range(SHARDS * SHARD_SIZE)])
    np.savez(scratch / "photos.npz", images=(images.numpy() * 255).astype(np.uint8))
    given = {
        "models": ["python:bench_scaling:network?shape=3x32x32"],
        "data": f"npz:{scratch / 'photos.npz'}",
        "n": len(images),
        "samples": SAMPLES,
        "reading": ["grid"],
        "out": scratch / "out",
        "shard_size": SHARD_SIZE,
        "device": "cpu",
    }
    config = make_config(ScoreConfig, given)
    return build_job(config, lambda _: None).plan


def at(plan: Plan, out: Path) -> Plan:
    return replace(plan, out=str(out))


def on_ray(plan: Plan, tasks: list[Task], actors: int) -> Timing:
    timing = Timing(actors)
    outcome = run_on_ray(
        WorkerFactory(plan), tasks, Resources(actors=actors), listener=timing, stop=lambda: None
    )
    assert len(outcome.receipts) == len(tasks), outcome
    return timing


def in_processes(plan: Plan, tasks: list[Task], count: int) -> float:
    """Return shards a second of `count` processes that each take an equal share of the tasks."""
    context = multiprocessing.get_context("spawn")
    ready, go = context.Barrier(count + 1), context.Barrier(count + 1)
    share = len(tasks) // count
    processes = [
        context.Process(
            target=work, args=(plan, tasks[index * share : (index + 1) * share], ready, go)
        )
        for index in range(count)
    ]
    for process in processes:
        process.start()
    ready.wait(timeout=120)
    begun = time.perf_counter()
    go.wait(timeout=120)
    ready.wait(timeout=300)
    spent = time.perf_counter() - begun
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0, process.exitcode
    return (share - 1) * count / spent


def work(plan: Plan, tasks: list[Task], ready: object, go: object) -> None:
    worker = WorkerFactory(plan)()
    worker(tasks[0])
    ready.wait(timeout=120)  # type: ignore[attr-defined]
    go.wait(timeout=120)  # type: ignore[attr-defined]
    for task in tasks[1:]:
        worker(task)
    ready.wait(timeout=300)  # type: ignore[attr-defined]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for key, value in run().items():
        print(key, value)
