"""Everything a refresh decides before a device is taken: checked, planned, cut into jobs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from raybench.config import AttackConfig, RunConfig, ScoreConfig
from raybench.core.errors import InputError, near_miss
from raybench.core.plan import Measurement, Plan
from raybench.job import Job, device_of
from raybench.models.known import Known
from raybench.refresh.datasets import Opened, open_datasets
from raybench.refresh.file import LeaderboardFile
from raybench.refresh.listing import list_models
from raybench.refresh.planning import Planned, jobs_of, left_to_do, plan_entries
from raybench.refresh.references import (
    ModelInfoFile,
    Published,
    published,
    read_model_info,
    references,
)
from raybench.refresh.state import Reference, State, check_protocol

__all__ = ["Prepared", "prepare"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A refresh that is ready to be carried out.

    Attributes:
        out: the output folder.
        before: the state of the last refresh, or None.
        opened: the datasets.
        planned: the entries.
        baselines: name of the standard model, by dataset.
        references: published values, marked.
        imported: ``model_info`` files read, by (name of the images, model).
        work: the measurements to compute, by key.
        jobs: what holds them, with the dataset of each.
        loaded: models that had to be loaded.
    """

    out: Path
    before: State | None
    opened: tuple[Opened, ...]
    planned: tuple[Planned, ...]
    baselines: Mapping[str, str]
    references: tuple[Reference, ...]
    imported: Mapping[tuple[str, str], ModelInfoFile]
    work: Mapping[str, Measurement]
    jobs: tuple[tuple[Opened, Job], ...]
    loaded: int


def prepare(
    file: LeaderboardFile,
    means: RunConfig,
    before: State | None,
    say: Callable[[str], None],
    *,
    rehash: bool,
    store: str = "",
) -> Prepared:
    """Return what is to be done for `file`, given what the last refresh left.

    Args:
        file: the leaderboard.
        means: what the run may take, and where it writes.
        before: the state of the last refresh.
        say: told what is loaded, and what the user must see.
        rehash: recall no model, and read every byte that is stored.
        store: the address of the object store behind the output folder, where there is one.

    Raises:
        InputError: mistakes in the file; a protocol that changed within one version.
    """
    out = means.out.absolute()
    folder = out / "leaderboard"
    problems: list[str] = []
    opened = _gather(problems, lambda: open_datasets(file)) or []
    listed = _gather(problems, lambda: list_models(file, folder / "robustbench.json")) or []
    if not problems:
        protocol = {one.line.name: one.protocol(file.seed) for one in opened}
        check_protocol(before, file.benchmark_version, protocol)
    values = _gather(problems, lambda: _published(file, opened)) or []
    if problems:
        raise InputError("\n  ".join(problems))
    known = Known.read(folder / "known.json", rehash=rehash)
    try:
        planned = plan_entries(listed, opened, known, file.seed, say)
    finally:
        known.save()  # what was loaded is known, however this ends
    baselines = _baselines(file, planned, say)
    earlier: dict[str, list[str]] = {}
    for entry in before.entries if before is not None else ():
        if entry.fingerprint is not None:
            earlier.setdefault(entry.fingerprint, []).extend(entry.measurements)
    work = left_to_do(out, planned, earlier, rehash=rehash)
    template = Plan(
        out=str(out),
        measurements=(),
        shard_size=means.shard_size,
        batch_size=means.batch_size,
        cpu_threads=means.cpus_per_actor,
        device=device_of(means.device, means.runner, means.gpus_per_actor),
        store=store,
    )
    return Prepared(
        out=out,
        before=before,
        opened=tuple(opened),
        planned=tuple(planned),
        baselines=baselines,
        references=_references(values, opened, planned, say),
        imported=_imported(file),
        work=work,
        jobs=tuple(jobs_of(planned, work, template, _shard_sizes(means), baselines)),
        loaded=known.loaded,
    )


def _gather(problems: list[str], ask: Callable[[], list[T]]) -> list[T] | None:
    """Return what `ask` returns; None where it complains, which is kept for later."""
    try:
        return ask()
    except InputError as error:
        problems.append(str(error))
        return None


def _shard_sizes(means: RunConfig) -> tuple[int, int]:
    """Return images in a shard, of scores and of attacks: as given, else as each verb has it."""
    if "shard_size" in means.model_fields_set:
        return means.shard_size, means.shard_size
    return (
        int(ScoreConfig.model_fields["shard_size"].default),
        int(AttackConfig.model_fields["shard_size"].default),
    )


def _published(file: LeaderboardFile, opened: Sequence[Opened]) -> list[Published]:
    standards = [one.standard for one in opened]
    return [value for line in file.reference for value in published(line, standards)]


def _imported(file: LeaderboardFile) -> dict[tuple[str, str], ModelInfoFile]:
    return {
        (str(info.content["dataset"]), info.model): info
        for line in file.reference
        if line.model_info is not None
        for info in read_model_info(line.model_info)
    }


def _references(
    values: Sequence[Published],
    opened: Sequence[Opened],
    planned: Sequence[Planned],
    say: Callable[[str], None],
) -> tuple[Reference, ...]:
    names: dict[str, list[str]] = {}
    for entry in planned:
        names.setdefault(entry.opened.line.name, []).append(entry.name)
    found = references(values, [one.standard for one in opened], names)
    if len(found) < len(values):
        say(f"{len(values) - len(found)} reference values are of models that are not listed")
    return found


def _baselines(
    file: LeaderboardFile, planned: Sequence[Planned], say: Callable[[str], None]
) -> dict[str, str]:
    """Return the standard model of each dataset that has the one asked for.

    Raises:
        InputError: it is listed nowhere, or two models have its name.
    """
    if file.baseline is None:
        return {}
    names: dict[str, list[str]] = {line.name: [] for line in file.datasets}
    failed = set()
    for entry in planned:
        names[entry.opened.line.name].append(entry.name)
        if entry.info is None:
            failed.add((entry.opened.line.name, entry.name))
    asked = file.baseline
    if isinstance(asked, str):
        asked = {dataset: asked for dataset, listed in names.items() if asked in listed}
        if not asked:
            every = {name for listed in names.values() for name in listed}
            raise InputError(
                f"baseline {file.baseline!r} is none of the models"
                f"{near_miss(str(file.baseline), every)}"
            )
    chosen = {}
    for dataset, name in asked.items():
        count = names[dataset].count(name)
        if count != 1:
            what = "none of" if not count else f"{count} of"
            raise InputError(
                f"baseline {name!r} is {what} the models of {dataset}"
                f"{near_miss(name, set(names[dataset]))}"
            )
        if (dataset, name) in failed:
            say(f"the baseline {name} of {dataset} failed: R.I. is against the first model")
        else:
            chosen[dataset] = name
    return chosen
