"""What a run costs its driver as images grow: `run()` returns megabytes, bytes and seconds.

The policy, the book and its manifests over a null kernel: receipts are made up, no part is written
and MLflow is not asked. Each size has a process of its own, since a peak only ever grows. No image
is ever in it: workers read them, shard by shard (`tests/runners/test_driver_reads.py`).
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

SIZES = (1_000, 10_000, 100_000, 1_000_000)
SHARD_SIZE = 100
WORKERS = 16


@dataclass(frozen=True)
class Selection:
    """A selection of `size` images as every dataset holds it: their ids, and no pixel."""

    ids: tuple[str, ...]


def run() -> dict[str, float]:
    """Return peak resident megabytes of the driver by number of images, and what one costs."""
    found: dict[str, float] = {}
    peaks: dict[int, float] = {}
    for size in SIZES:
        held = measure(size, traced=True)
        plain = measure(size, traced=False)
        peaks[size] = plain["peak_mb"]
        found[f"memory_driver_peak_mb_{size}"] = plain["peak_mb"]
        found[f"memory_driver_cpu_s_{size}"] = plain["cpu_s"]
        found[f"memory_held_ids_mb_{size}"] = held["ids_mb"]
        found[f"memory_held_rest_mb_{size}"] = held["rest_mb"]
    least, most = SIZES[0], SIZES[-1]
    found["memory_growth_1e3_to_1e6"] = peaks[most] / peaks[least]
    found["memory_bytes_per_image"] = 1e6 * (peaks[most] - peaks[least]) / (most - least)
    last = found[f"memory_held_rest_mb_{most}"] - found[f"memory_held_rest_mb_{least}"]
    found["memory_bytes_per_shard"] = 1e6 * last * SHARD_SIZE / (most - least)
    return found


def measure(size: int, *, traced: bool) -> dict[str, float]:
    """Return the figures of a driver over `size` images, from a process of its own."""
    command = [sys.executable, __file__, str(size), "traced" if traced else "plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def drive(size: int, *, traced: bool) -> dict[str, float]:
    """Drive `size` images through the policy and the book, and return what that took."""
    from raybench.book import Book
    from raybench.core.plan import Measurement, Plan, cut_shards
    from raybench.core.types import Access, DatasetInfo, ModelInfo
    from raybench.core.work import Outcome, Receipt, Task
    from raybench.evaluations.readings import parse_reading
    from raybench.runners.dispatch import Dispatch, Start, Submit
    from raybench.sinks.store import new_manifest

    if traced:
        tracemalloc.start()
    begun = time.process_time()
    base = now_mb(traced)
    data = Selection(tuple(f"test/{index}" for index in range(size)))
    ids_mb = now_mb(traced) - base
    info = DatasetInfo(
        spec=f"null?n={size}",
        name="null",
        shape=(1, 8, 8),
        num_classes=3,
        size=size,
        has_labels=False,
        fingerprint="0" * 64,
    )
    model = ModelInfo(
        spec="null",
        name="null",
        access=Access.SCORES,
        input_shape=(1, 8, 8),
        num_classes=3,
        fingerprint="1" * 64,
    )
    reading = parse_reading("grid", samples=64, shape=info.shape)
    with tempfile.TemporaryDirectory() as out:
        measurement = Measurement(model=model, dataset=info, evaluation=reading, seed=0)
        plan = Plan(out=out, measurements=(measurement,), shard_size=SHARD_SIZE)
        shards = cut_shards(data.ids, SHARD_SIZE)  # held throughout, as by `Job`
        book = Book(plan, [new_manifest(measurement, shards, SHARD_SIZE, {})], [None])
        (Path(out) / measurement.folder).mkdir(parents=True)
        tasks = [Task(0, shard.index, model.fingerprint, SHARD_SIZE) for shard in shards]
        files = [shard.file for shard in book.manifests[0].shards]
        policy = Dispatch(tasks, slots=WORKERS, max_attempts=3, no_progress_s=60.0, now=0.0)
        todo = list(policy.begin())
        while todo:
            following = []
            for action in todo:
                if isinstance(action, Start):
                    following += policy.ready(action.worker)
                elif isinstance(action, Submit):
                    receipt = Receipt(
                        task=action.task,
                        file=files[action.task.shard],
                        sha256=f"{action.task.shard:064x}",
                        size=12_345,
                        rows=SHARD_SIZE,
                        errors=0,
                        queries=64 * SHARD_SIZE,
                        seconds=1.0 + action.task.shard,
                    )
                    following += policy.finished(action.worker, receipt, now=1.0)
                elif action.receipt is not None:
                    book.enter(action.receipt)
            todo = following
        assert policy.over
        outcome: Outcome = policy.outcome()
        book.close(outcome)
        assert book.manifests[0].complete
    total = now_mb(traced) - base
    return {
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "cpu_s": time.process_time() - begun,
        "ids_mb": ids_mb,
        "rest_mb": total - ids_mb,
    }


def now_mb(traced: bool) -> float:
    """Return the megabytes that Python holds now; 0 where nobody counts, since counting costs."""
    return tracemalloc.get_traced_memory()[0] / 1e6 if traced else 0.0


if __name__ == "__main__":
    print(json.dumps(drive(int(sys.argv[1]), traced=sys.argv[2] == "traced")))
