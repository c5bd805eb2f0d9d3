"""From a configuration to checked work: every mistake is found here, before a device is taken."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from raybench.config import ScoreConfig
from raybench.core.catalog import load_model, open_dataset
from raybench.core.errors import AccessError, InputError
from raybench.core.plan import Evaluation, Measurement, Plan, cut_shards
from raybench.core.spec import parse
from raybench.core.types import Dataset, Model, ModelInfo, Shard
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.models.check import check_outputs
from raybench.reports.summary import DEGENERATE_LIMIT, DEGENERATE_SEGMENTS

__all__ = ["Job", "build_job", "library_versions", "open_data"]

_PROBE_IMAGES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Checked work.

    Attributes:
        plan: what to measure.
        dataset: the opened selection, and how it is cut.
        shards: the shards of every measurement.
        baseline: name of the standard model.
        twins: whether X-adv is compared with X where both are there; not if a baseline was named.
        notes: sentences the user must see (images short of n, models left out, and why).
    """

    plan: Plan
    dataset: Dataset
    shards: tuple[Shard, ...]
    baseline: str
    twins: bool
    notes: tuple[str, ...]


def library_versions() -> dict[str, str]:
    """Return the versions that results may depend on, by package name."""
    names = ("raybench", "torch", "torchvision", "ray", "mlflow", "pyarrow", "numpy", "robustbench")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def open_data(config: ScoreConfig) -> tuple[Dataset, list[str]]:
    """Return the selection of images, and a note where there are fewer than asked for.

    Raises:
        InputError: `data` names no dataset, or sets another n than the configuration.
    """
    spec = parse(config.data)
    given = spec.get("n")
    if given is None:
        spec = spec.with_options(n=config.n)
    elif "n" in config.model_fields_set and given != str(config.n):
        raise InputError(f"data {config.data} selects n={given}, but n={config.n} was also given")
    dataset = open_dataset(spec)
    wanted = int(given or config.n)
    notes = []
    if dataset.info.size < wanted:
        notes.append(
            f"{dataset.info.name} has {dataset.info.size} images, fewer than n={wanted}: "
            "all of them are used"
        )
    return dataset, notes


def build_job(config: ScoreConfig, say: Callable[[str], None]) -> Job:
    """Return the work that `config` describes, every name, setting, access and shape checked.

    Args:
        config: the configuration.
        say: told what is being loaded, one line each.

    Raises:
        InputError: all mistakes of the job, one line each.
    """
    if config.device == "cuda" and not torch.cuda.is_available() and config.runner == "local":
        raise InputError("device cuda: this machine has no CUDA device; use auto or cpu")
    dataset, notes = open_data(config)
    problems: list[str] = []
    readings: list[Evaluation] = []
    for text in config.reading:
        try:
            reading = parse_reading(text, samples=config.samples, shape=dataset.info.shape)
            _check_segments(reading, dataset, config.seed)
            readings.append(reading)
        except InputError as error:
            problems.append(str(error))
    infos: list[ModelInfo] = []
    for spec in config.models:
        say(f"loading {spec}")
        try:
            model = load_model(spec)
            notes.extend(_check_model(model, dataset, readings))
            infos.append(model.info)
        except InputError as error:
            if config.skip_missing:
                notes.append(f"left out {spec}: {error}")
            else:
                problems.append(f"{spec}: {error}" if spec not in str(error) else str(error))
    names = [info.name for info in infos]
    if config.baseline is not None and config.baseline not in names:
        problems.append(
            f"baseline {config.baseline!r} is none of the models, which are named "
            f"{', '.join(names)}"
        )
    if problems:
        raise InputError("\n".join(problems))
    if not infos:
        raise InputError("none of the models could be had:\n  " + "\n  ".join(notes))
    measurements = tuple(
        Measurement(model=info, dataset=dataset.info, evaluation=reading, seed=config.seed)
        for reading in readings
        for info in infos
    )
    keys = [measurement.key for measurement in measurements]
    twice = {m.model.name for m in measurements if keys.count(m.key) > 1}
    if twice:
        raise InputError(
            f"the same model under the same reading is given twice: {', '.join(sorted(twice))}; "
            "leave one out, or tell two files apart with ?name="
        )
    plan = Plan(
        out=str(config.out.absolute()),
        measurements=measurements,
        shard_size=config.shard_size,
        batch_size=config.batch_size,
        cpu_threads=config.cpus_per_actor,
        device=_device(config),
    )
    shards = cut_shards(tuple(dataset.ids), config.shard_size)
    if config.runner == "ray" and config.gpus_per_actor == 0 and torch.cuda.is_available():
        notes.append("a GPU is here but --gpus-per-actor is 0: models run on the CPU")
    return Job(
        plan=plan,
        dataset=dataset,
        shards=shards,
        baseline=config.baseline or names[0],
        twins=config.baseline is None,
        notes=tuple(notes),
    )


def _device(config: ScoreConfig) -> str:
    # A worker that reserved no GPU must not sit on one: Ray hides it, this process would not.
    if config.device == "auto" and config.gpus_per_actor == 0 and config.runner == "ray":
        return "cpu"
    return config.device


def _check_segments(reading: Evaluation, dataset: Dataset, seed: int) -> None:
    """Refuse a segmentation that leaves nothing to explain (spec 01 section 1.1, edge cases)."""
    if not isinstance(reading, LimeEvaluation) or not reading.segmentation or reading.force:
        return
    batch = dataset.read(dataset.ids[: 2 * _PROBE_IMAGES])
    counts = [
        int(reading.segment(image, sample_id, seed).max()) + 1
        for sample_id, image in zip(batch.ids, batch.images, strict=True)
    ]
    few = sum(count < DEGENERATE_SEGMENTS for count in counts)
    if counts and few / len(counts) > DEGENERATE_LIMIT:
        raise InputError(
            f"reading {reading.canonical()}: {few} of the first {len(counts)} images of "
            f"{dataset.info.name} have fewer than {DEGENERATE_SEGMENTS} superpixels "
            f"(segments: {', '.join(map(str, counts))}); use the reading grid, a smaller "
            "kernel_size, or force=true"
        )


def _check_model(model: Model, dataset: Dataset, readings: Sequence[Evaluation]) -> list[str]:
    """Return notes about `model` after trying it on the first images; raise what is wrong."""
    info, shape = model.info, dataset.info.shape
    for reading in readings:
        if info.access < reading.requires:
            raise AccessError(
                f"{info.spec}: the reading {reading.canonical()} needs access to "
                f"{reading.requires.name.lower()}, the model offers {info.access.name.lower()}"
            )
    for wanted, found, what in zip(
        info.input_shape, shape, ("channels", "height", "width"), strict=True
    ):
        if wanted and wanted != found:
            raise InputError(
                f"{info.spec} takes images of {_size(info.input_shape)} (CxHxW), but "
                f"{dataset.info.spec} has {_size(shape)}: the {what} differ; choose a dataset "
                "option (resize=, preprocess=, channels=) or a model that fits"
            )
    batch = dataset.read(dataset.ids[:_PROBE_IMAGES])
    if not len(batch.ids):
        raise InputError(f"none of the first images of {dataset.info.spec} can be read")
    with torch.inference_mode():
        warnings = check_outputs(model, batch.images)
    return [f"{info.name}: {warning}" for warning in warnings]


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(str(side) if side else "any" for side in shape)


def result_folders(job: Job) -> list[Path]:
    """Return the folders of the job's measurements, in its order."""
    return [Path(job.plan.out) / measurement.folder for measurement in job.plan.measurements]
