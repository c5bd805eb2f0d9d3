"""A measurement stored as a run would store it, without a run."""

from pathlib import Path

from toy import ToyDataset, ToyModel

from raybench.core.plan import Evaluation, Measurement, cut_shards, part_name
from raybench.core.work import Receipt, Task
from raybench.sinks.parts import commit_part
from raybench.sinks.store import new_manifest, save_manifest, with_receipts


def store_scores(out: Path, model: ToyModel, evaluation: Evaluation, data: ToyDataset) -> Path:
    """Store what `evaluation` finds of `model`, in one shard, and return its folder.

    Images that cannot be read must be the last ones.
    """
    measurement = Measurement(model=model.info, dataset=data.info, evaluation=evaluation, seed=0)
    [shard] = cut_shards(data.ids, len(data.ids))
    folder = out / measurement.folder
    rows = evaluation(model, data.read(shard.ids), seed=0, batch_size=64)
    metadata = {"measurement": measurement.describe(), "shard": 0}
    part = commit_part(folder, part_name(measurement.key, shard), rows, metadata)
    receipt = Receipt(
        task=Task(0, 0, "m"),
        file=part.file,
        sha256=part.sha256,
        size=part.size,
        rows=part.rows,
        errors=part.errors,
        queries=evaluation.queries(part.rows - part.errors),
        seconds=1.0,
    )
    manifest = new_manifest(measurement, (shard,), len(data.ids), {})
    save_manifest(folder, with_receipts(manifest, [receipt]))
    return folder
