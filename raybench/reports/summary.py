"""From stored rows to ranked tables: no model and no images needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raybench.core.decisions import Decisions, model_id
from raybench.core.errors import InputError, StoreError, near_miss
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.spec import Spec, parse
from raybench.core.types import DatasetInfo, ModelInfo
from raybench.kernels.draws import stream
from raybench.metrics.brittle import Comparison, choose_baselines, compare
from raybench.metrics.intervals import resample_means
from raybench.reports.images import ImageScores, image_scores, mean_or_none
from raybench.reports.stored import (
    dataset_info,
    distinct_names,
    model_info,
    queries_made,
    stored_decisions,
    stored_folders,
    worker_speed,
)
from raybench.reports.truth import clean_accuracy, stored_labels, strange_labels
from raybench.sinks.store import Manifest, describe_folder, load_rows, read_manifest

__all__ = ["DEGENERATE_LIMIT", "DEGENERATE_SEGMENTS", "load_tables", "summarise"]

# An image cut into fewer than 5 segments says almost nothing (spec 01 section 1.1, edge cases).
DEGENERATE_SEGMENTS = 5
DEGENERATE_LIMIT = 0.1

_FLIP_RADIUS = "flip-radius"
_RANKS = ("normalised", "score", "matched")


@dataclass(frozen=True, slots=True)
class _Scored:
    """A manifest with its images' numbers, or with the reason why there are none."""

    folder: Path
    manifest: Manifest
    images: ImageScores | None
    problem: str | None

    @property
    def name(self) -> str:
        return str(self.manifest.measurement["model"]["name"])

    @property
    def model(self) -> tuple[str, str]:
        """The model as it was asked: its fingerprint and the access level."""
        model = self.manifest.measurement["model"]
        return model["fingerprint"], model["access"]

    @property
    def queries(self) -> int:
        return queries_made(self.manifest, int(self.reading.get("samples") or 0))

    @property
    def reading(self) -> Spec:
        return parse(self.manifest.measurement["evaluation"])


def load_tables(
    out: Path, baseline: str | None = None, rank_by: str = "normalised", *, merge: bool = True
) -> list[ScoreTable]:
    """Return the tables of every measurement stored below `out`; see `summarise`.

    Raises:
        InputError: nothing is stored there.
    """
    folders = stored_folders(out).scores
    if not folders:
        raise InputError(f"{out} holds no results; expected a folder that raybench score wrote")
    return summarise(out, folders, baseline=baseline, rank_by=rank_by, merge=merge)


def summarise(
    out: Path,
    folders: Sequence[Path],
    *,
    baseline: str | None,
    rank_by: str = "normalised",
    merge: bool = True,
) -> list[ScoreTable]:
    """Return one ranked table for each (dataset, reading, seed) among the measurements.

    Where the flip radius was measured on the same images, it is the `normalised` column of the
    LIME readings' tables, and has a table of its own only if there is none of those.

    Args:
        out: output folder.
        folders: measurement folders; one without a manifest that can be read is "incomplete".
        baseline: standard model of Eq. 3; None takes the first model of each table, in the order
            of `folders`.
        rank_by: "normalised", "score" or "matched"; where a model has no such number, the table
            ranks by score and says so.
        merge: let the flip radius stand in the LIME tables; otherwise each reading shows its own.
    """
    assert rank_by in _RANKS, rank_by
    groups: dict[tuple[str, int], dict[str, list[_Scored]]] = {}
    for folder in folders:
        scored = _read(folder)
        measurement = scored.manifest.measurement
        images = (measurement["dataset"]["fingerprint"], measurement["seed"])
        groups.setdefault(images, {}).setdefault(measurement["evaluation"], []).append(scored)
    tables = []
    for readings in groups.values():
        flips = [name for name in readings if parse(name).scheme == _FLIP_RADIUS]
        flips.sort(key=lambda name: int(parse(name).get("samples") or 0))
        lime = [name for name in readings if name not in flips]
        normaliser = readings[flips[-1]] if flips and merge else None
        tables += [_table(out, readings[name], normaliser, baseline, rank_by) for name in lime]
        for name in flips:
            alone = _table(out, readings[name], None, baseline, rank_by)
            tables.append(replace(alone, shown=not (lime and merge)))
    return tables


def _read(folder: Path) -> _Scored:
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        lost = Manifest(measurement=describe_folder(folder), shard_size=0, shards=())
        return _Scored(folder, lost, None, f"{error}; 'raybench verify --repair' makes it anew")
    try:
        rows = load_rows(folder, manifest)
    except StoreError as error:
        return _Scored(folder, manifest, None, str(error))
    return _Scored(folder, manifest, image_scores(rows), None)


