"""From a configuration to checked work: every mistake is found here, before a device is taken."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from raybench.config import AttackConfig, RunConfig, ScoreConfig
from raybench.core.catalog import load_model, open_dataset
from raybench.core.errors import AccessError, InputError
from raybench.core.keys import digest
from raybench.core.plan import Evaluation, Measurement, Plan, cut_shards
from raybench.core.spec import parse
from raybench.core.types import Dataset, Model, ModelInfo, Shard
from raybench.evaluations.attack import AttackEvaluation
from raybench.evaluations.attack_spec import parse_attack
from raybench.evaluations.attack_table import ATTACKS
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.models.check import WARNING, check_outputs
from raybench.models.wrap import FITTING, size
from raybench.reports.summary import DEGENERATE_LIMIT, DEGENERATE_SEGMENTS

__all__ = ["Job", "build_job", "library_versions", "open_data"]

_PROBE_IMAGES = 8
_KINDS: dict[type, str] = {ScoreConfig: "reading", AttackConfig: "attack"}


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


def open_data(config: RunConfig) -> tuple[Dataset, list[str]]:
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


def build_job(config: RunConfig, say: Callable[[str], None]) -> Job:
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
    labels = None
    if isinstance(config, AttackConfig):
        evaluations = _attacks(config, dataset, problems)
        labels = _known_labels(dataset, problems)
    else:
        assert isinstance(config, ScoreConfig), type(config)
        evaluations = _readings(config, dataset, problems)
    infos: list[ModelInfo] = []
    for spec in config.models:
        say(f"loading {spec}")
        try:
            model = _fitted(load_model(spec), dataset, notes)
            warnings = _check_model(model, dataset, evaluations)
            notes.extend(f"{model.info.name}: {warning}" for warning in warnings)
            if labels is not None:
                _check_classes(model.info, dataset, labels, evaluations)
            infos.append(_warned(model.info, warnings))
        except InputError as error:
            if config.skip_missing:
                notes.append(f"left out {spec}: {error}")
            else:
                problems.append(f"{spec}: {error}" if spec not in str(error) else str(error))
    names = [info.name for info in infos]
    baseline = config.baseline if isinstance(config, ScoreConfig) else None
    if baseline is not None and baseline not in names:
        problems.append(
            f"baseline {baseline!r} is none of the models, which are named {', '.join(names)}"
        )
    if problems:
        raise InputError("\n".join(problems))
    if not infos:
        raise InputError("none of the models could be had:\n  " + "\n  ".join(notes))
    measurements = tuple(
        Measurement(
            model=info,
            dataset=dataset.info,
            evaluation=evaluation,
            seed=config.seed,
            labels="" if labels is None else digest(labels.tolist()),
        )
        for evaluation in evaluations
        for info in infos
    )
    keys = [measurement.key for measurement in measurements]
    twice = {m.model.name for m in measurements if keys.count(m.key) > 1}
    if twice:
        raise InputError(
            f"the same model under the same {_KINDS[type(config)]} is given twice: "
            f"{', '.join(sorted(twice))}; leave one out, or tell two files apart with ?name="
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
        baseline=baseline or names[0],
        twins=baseline is None,
        notes=tuple(notes),
    )


def _device(config: RunConfig) -> str:
    # A worker that reserved no GPU must not sit on one: Ray hides it, this process would not.
    if config.device == "auto" and config.gpus_per_actor == 0 and config.runner == "ray":
        return "cpu"
    return config.device


def _check_segments(reading: Evaluation, dataset: Dataset, seed: int) -> None:
    """Refuse a segmentation that leaves nothing to explain, or more than the samples can carry.

    The first images tell (spec 01 section 1.1, edge cases).
    """
    if not isinstance(reading, LimeEvaluation) or not reading.segmentation:
        return
    batch = dataset.read(dataset.ids[: 2 * _PROBE_IMAGES])
    counts = [
        int(reading.segment(image, sample_id, seed).max()) + 1
        for sample_id, image in zip(batch.ids, batch.images, strict=True)
    ]
    reading.check_design(max(counts, default=1))
    few = sum(count < DEGENERATE_SEGMENTS for count in counts)
    if counts and not reading.force and few / len(counts) > DEGENERATE_LIMIT:
        raise InputError(
            f"reading {reading.canonical()}: {few} of the first {len(counts)} images of "
            f"{dataset.info.name} have fewer than {DEGENERATE_SEGMENTS} superpixels "
            f"(segments: {', '.join(map(str, counts))}); use the reading grid, a smaller "
            "kernel_size, or force=true"
        )


def _readings(config: ScoreConfig, dataset: Dataset, problems: list[str]) -> list[Evaluation]:
    readings: list[Evaluation] = []
    for text in config.reading:
        try:
            reading = parse_reading(text, samples=config.samples, shape=dataset.info.shape)
            _check_segments(reading, dataset, config.seed)
            readings.append(reading)
        except InputError as error:
            problems.append(str(error))
    return readings


def _attacks(config: AttackConfig, dataset: Dataset, problems: list[str]) -> list[Evaluation]:
    """Return every attack under every budget; ``--steps`` and its like reach those that take them.

    A flag that no attack takes is a mistake, not something to leave aside.
    """
    flags = {"steps": config.steps, "step_size": config.step_size, "restarts": config.restarts}
    given = {name: str(value) for name, value in flags.items() if value is not None}
    unused = set(given)
    attacks: list[Evaluation] = []
    for text in config.attacks():
        spec = parse(text)
        known = ATTACKS[spec.scheme].settings if spec.scheme in ATTACKS else {}
        taken = {name: raw for name, raw in given.items() if name in known}
        unused -= set(taken)
        own = {name: raw for name, raw in taken.items() if spec.get(name) is None}
        for eps in config.eps or (None,):
            try:
                attack = parse_attack(
                    spec.with_options(**own).canonical(),
                    norm=config.norm,
                    eps=eps,
                    shape=dataset.info.shape,
                    classes=dataset.info.num_classes,
                    targeted=config.targeted,
                    keep_images=config.keep_images,
                )
            except InputError as error:
                problems.append(str(error))
            else:
                attacks.append(attack)
    flagged = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unused))
    if flagged:
        problems.append(f"{flagged}: none of the attacks takes it")
    return attacks


def _known_labels(dataset: Dataset, problems: list[str]) -> np.ndarray | None:
    found = dataset.labels(dataset.ids)
    if found is None:
        problems.append(
            f"{dataset.info.spec} has no labels, and an attack needs them to know what is wrong; "
            "use a dataset with labels (folders named by class, a labels= or label= column)"
        )
    return found


def _check_classes(
    info: ModelInfo, dataset: Dataset, labels: np.ndarray, evaluations: Sequence[Evaluation]
) -> None:
    """Refuse labels, or a target class, that the model does not know, or other classes than its."""
    classes = info.num_classes
    known = dataset.info.num_classes
    if known is not None and known != classes:
        raise InputError(
            f"{info.spec} has {classes} classes, but {dataset.info.spec} has {known}: its labels "
            "mean something else to this model, and right and wrong cannot be told"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{info.spec} has classes 0 to {classes - 1}, but the labels of {dataset.info.spec} "
            f"run from {low} to {high}; the model and the data do not belong together"
        )
    for attack in evaluations:
        assert isinstance(attack, AttackEvaluation), type(attack)
        wanted, least = attack.targeted, attack.kind.least_classes
        if wanted is not None and wanted.isdigit() and int(wanted) >= classes:
            raise InputError(f"targeted={wanted}: {info.spec} has classes 0 to {classes - 1}")
        if classes < least:
            raise InputError(
                f"attack {attack.attack} needs at least {least} classes; {info.spec} has {classes}"
            )


def _fitted(model: Model, dataset: Dataset, notes: list[str]) -> Model:
    """Return `model`, for the images' size where its own is a guess that they do not have.

    Sizes that were not declared are found by trial, and a network for 128 pixels may pass for one
    for 224. The images' own size, where it gives finite scores, goes into the spec: so the workers
    load the same.
    """
    info, shape = model.info, dataset.info.shape
    if FITTING not in dict(info.details) or not _differing(info, shape):
        return model
    batch = dataset.read(dataset.ids[:_PROBE_IMAGES])
    if not len(batch.ids):
        return model
    try:
        fitted = load_model(parse(info.spec).with_options(shape=size(shape)))
        with torch.inference_mode():
            check_outputs(fitted, batch.images)
    except InputError:
        return model  # whose own size is then what `_check_model` complains of
    if fitted.info.num_classes != info.num_classes:
        return model
    notes.append(
        f"{info.name}: the input size was found by trial: {size(shape)}, as the images have; say "
        f"shape={size(shape)} to be sure"
    )
    return fitted


def _differing(info: ModelInfo, shape: tuple[int, int, int]) -> str:
    """Return the first in which images of `shape` differ from what the model takes, or ''."""
    for wanted, found, what in zip(
        info.input_shape, shape, ("channels", "height", "width"), strict=True
    ):
        if wanted and wanted != found:
            return what
    return ""


def _check_model(model: Model, dataset: Dataset, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return warnings about `model` after trying it on the first images; raise what is wrong."""
    info, shape = model.info, dataset.info.shape
    for evaluation in evaluations:
        if info.access < evaluation.requires:
            kind = "attack" if evaluation.family == "attack" else "reading"
            raise AccessError(
                f"{info.spec}: the {kind} {evaluation.canonical()} needs access to "
                f"{evaluation.requires.name.lower()}, the model offers {info.access.name.lower()}"
            )
    differing = _differing(info, shape)
    if differing:
        tried = dict(info.details).get(FITTING)
        takes = f"{size(info.input_shape)} (CxHxW)"
        if tried:
            takes = f"{tried} (CxHxW, found by trial; shape= declares another)"
        raise InputError(
            f"{info.spec} takes images of {takes}, but {dataset.info.spec} has {size(shape)}: they "
            f"differ in {differing}; choose a dataset option (resize=, preprocess=, channels=) or "
            "a model that fits"
        )
    batch = dataset.read(dataset.ids[:_PROBE_IMAGES])
    if not len(batch.ids):
        raise InputError(f"none of the first images of {dataset.info.spec} can be read")
    with torch.inference_mode():
        return check_outputs(model, batch.images)


def _warned(info: ModelInfo, warnings: Sequence[str]) -> ModelInfo:
    """Return `info` with `warnings` among its details, where reports find them.

    Details name no result: a measurement's key is the same with and without.
    """
    if not warnings:
        return info
    return replace(info, details=(*info.details, (WARNING, "; ".join(warnings))))


def result_folders(job: Job) -> list[Path]:
    """Return the folders of the job's measurements, in its order."""
    return [Path(job.plan.out) / measurement.folder for measurement in job.plan.measurements]
