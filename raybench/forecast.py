"""What a job would cost: shards, queries, memory and time, from a pilot of two shards a model."""

import resource
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from raybench.config import ScoreConfig
from raybench.core.work import Task
from raybench.driver import open_manifests
from raybench.job import Job, result_folders
from raybench.runners.worker import WorkerFactory
from raybench.sinks.store import save_manifest, with_receipts

__all__ = ["Forecast", "ModelForecast", "forecast"]

PILOT_SHARDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForecast:
    """What one measurement still needs.

    Attributes:
        model: its name.
        reading: canonical reading spec.
        shards, shards_done: how many it has, and how many are committed (the pilot's included).
        queries_left: model queries still to make.
        seconds_left: worker seconds still to spend, from the pilot; None where none was run.
    """

    model: str
    reading: str
    shards: int
    shards_done: int
    queries_left: int
    seconds_left: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A job's cost.

    Attributes:
        images: images selected.
        actors: workers assumed.
        rows: one for each measurement.
        worker_bytes: peak resident memory of one worker, measured in the pilot's process.
        seconds_left: wall time with `actors` workers, start-up left out; None without a pilot.
        notes: sentences the user must see.
    """

    images: int
    actors: int
    rows: tuple[ModelForecast, ...]
    worker_bytes: int
    seconds_left: float | None
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)

    def as_text(self) -> str:
        """Return it as lines for people."""
        lines = [*self.notes, f"{self.images} images, {self.actors} workers"]
        for row in self.rows:
            time_left = "" if row.seconds_left is None else f", {row.seconds_left:,.0f} worker s"
            lines.append(
                f"{row.model} · {row.reading}: {row.shards_done} of {row.shards} shards done, "
                f"{row.queries_left:,} queries left{time_left}"
            )
        lines.append(f"memory of a worker: {self.worker_bytes / 2**30:.2f} GiB at its peak so far")
        if self.seconds_left is not None:
            lines.append(f"time left: about {self.seconds_left:,.0f} s, start-up of Ray left out")
        return "\n".join(lines)


def forecast(job: Job, config: ScoreConfig, cores: int, say: Callable[[str], None]) -> Forecast:
    """Return what `job` would cost after scoring two missing shards of each model.

    The pilot's parts are committed: the run that follows does not pay for them again.

    Args:
        job: the checked work.
        config: its configuration.
        cores: cores (or GPUs) that workers could take.
        say: told what the pilot does.
    """
    manifests = open_manifests(job, resume=True, say=say)
    worker = WorkerFactory(job.plan)()
    rows = []
    total = 0.0
    for index, (measurement, folder) in enumerate(
        zip(job.plan.measurements, result_folders(job), strict=True)
    ):
        manifest = manifests[index]
        pilot = manifest.missing[:PILOT_SHARDS]
        if pilot:
            say(f"pilot: {len(pilot)} shards of {measurement.model.name}")
        receipts = [
            worker(Task(index, shard.index, measurement.model.fingerprint)) for shard in pilot
        ]
        manifest = with_receipts(manifest, receipts)
        save_manifest(folder, manifest)
        speeds = [
            part["seconds"] / part["rows"] for part in manifest.parts.values() if part["seconds"]
        ]
        images = sum(shard.rows for shard in manifest.missing)
        seconds = images * statistics.median(speeds) if speeds else None
        total += seconds or 0.0
        rows.append(
            ModelForecast(
                model=measurement.model.name,
                reading=measurement.evaluation.canonical(),
                shards=len(manifest.shards),
                shards_done=len(manifest.parts),
                queries_left=measurement.evaluation.queries(images),
                seconds_left=seconds,
            )
        )
    actors = cores if config.actors == "auto" else int(config.actors)
    known = all(row.seconds_left is not None for row in rows)
    return Forecast(
        images=job.dataset.info.size,
        actors=actors,
        rows=tuple(rows),
        worker_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds_left=total / actors if known else None,
        notes=job.notes,
    )