def _table(
    out: Path,
    members: list[_Scored],
    normaliser: list[_Scored] | None,
    baseline: str | None,
    rank_by: str,
) -> ScoreTable:
    ids = [model_id(member.manifest.measurement["model"]) for member in members]
    members = _distinct(members)
    measurement = members[0].manifest.measurement
    dataset = dataset_info(measurement)
    names = [member.name for member in members]
    baselines, baseline = _baselines(members, names, baseline)
    numbers = _numbers(members, normaliser, baselines, dataset, rank_by)
    truth = stored_labels(out, dataset)
    rows = [_row(out, member, numbers, truth) for member in members]
    rows.sort(key=lambda row: (row.rank is None, row.rank or 0, row.model.name))
    decisions = _decisions(out, members, numbers, dict(zip(ids, names, strict=True)))
    if decisions is not None:
        rows = [_as_decided(row, decisions) for row in rows]
    return ScoreTable(
        dataset=dataset,
        reading=measurement["evaluation"],
        seed=measurement["seed"],
        samples=int(members[0].reading.get("samples") or 0),
        baseline=baseline,
        rows=rows,
        rank_by=numbers.rank_by,
        decisions=decisions,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """What a table's models compare as: by score, normalised, and by what it ranks."""

    baselines: Mapping[str, str | None]
    score: Mapping[str, Comparison]
    normalised: Mapping[str, Comparison]
    normalised_by: str
    normalised_queries: Mapping[tuple[str, str], int]
    ranks: Mapping[str, Comparison]
    rank_by: str
    note: str | None


def _numbers(
    members: list[_Scored],
    normaliser: list[_Scored] | None,
    baselines: Mapping[str, str | None],
    dataset: DatasetInfo,
    rank_by: str,
) -> _Numbers:
    published = [member for member in members if member.images is not None]
    names = [member.name for member in published]
    by_model = {member.model: member for member in normaliser or [] if member.images is not None}
    sources = [by_model.get(member.model) if normaliser else member for member in published]
    found = [None if source is None else source.images for source in sources]
    flips = normaliser is not None or members[0].reading.scheme == _FLIP_RADIUS
    normalised = [None if one is None else one.normalised(logarithm=not flips) for one in found]
    values: dict[str, list[np.ndarray | None]] = {
        "score": [member.images.score for member in published if member.images],
        "normalised": normalised,
        "matched": [member.images.matched() for member in published if member.images],
    }
    results = {
        kind: _compare(published, columns, names, baselines, dataset)
        for kind, columns in values.items()
    }
    note = None
    if set(results[rank_by]) != set(results["score"]):
        lacking = sorted(set(results["score"]) - set(results[rank_by]))
        note = f"ranked by score, because {rank_by} is not known for {', '.join(lacking)}"
        rank_by = "score"
    if not flips:
        results["normalised"] = {
            name: _exponential(one) for name, one in results["normalised"].items()
        }
    reading = normaliser[0] if normaliser else members[0]
    return _Numbers(
        baselines=baselines,
        score=results["score"],
        normalised=results["normalised"],
        normalised_by=reading.reading.canonical(),
        normalised_queries={model: member.queries for model, member in by_model.items()},
        ranks=results[rank_by],
        rank_by=rank_by,
        note=note,
    )


def _compare(
    members: list[_Scored],
    columns: Sequence[np.ndarray | None],
    names: list[str],
    baselines: Mapping[str, str | None],
    dataset: DatasetInfo,
) -> dict[str, Comparison]:
    if not members:
        return {}
    ids = max((member.images.ids for member in members if member.images), key=len)
    for member in members:
        # A sequential run may have asked fewer of the first images of one model than of another.
        if member.images is not None and member.images.ids != ids[: len(member.images.ids)]:
            raise StoreError(f"{member.folder} holds other samples than its neighbours")
    matrix = np.full((len(ids), len(columns)), np.nan)
    for place, column in enumerate(columns):
        if column is not None:
            matrix[: len(column), place] = column
    # One stream for every table of a dataset: intervals of two readings then compare.
    bootstrap = resample_means(matrix, stream(0, "bootstrap", dataset.fingerprint))
    return compare(names, bootstrap, baselines)


def _exponential(one: Comparison) -> Comparison:
    """Return the comparison of means of logarithms as one of geometric means."""
    return replace(
        one, score=math.exp(one.score), ci_low=math.exp(one.ci_low), ci_high=math.exp(one.ci_high)
    )


def _decisions(
    out: Path, members: Sequence[_Scored], numbers: _Numbers, names: Mapping[str, str]
) -> Decisions | None:
    """Return what a sequential run decided of the table's models, called by `names` (by id).

    None where the table ranks by other numbers than those that decided.
    """
    found = stored_decisions(out, [member.manifest for member in members])
    reading = str(members[0].manifest.measurement["evaluation"])
    source = numbers.normalised_by if numbers.rank_by == "normalised" else reading
    if found is None or found.evaluation != source or not found.column.endswith(numbers.rank_by):
        return None
    return found.named(names)


def _as_decided(row: ModelScore, decisions: Decisions) -> ModelScore:
    """Return `row` with the sequences' ties: an interval for a fixed n is too narrow now."""
    known = {name for name, _ in decisions.models.values()}
    name = row.model.name
    return replace(row, tied=decisions.neighbours(name)) if name in known else row


def _baselines(
    members: list[_Scored], names: list[str], asked: str | None
) -> tuple[dict[str, str | None], str | None]:
    """Return what each model is compared with: as asked for, else as the latest run did.

    Of runs without a time (repairs, or older results) the last in the order of `members` counts.
    """
    if asked is not None and asked not in names:
        raise InputError(f"baseline {asked!r} is none of the models{near_miss(asked, names)}")
    stored = [member.manifest for member in members if member.manifest.baseline in names]
    latest = max(reversed(stored), key=lambda manifest: manifest.run, default=None)
    twins = asked is None and (latest is None or latest.twins)
    first = names[0] if len(names) > 1 else None
    baseline = asked or (first if latest is None else latest.baseline)
    return choose_baselines(names, baseline, twins=twins), baseline


def _distinct(members: list[_Scored]) -> list[_Scored]:
    """Return `members` with names that tell them apart."""
    names = distinct_names([member.manifest.measurement for member in members])
    return [
        replace(member, manifest=_renamed(member.manifest, name))
        for member, name in zip(members, names, strict=True)
    ]


def _renamed(manifest: Manifest, name: str) -> Manifest:
    measurement = manifest.measurement
    return replace(
        manifest, measurement=measurement | {"model": measurement["model"] | {"name": name}}
    )


def _row(out: Path, member: _Scored, numbers: _Numbers, truth: Mapping[str, int]) -> ModelScore:
    manifest, images = member.manifest, member.images
    head: dict[str, Any] = {
        "model": model_info(manifest.measurement),
        "reading": manifest.measurement["evaluation"],
        "key": manifest.measurement["key"],
        "folder": str(member.folder.relative_to(out)),
    }
    if images is None:
        failed = next(iter(manifest.failures.values()), None)
        status = "failed" if manifest.failures else "incomplete"
        error = failed or manifest.partial or member.problem
        return ModelScore(**head, status=status, error=error)
    score = numbers.score.get(member.name)
    if score is None:
        reason = f"no image could be scored: {images.first_error}"
        return ModelScore(**head, status="failed", unscored=images.unscored, error=reason)
    degenerate = images.share_below("num_segments", DEGENERATE_SEGMENTS) or 0.0
    if degenerate > DEGENERATE_LIMIT and member.reading.get("force") is None:
        reason = (
            f"degenerate: {degenerate:.0%} of the images have fewer than {DEGENERATE_SEGMENTS} "
            "segments; use the reading grid, a smaller kernel_size, or force=true"
        )
        return ModelScore(**head, status="failed", unscored=images.unscored, error=reason)
    normalised = numbers.normalised.get(member.name)
    rank = numbers.ranks[member.name]
    stranger = strange_labels(manifest.measurement) if truth else None
    accuracy, clean_low, clean_high = clean_accuracy(images, {} if stranger else truth)
    return ModelScore(
        **head,
        status="complete",
        score=score.score,
        ci_low=score.ci_low,
        ci_high=score.ci_high,
        baseline=numbers.baselines[member.name],
        ri=score.ri,
        ri_low=score.ri_low,
        ri_high=score.ri_high,
        ri_over_model=score.ri_over_model,
        corrected=images.mean("corrected"),
        noise_floor=images.mean("noise_floor"),
        reliability=images.reliability(),
        normalised=normalised.score if normalised else None,
        normalised_low=normalised.ci_low if normalised else None,
        normalised_high=normalised.ci_high if normalised else None,
        normalised_by=numbers.normalised_by if normalised else None,
        normalised_queries=numbers.normalised_queries.get(member.model) if normalised else None,
        temperature_half=images.at_temperature(0.5),
        temperature_double=images.at_temperature(2.0),
        matched=mean_or_none(images.matched()),
        confidence=images.mean("probability"),
        rank=rank.rank,
        tied=rank.tied,
        n=images.scored,
        unscored=images.unscored,
        clean_accuracy=accuracy,
        clean_low=clean_low,
        clean_high=clean_high,
        queries=member.queries,
        fixed_n=None if manifest.stop is None else manifest.stop.of,
        queries_fixed_n=None if manifest.stop is None else manifest.stop.queries_of,
        images_per_second=worker_speed(manifest),
        mean_segments=images.mean("num_segments"),
        degenerate_fraction=images.share_below("num_segments", DEGENERATE_SEGMENTS),
        r2=images.mean("r2"),
        warnings=_warnings(images, head["model"], numbers.note, stranger),
    )


def _warnings(
    images: ImageScores, model: ModelInfo, note: str | None, stranger: str | None
) -> tuple[str, ...]:
    # What the first batch gave away, a randomised model for example, is kept with the model.
    found = (note, dict(model.details).get("warning"), stranger)
    warnings = [text for text in found if text]
    if images.unscored:
        total = images.unscored + images.scored
        warnings.append(f"{images.unscored} of {total} images could not be scored")
    degenerate = images.share_below("num_segments", DEGENERATE_SEGMENTS) or 0.0
    if degenerate > DEGENERATE_LIMIT:
        warnings.append(f"{degenerate:.0%} of the images have fewer than 5 segments (forced)")
    floor, score = images.mean("noise_floor"), images.mean("score")
    if floor is not None and score is not None and floor > score / 2:
        warnings.append("more than half of the score could be noise: use more samples")
    return tuple(warnings)
