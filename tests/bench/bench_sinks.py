"""What durable state costs: `run()` returns wall seconds for a part, or a shard, of 16 images.

- ``commit_s_per_part``: committing a part (encode, write, two fsyncs, link), and
  ``commit_over_bare_write``: the same over writing as many bytes atomically and no more;
- ``resume_s_per_shard``: a run with nothing left to do finds that out, over 10,000 shards;
- ``adopt_s_per_shard``: parts that a dead driver never listed are read whole and listed;
- ``load_rows_s_per_shard``: the rows of a complete measurement are read back.

Files lie in ``results/``, on the disk that results go to, and are removed afterwards.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from paired import paired_ratio, spread, wall_seconds
from torch import Tensor

from raybench.core.keys import digest
from raybench.core.plan import Measurement, Plan, cut_shards, part_name
from raybench.core.types import Access, Batch, DatasetInfo, ModelInfo, Shard
from raybench.core.work import Receipt, Task
from raybench.data.memory import ArrayDataset
from raybench.driver import open_manifests
from raybench.evaluations.lime import LimeEvaluation
from raybench.job import Job, result_folders
from raybench.models.torch_model import TorchModel
from raybench.sinks.parts import commit_part, write_atomically
from raybench.sinks.store import (
    adopt,
    load_rows,
    new_manifest,
    save_manifest,
    with_receipts,
)

RESULTS = Path(__file__).resolve().parents[2] / "results"
SHAPE = (1, 28, 28)
SHARD_SIZE = 16
NUM_SHARDS = 10_000
NUM_PARTS = 400
ROUND = 20
REPEATS = 3


class TwoPixels(torch.nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :2, 0]


def run() -> dict[str, object]:
    """Return the seconds and ratios named in the module's docstring, each with its range."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix="bench-sinks-") as scratch:
        work = make_work(Path(scratch))
        return {**commit_and_read(work), **resume(work)}


@dataclass(frozen=True, slots=True)
class Work:
    """A job of NUM_SHARDS shards, and the rows that stand for each of them."""

    job: Job
    shards: tuple[Shard, ...]
    rows: pa.RecordBatch

    @property
    def measurement(self) -> Measurement:
        return self.job.plan.measurements[0]

    @property
    def folder(self) -> Path:
        return result_folders(self.job)[0]

    @property
    def metadata(self) -> dict[str, object]:
        return {"measurement": self.measurement.describe(), "shard": 0}

    def rows_of(self, shard: Shard) -> pa.RecordBatch:
        column = self.rows.schema.get_field_index("sample_id")
        field = self.rows.schema.field(column)
        return self.rows.set_column(column, field, pa.array(shard.ids, type=field.type))

    def name_of(self, shard: Shard) -> str:
        return part_name(self.measurement.key, shard)


def make_work(out: Path) -> Work:
    model = ModelInfo(
        spec="python:bench:TwoPixels",
        name="two-pixels",
        access=Access.LOGITS,
        input_shape=SHAPE,
        num_classes=2,
        fingerprint=digest("two-pixels"),
    )
    ids = tuple(f"test/{index}" for index in range(NUM_SHARDS * SHARD_SIZE))
    dataset = ArrayDataset(
        info=DatasetInfo(
            spec="npz:bench.npz",
            name="bench",
            shape=SHAPE,
            num_classes=2,
            size=len(ids),
            has_labels=False,
            fingerprint=digest("bench"),
        ),
        ids=ids,
        sources=ids,
        # Nothing here reads images but the shard below; all share one.
        pixels=np.broadcast_to(
            np.random.default_rng(0).random(SHAPE, dtype=np.float32), (len(ids), *SHAPE)
        ),
        scale=1,
        targets=None,
    )
    evaluation = LimeEvaluation(reading="grid", samples=200).resolved(SHAPE)
    measurement = Measurement(model=model, dataset=dataset.info, evaluation=evaluation, seed=0)
    shards = cut_shards(ids, SHARD_SIZE)
    batch: Batch = dataset.read(shards[0].ids)
    rows = evaluation(TorchModel(TwoPixels(), model), batch, seed=0, batch_size=128)
    plan = Plan(out=str(out), measurements=(measurement,), shard_size=SHARD_SIZE)
    job = Job(plan=plan, dataset=dataset, baseline="m", twins=True, notes=())
    return Work(job, shards, rows)


def commit_and_read(work: Work) -> dict[str, object]:
    folder, metadata = work.folder, work.metadata
    shards = work.shards[:NUM_PARTS]
    parts = [(work.name_of(shard), work.rows_of(shard)) for shard in shards]
    content_size = commit_part(folder / "size", parts[0][0], parts[0][1], metadata).size
    content = np.random.default_rng(0).bytes(content_size)

    def commit(into: Path, some: list[tuple[str, pa.RecordBatch]]) -> None:
        for name, rows in some:
            commit_part(into, name, rows, metadata)

    rounds = [parts[start : start + ROUND] for start in range(0, NUM_PARTS, ROUND)]
    commits = [wall_seconds(partial(commit, folder, some)) / ROUND for some in rounds]
    # A part is committed once: each pair goes to a folder of its own.
    fresh = count()
    over_bare = paired_ratio(
        lambda: commit(folder / f"commit-{next(fresh)}", rounds[0]),
        lambda: [write_atomically(folder / "bare" / name, content) for name, _ in rounds[0]],
        len(rounds) // 2,
        seconds=wall_seconds,
    )

    bare = new_manifest(work.measurement, shards, SHARD_SIZE, {})
    adopted, notes = adopt(folder, bare)
    assert adopted.complete, notes
    adopting = [wall_seconds(lambda: adopt(folder, bare)) / NUM_PARTS for _ in range(REPEATS)]
    loading = [wall_seconds(lambda: load_rows(folder, adopted)) / NUM_PARTS for _ in range(REPEATS)]
    return {
        "commit_s_per_part": spread(commits),
        "commit_over_bare_write": over_bare,
        "adopt_s_per_shard": spread(adopting),
        "load_rows_s_per_shard": spread(loading),
    }


def resume(work: Work) -> dict[str, object]:
    """Time `open_manifests` over files of the right name and size that the manifest lists."""
    folder, shards = work.folder, work.shards
    part = commit_part(folder / "one", work.name_of(shards[0]), work.rows, work.metadata)
    content = (folder / "one" / part.file).read_bytes()
    receipts = []
    for shard in shards:
        name = work.name_of(shard)
        (folder / name).write_bytes(content)
        receipts.append(
            Receipt(
                task=Task(0, shard.index, work.measurement.model.fingerprint),
                file=name,
                sha256=part.sha256,
                size=part.size,
                rows=SHARD_SIZE,
                errors=0,
                queries=SHARD_SIZE,
                seconds=1.0,
            )
        )
    manifest = new_manifest(work.measurement, shards, SHARD_SIZE, {})
    save_manifest(folder, with_receipts(manifest, receipts))

    def reopen() -> None:
        surprises: list[str] = []
        [found] = open_manifests(work.job, resume=True, say=surprises.append)
        assert found.complete, "every shard is there"
        assert not surprises, surprises[:3]

    reopen()
    times = [wall_seconds(reopen) / NUM_SHARDS for _ in range(REPEATS)]
    return {"resume_s_per_shard": spread(times)}


if __name__ == "__main__":
    for key, value in run().items():
        print(key, value)
