"""From listed models to planned measurements: who is there, what fits, what is still to be done."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from raybench.core.errors import InputError, Interrupted
from raybench.core.plan import Evaluation, Measurement, Plan
from raybench.core.spec import parse
from raybench.core.types import ModelInfo
from raybench.fit import check_fit, resolve_model
from raybench.job import Job, measure
from raybench.models.known import Known, Recalled, model_files
from raybench.models.touched import files_read
from raybench.models.wrap import short_name
from raybench.refresh.datasets import Opened
from raybench.refresh.listing import Listed
from raybench.refresh.stored import refile, standing

__all__ = ["Planned", "jobs_of", "left_to_do", "plan_entries"]

_SAVE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One model on one dataset.

    Attributes:
        listed: as the file asks for it.
        opened: the dataset.
        name: what tables call it.
        info: the model; None where there is none, and `error` says why.
        notes: what is left out, and what the user should know.
        scores, attacks: measurements, of readings and of attacks.
    """

    listed: Listed
    opened: Opened
    name: str
    info: ModelInfo | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()
    scores: tuple[Measurement, ...] = ()
    attacks: tuple[Measurement, ...] = ()

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Scores, then attacks."""
        return (*self.scores, *self.attacks)


def plan_entries(
    listed: Sequence[Listed],
    opened: Sequence[Opened],
    known: Known,
    seed: int,
    say: Callable[[str], None],
) -> list[Planned]:
    """Return every listed model on every one of its datasets, dataset by dataset.

    A model that cannot be had, or that does not fit, is an entry with an error: whatever goes wrong
    with one is no reason to leave out the others. Only what `known` does not recall is loaded.
    """
    planned = []
    saved = time.monotonic()
    for dataset in opened:
        for one in listed:
            if dataset.line.name not in one.datasets:
                continue
            planned.append(_plan(one, dataset, known, seed, say))
            if time.monotonic() - saved > _SAVE_EVERY_S:
                known.save()
                saved = time.monotonic()
    return planned


def _plan(
    one: Listed, opened: Opened, known: Known, seed: int, say: Callable[[str], None]
) -> Planned:
    spec = parse(one.spec)
    name = spec.get("name") or short_name(spec)
    if one.problem is not None:
        return Planned(listed=one, opened=opened, name=name, error=one.problem)
    try:
        found = known.recall(one.spec, opened.dataset.info.fingerprint, one.files)
        if found is None:
            say(f"loading {one.spec}")
            found = _load(one, opened, known)
        check_fit(found.info, opened.dataset, (), None)
    except Interrupted:
        raise
    except InputError as error:
        return Planned(listed=one, opened=opened, name=name, error=str(error))
    except Exception as error:  # noqa: BLE001 - a checkpoint may break its loader in any way
        text = " ".join(str(error).split())[:500]
        return Planned(
            listed=one, opened=opened, name=name, error=f"{type(error).__name__}: {text}"
        )
    return _measured(one, opened, found, seed)


def _load(one: Listed, opened: Opened, known: Known) -> Recalled:
    notes: list[str] = []
    began = time.time_ns()
    with files_read() as noted:
        info = resolve_model(one.spec, opened.dataset, (), None, notes)
    files = [*model_files(one.spec, noted), *one.files]
    known.enter(one.spec, opened.dataset.info.fingerprint, info, notes, files, began)
    return Recalled(info=info, notes=tuple(notes))


def _measured(one: Listed, opened: Opened, found: Recalled, seed: int) -> Planned:
    """Return the entry with all that its access and classes allow, and notes of the rest."""
    info, dataset, notes = found.info, opened.dataset, list(found.notes)
    readings: list[Evaluation] = []
    for reading in opened.readings:
        try:
            check_fit(info, dataset, (reading,), None)
            readings.append(reading)
        except InputError as error:
            notes.append(f"left out {reading.canonical()}: {error}")
    attacks: list[Evaluation] = []
    for threat, several in opened.attacks.items():
        # All or none: a robust accuracy by fewer attacks than the others' is no robust accuracy.
        try:
            check_fit(info, dataset, several, opened.labels)
            attacks += several
        except InputError as error:
            notes.append(f"no robust accuracy within {threat}: {error}")
    if not readings and not attacks:
        text = "; ".join(notes) or "no evaluation is meant for this dataset"
        return Planned(listed=one, opened=opened, name=info.name, error=text)
    return Planned(
        listed=one,
        opened=opened,
        name=info.name,
        info=info,
        notes=tuple(notes),
        scores=measure((info,), dataset, readings, seed, None),
        attacks=measure((info,), dataset, attacks, seed, opened.labels),
    )


def left_to_do(
    out: Path,
    planned: Sequence[Planned],
    earlier: Mapping[str, Sequence[str]],
    *,
    rehash: bool,
) -> dict[str, Measurement]:
    """Return the measurements that are not stored whole, by key; renamed ones are filed again.

    Args:
        out: the output folder.
        planned: the entries.
        earlier: measurement folders of earlier refreshes, by the model's fingerprint.
        rehash: read every byte of what is stored.
    """
    work: dict[str, Measurement] = {}
    for entry in planned:
        for measurement in entry.measurements:
            if measurement.key in work or standing(out, measurement, rehash=rehash):
                continue
            folders = earlier.get(measurement.model.fingerprint, ())
            if refile(out, measurement, entry.opened.dataset.ids, folders):
                continue
            work[measurement.key] = measurement
    return work


def jobs_of(
    planned: Sequence[Planned],
    work: Mapping[str, Measurement],
    template: Plan,
    shard_sizes: tuple[int, int],
    baselines: Mapping[str, str],
) -> list[tuple[Opened, Job]]:
    """Return the jobs that hold `work`: for each dataset one of scores and one of attacks.

    Args:
        planned: the entries.
        work: measurements to compute, by key.
        template: a plan without measurements, with the means of the run.
        shard_sizes: images in a shard, of scores and of attacks.
        baselines: name of the standard model of each dataset.
    """
    jobs: list[tuple[Opened, Job]] = []
    given: set[str] = set()  # the same images may be listed twice, under two threats
    for opened in dict.fromkeys(id(entry.opened) for entry in planned):
        entries = [entry for entry in planned if id(entry.opened) == opened]
        dataset = entries[0].opened
        names = [entry.name for entry in entries if entry.info is not None]
        for kind, size in zip(("scores", "attacks"), shard_sizes, strict=True):
            mine = {
                one.key: one
                for entry in entries
                for one in getattr(entry, kind)
                if one.key in work and one.key not in given
            }
            if not mine:
                continue
            given |= set(mine)
            chosen = baselines.get(dataset.line.name)
            job = Job(
                plan=replace(template, measurements=tuple(mine.values()), shard_size=size),
                dataset=dataset.dataset,
                baseline=chosen or names[0],
                twins=chosen is None,
                notes=(),
            )
            jobs.append((dataset, job))
    return jobs
