"""What a job would cost and what it would tell, from a pilot of two shards a model.

Cost: shards, queries, memory and time. Precision: how many images and samples it takes for a wanted
width of the score's interval, and for the two closest models to be told apart.
"""

import resource
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from raybench.config import ScoreConfig
from raybench.core.spec import parse
from raybench.core.work import Receipt, Spent, Task
from raybench.driver import open_manifests
from raybench.job import Job, result_folders
from raybench.metrics.sample_size import (
    LOW_NOISE,
    PairSize,
    SampleSize,
    closest_pair,
    doubling_samples_narrows,
    sample_size,
)
from raybench.reports.images import ImageScores, image_scores
from raybench.reports.tables import number
from raybench.runners.inprocess import attempt
from raybench.runners.worker import WorkerFactory
from raybench.sinks.store import Manifest, load_rows, save_manifest, with_receipts

__all__ = ["ClosestPair", "Forecast", "ModelForecast", "forecast"]

PILOT_SHARDS = 2

# Readings whose halves are not in the unit of the score: the share of pixels in a mask is scored,
# the halves are norms of weights.
_OTHER_UNIT = frozenset({"mask"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForecast:
    """What one measurement still needs.

    Attributes:
        model: its name.
        reading: canonical reading spec.
        samples: k, queries for each image.
        shards, shards_done: how many it has, and how many are committed (the pilot's included).
        queries_left: model queries still to make.
        seconds_left: worker seconds still to spend, from the pilot; None where none was run.
        size: images and samples for the wanted width, from the committed shards.
    """

    model: str
    reading: str
    samples: int
    shards: int
    shards_done: int
    queries_left: int
    seconds_left: float | None
    size: SampleSize


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosestPair:
    """The two models closest in the pilot under `reading`, and what would tell them apart."""

    reading: str
    pair: PairSize


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A job's cost, and the precision it buys.

    Attributes:
        images: images selected.
        actors: workers assumed.
        rows: one for each measurement.
        ci_width: wanted half-width of the 95 % interval, as a share of the score.
        closest: one for each reading under which two models share images.
        worker_bytes: peak resident memory of one worker, measured in the pilot's process.
        seconds_left: wall time with `actors` workers, start-up left out; None without a pilot.
        notes: sentences the user must see.
        failures: (model, shard index, error) of every shard that the pilot could not score.
        spent: what said that a model's query budget is spent; its pilot ends there.
    """

    images: int
    actors: int
    rows: tuple[ModelForecast, ...]
    ci_width: float
    closest: tuple[ClosestPair, ...]
    worker_bytes: int
    seconds_left: float | None
    notes: tuple[str, ...]
    failures: tuple[tuple[str, int, str], ...] = ()
    spent: tuple[str, ...] = ()

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
        return "\n".join([*lines, "", *self._precision()])

    def _precision(self) -> list[str]:
        """Return the lines that say how many images and samples are needed."""
        lines = [
            f"images for a 95 % interval of ±{_percent(self.ci_width)} of the score, by the normal "
            f"approximation n = (1.96 sd / ({self.ci_width:g} mean))²:"
        ]
        for reading in dict.fromkeys(row.reading for row in self.rows):
            lines.append(f"under {reading}")
            for row in self.rows:
                if row.reading == reading:
                    lines.append(f"  {row.model}: {_images_line(row.size, self.images)}")
                    lines.append(f"    {_noise_line(row)}")
            lines.extend(f"  {_pair_line(c.pair)}" for c in self.closest if c.reading == reading)
        return lines


def _images_line(size: SampleSize, selected: int) -> str:
    pilot = f"{size.pilot} pilot images"
    if size.mean is None or size.sd is None:
        return f"not known: a standard deviation takes 2 scored images, found {size.pilot}"
    if size.images is None:
        return f"not known: the mean over {pilot} is {number(size.mean)}"
    more = f", more than the {selected:,} selected" if size.images > selected else ""
    seen = f"mean {number(size.mean)}, sd {number(size.sd)} over {pilot}"
    return f"{size.images:,} images{more} ({seen})"


def _noise_line(row: ModelForecast) -> str:
    share = row.size.noise_share
    if share is None:
        return f"sampling noise at k = {row.samples:,}: not known for this reading and pilot"
    seen = f"sampling noise is {_percent(share)} of that variance at k = {row.samples:,}"
    if row.size.samples is None:
        return f"{seen}: images show no difference of their own, take more samples first"
    seen += f", under {_percent(LOW_NOISE)} of the images' own from about k = {row.size.samples:,}"
    if row.size.samples <= row.samples:
        return f"{seen}: more images help, more samples hardly"
    return (
        f"{seen}: twice the samples narrow the interval by "
        f"{_percent(doubling_samples_narrows(share))}, twice the images by 29 %"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _pair_line(pair: PairSize) -> str:
    names = f"closest in the pilot: {pair.first} and {pair.second}"
    if pair.images is None:
        return f"{names}, without any difference over {pair.pilot} images"
    return (
        f"{names}, {number(pair.difference)} apart (paired sd {number(pair.sd)}); if that is the "
        f"true difference, {pair.images:,} images part them at 95 % half of the time, "
        f"{pair.images_four_in_five:,} four times in five"
    )


def forecast(job: Job, config: ScoreConfig, cores: int, say: Callable[[str], None]) -> Forecast:
    """Return what `job` would cost after scoring two missing shards of each model.

    The pilot's parts are committed: the run that follows does not pay for them again.

    Args:
        job: the checked work.
        config: its configuration.
        cores: cores that workers could take.
        say: told what the pilot does.
    """
    manifests = open_manifests(job, resume=True, say=say, compares=False)
    worker = WorkerFactory(job.plan)()
    rows = []
    failures = []
    spent: dict[str, str] = {}
    total = 0.0
    piloted: dict[str, list[tuple[str, ImageScores]]] = {}
    for index, (measurement, folder) in enumerate(
        zip(job.plan.measurements, result_folders(job), strict=True)
    ):
        manifest = manifests[index]
        # Spread over the data, whose order may be by class or difficulty.
        step = -(-len(manifest.missing) // PILOT_SHARDS) or 1
        pilot = manifest.missing[::step]
        if pilot:
            say(f"pilot: {len(pilot)} shards of {measurement.model.name}")
        resident = measurement.model.fingerprint
        answers: dict[int, Receipt | Spent | str] = {}
        for shard in pilot:
            if resident in spent:
                break
            task = Task(index, shard.index, resident, manifest.shard_size)
            answers[shard.index] = answer = attempt(worker, task)
            if isinstance(answer, Spent):
                spent[resident] = answer.text
        failures += [
            (measurement.model.name, shard, answer)
            for shard, answer in answers.items()
            if isinstance(answer, str)
        ]
        receipts = [answer for answer in answers.values() if isinstance(answer, Receipt)]
        manifest = with_receipts(manifest, receipts)
        save_manifest(folder, manifest)
        speeds = [
            part["seconds"] / part["rows"] for part in manifest.parts.values() if part["seconds"]
        ]
        images = sum(shard.rows for shard in manifest.missing)
        seconds = images * statistics.median(speeds) if speeds else None
        total += seconds or 0.0
        reading = measurement.evaluation.canonical()
        samples = int(parse(reading).get("samples") or 0)
        scores = _committed(folder, manifest)
        if manifest.parts:
            piloted.setdefault(reading, []).append((measurement.model.name, scores))
        rows.append(
            ModelForecast(
                model=measurement.model.name,
                reading=reading,
                samples=samples,
                shards=len(manifest.shards),
                shards_done=len(manifest.parts),
                # Shard by shard: an evaluation may ask about more where a group is not full.
                queries_left=sum(
                    measurement.evaluation.queries(shard.rows) for shard in manifest.missing
                ),
                seconds_left=seconds,
                size=_size(reading, scores, samples, config.ci_width),
            )
        )
    actors = _workers(config, cores)
    known = all(row.seconds_left is not None for row in rows)
    return Forecast(
        images=job.dataset.info.size,
        actors=actors,
        rows=tuple(rows),
        ci_width=config.ci_width,
        closest=tuple(
            ClosestPair(reading=reading, pair=pair)
            for reading, models in piloted.items()
            if (pair := _closest(models)) is not None
        ),
        worker_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds_left=total / actors if known else None,
        notes=job.notes,
        failures=tuple(failures),
        spent=tuple(spent.values()),
    )


def _workers(config: ScoreConfig, cores: int) -> int:
    """Return how many workers the run would have on this machine, as the runners count them."""
    if config.runner == "local":
        return 1
    if config.actors != "auto":
        return int(config.actors)
    # The margin absorbs sums of fractions like 0.1.
    places = cores // config.cpus_per_actor
    if config.gpus_per_actor:
        places = min(places, int(torch.cuda.device_count() / config.gpus_per_actor + 1e-6))
    return max(1, places)


def _committed(folder: Path, manifest: Manifest) -> ImageScores:
    """Return the scores of the shards that are there: a pilot leaves most of them missing."""
    done = tuple(shard for shard in manifest.shards if shard.file in manifest.parts)
    if not done:
        nothing = np.empty(0)
        return ImageScores(
            ids=(),
            ok=nothing.astype(bool),
            predicted=nothing,
            columns={"score": nothing},
            scores_at=None,
            confidence_at=None,
            first_error=None,
        )
    return image_scores(load_rows(folder, replace(manifest, shards=done)))


def _size(reading: str, scores: ImageScores, samples: int, width: float) -> SampleSize:
    halves = {} if parse(reading).scheme in _OTHER_UNIT else scores.columns
    segments = scores.columns.get("num_segments", np.empty(0))
    return sample_size(
        scores.score,
        halves.get("half_a"),
        halves.get("half_b"),
        samples=samples,
        width=width,
        # LIME readings refuse fewer samples than their segments and two: see `check_design`.
        least_samples=2 + int(np.nanmax(segments, initial=0)),
    )


def _closest(models: list[tuple[str, ImageScores]]) -> PairSize | None:
    """Return the closest two models over the images that all have: a resumed one may have more."""
    places = [dict(zip(scores.ids, scores.score, strict=True)) for _, scores in models]
    shared = [name for name in places[0] if all(name in place for place in places)]
    if not shared:
        return None
    columns = [[place[name] for name in shared] for place in places]
    return closest_pair([name for name, _ in models], np.array(columns).T)
