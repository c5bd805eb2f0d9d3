"""From a configuration to checked work: every mistake is found here, before a device is taken."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from raybench.config import AttackConfig, RunConfig, ScoreConfig
from raybench.core.cache import cache_path
from raybench.core.catalog import open_dataset
from raybench.core.errors import InputError
from raybench.core.keys import digest
from raybench.core.mirrors import address_of
from raybench.core.plan import Evaluation, Measurement, Plan
from raybench.core.spec import parse
from raybench.core.types import Dataset, ModelInfo
from raybench.evaluations.attack_spec import parse_attack
from raybench.evaluations.attack_table import ATTACKS
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.fit import check_segments, known_labels, no_labels, resolve_model
from raybench.sequential import refuse
from raybench.sinks.mirror import ready_to_write
from raybench.sinks.tracking import redact

__all__ = [
    "Job",
    "build_job",
    "device_of",
    "library_versions",
    "measure",
    "merge_plans",
    "open_data",
    "ready_out",
    "result_folders",
]

_KINDS: dict[type, str] = {ScoreConfig: "reading", AttackConfig: "attack"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Checked work.

    Attributes:
        plan: what to measure.
        dataset: the opened selection.
        baseline: name of the standard model.
        twins: whether X-adv is compared with X where both are there; not if a baseline was named.
        notes: sentences the user must see (images short of n, models left out, and why).
    """

    plan: Plan
    dataset: Dataset
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
    store = ready_out(config.out, config.models)
    dataset, notes = open_data(config)
    problems: list[str] = []
    labels = None
    if isinstance(config, AttackConfig):
        evaluations = _attacks(config, dataset, problems)
        labels = known_labels(dataset)
        if labels is None:
            problems.append(no_labels(dataset))
    else:
        assert isinstance(config, ScoreConfig), type(config)
        evaluations = _readings(config, dataset, problems)
        problems += refuse(config, dataset.info)
    infos: list[ModelInfo] = []
    for spec in config.models:
        shown = redact(spec)
        say(f"loading {shown}")
        try:
            infos.append(resolve_model(spec, dataset, evaluations, labels, notes))
        except InputError as error:
            if config.skip_missing:
                notes.append(f"left out {shown}: {error}")
            else:
                problems.append(f"{shown}: {error}" if spec not in str(error) else str(error))
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
    measurements = measure(infos, dataset, evaluations, config.seed, labels)
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
        device=device_of(config.device, config.runner, config.gpus_per_actor),
        exact=config.exact,
        compiled=config.compile,
        store=store,
    )
    if config.runner == "ray" and config.gpus_per_actor == 0 and torch.cuda.is_available():
        notes.append("a GPU is here but --gpus-per-actor is 0: models run on the CPU")
    return Job(
        plan=plan,
        dataset=dataset,
        baseline=baseline or names[0],
        twins=baseline is None,
        notes=tuple(notes),
    )


def ready_out(out: Path, models: Sequence[str]) -> str:
    """Return the address of the object store behind `out`, empty where it is a local folder.

    Raises:
        InputError: it cannot be written to; or a model's query budget would be counted on this
            machine alone, where a run that goes on from another one would count anew.
    """
    if address_of(out) is not None and not os.environ.get("RAYBENCH_CACHE"):
        for text in models:
            spec = parse(text)
            if spec.scheme in ("http", "https") and spec.get("budget") is not None:
                raise InputError(
                    f"{redact(text)}: its budget is counted in a ledger in the cache folder of "
                    f"this machine ({cache_path()}), but results in an object store may be gone on "
                    "with from another one, which would count anew; set RAYBENCH_CACHE to a folder "
                    "that lasts and that all machines see (or to this one, if there is no other)"
                )
    return ready_to_write(out)


def device_of(device: str, runner: str, gpus_per_actor: float) -> str:
    """Return the device of a plan: auto, cpu or cuda."""
    # A worker that reserved no GPU must not sit on one: Ray hides it, this process would not.
    return "cpu" if device == "auto" and gpus_per_actor == 0 and runner == "ray" else device


def measure(
    infos: Sequence[ModelInfo],
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    seed: int,
    labels: np.ndarray | None,
) -> tuple[Measurement, ...]:
    """Return every model under every evaluation; `labels` [N] where the evaluations need them."""
    known = "" if labels is None else digest(labels.tolist())
    return tuple(
        Measurement(
            model=info, dataset=dataset.info, evaluation=evaluation, seed=seed, labels=known
        )
        for evaluation in evaluations
        for info in infos
    )


def merge_plans(jobs: Sequence[Job]) -> Plan:
    """Return the measurements of all `jobs`, in order, as one plan: they may span datasets.

    Whatever a task must know beyond its measurement, its shard size, goes with the task.
    """
    first = jobs[0].plan
    for job in jobs:
        same = replace(job.plan, measurements=(), shard_size=first.shard_size)
        assert same == replace(first, measurements=()), "jobs of one run share its means"
    return replace(first, measurements=tuple(one for job in jobs for one in job.plan.measurements))


def _readings(config: ScoreConfig, dataset: Dataset, problems: list[str]) -> list[Evaluation]:
    readings: list[Evaluation] = []
    for text in config.reading:
        try:
            reading = parse_reading(text, samples=config.samples, shape=dataset.info.shape)
            check_segments(reading, dataset, config.seed)
            if isinstance(reading, LimeEvaluation):
                reading = replace(reading, exact=config.exact)
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


def result_folders(job: Job) -> list[Path]:
    """Return the folders of the job's measurements, in its order."""
    return [Path(job.plan.out) / measurement.folder for measurement in job.plan.measurements]
