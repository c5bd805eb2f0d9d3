"""From stored rows to ranked tables: no model and no images needed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybench.core.errors import InputError, StoreError, near_miss
from raybench.core.keys import slug
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.spec import Spec, parse
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.kernels.draws import stream
from raybench.metrics.brittle import Comparison, choose_baselines, compare
from raybench.metrics.intervals import resample_means, wilson
from raybench.reports.images import ImageScores, image_scores, mean_or_none
from raybench.sinks.parts import write_atomically
from raybench.sinks.store import Manifest, find_manifests, load_rows, read_manifest

__all__ = ["DEGENERATE_LIMIT", "labels_path", "load_tables", "save_labels", "summarise"]

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
    def fingerprint(self) -> str:
        return str(self.manifest.measurement["model"]["fingerprint"])

    @property
    def reading(self) -> Spec:
        return parse(self.manifest.measurement["evaluation"])


def labels_path(out: Path, dataset: DatasetInfo) -> Path:
    """Return where the labels of a selection are kept, for clean accuracy alone."""
    return out / "labels" / f"{slug(dataset.name)}-{dataset.fingerprint[:12]}.parquet"


def save_labels(out: Path, dataset: DatasetInfo, ids: Sequence[str], labels: np.ndarray) -> None:
    """Keep the labels [len(ids)] of a selection beside its results."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"sample_id": list(ids), "label": labels.astype(np.int64)}), sink)
    write_atomically(labels_path(out, dataset), sink.getvalue().to_pybytes())


def load_tables(
    out: Path, baseline: str | None = None, rank_by: str = "normalised", *, merge: bool = True
) -> list[ScoreTable]:
    """Return the tables of every measurement stored below `out`; see `summarise`.

    Raises:
        StoreError: nothing is stored there.
    """
    folders = find_manifests(out)
    if not folders:
        raise StoreError(f"{out} holds no results; expected a folder that raybench score wrote")
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
        folders: measurement folders with manifests.
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
    manifest = read_manifest(folder)
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
    members = _distinct(members)
    measurement = members[0].manifest.measurement
    shape = {"shape": tuple(measurement["dataset"]["shape"])}
    dataset = DatasetInfo(**(measurement["dataset"] | shape))
    names = [member.name for member in members]
    baselines, baseline = _baselines(members, names, baseline)
    numbers = _numbers(members, normaliser, baselines, dataset, rank_by)
    truth = _labels(out, dataset)
    rows = [_row(out, member, numbers, truth) for member in members]
    rows.sort(key=lambda row: (row.rank is None, row.rank or 0, row.model.name))
    return ScoreTable(
        dataset=dataset,
        reading=measurement["evaluation"],
        seed=measurement["seed"],
        samples=int(members[0].reading.get("samples") or 0),
        baseline=baseline,
        rows=rows,
        rank_by=numbers.rank_by,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """What a table's models compare as: by score, normalised, and by what it ranks."""

    baselines: Mapping[str, str | None]
    score: Mapping[str, Comparison]
    normalised: Mapping[str, Comparison]
    normalised_by: str
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
    by_model = {member.fingerprint: member.images for member in normaliser or []}
    found = [
        by_model.get(member.fingerprint) if normaliser else member.images for member in published
    ]
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
    ids = members[0].images.ids if members[0].images else ()
    for member in members:
        if member.images is not None and member.images.ids != ids:
            raise StoreError(f"{member.folder} holds other samples than its neighbours")
    nothing = np.full(len(ids), np.nan)
    matrix = np.column_stack([nothing if column is None else column for column in columns])
    # One stream for every table of a dataset: intervals of two readings then compare.
    bootstrap = resample_means(matrix, stream(0, "bootstrap", dataset.fingerprint))
    return compare(names, bootstrap, baselines)


def _exponential(one: Comparison) -> Comparison:
    """Return the comparison of means of logarithms as one of geometric means."""
    return replace(
        one, score=math.exp(one.score), ci_low=math.exp(one.ci_low), ci_high=math.exp(one.ci_high)
    )


def _baselines(
    members: list[_Scored], names: list[str], asked: str | None
) -> tuple[dict[str, str | None], str | None]:
    """Return what each model is compared with: as asked for, else as the latest run did."""
    if asked is not None and asked not in names:
        raise InputError(f"baseline {asked!r} is none of the models{near_miss(asked, names)}")
    stored = [member.manifest for member in members if member.manifest.baseline in names]
    twins = asked is None and (stored[-1].twins if stored else True)
    first = names[0] if len(names) > 1 else None
    baseline = asked or (stored[-1].baseline if stored else first)
    return choose_baselines(names, baseline, twins=twins), baseline


def _distinct(members: list[_Scored]) -> list[_Scored]:
    """Return `members` with names that tell them apart: part of the key where two share one."""
    names = [member.name for member in members]
    return [
        member if names.count(name) == 1 else replace(member, manifest=_renamed(member.manifest))
        for member, name in zip(members, names, strict=True)
    ]


def _renamed(manifest: Manifest) -> Manifest:
    measurement = manifest.measurement
    model = measurement["model"]
    name = f"{model['name']}@{model['fingerprint'][:8]}-{measurement['key'][:4]}"
    return replace(manifest, measurement=measurement | {"model": model | {"name": name}})


def _labels(out: Path, dataset: DatasetInfo) -> dict[str, int]:
    path = labels_path(out, dataset)
    if not path.exists():
        return {}
    table = pq.read_table(path)
    return dict(
        zip(table.column("sample_id").to_pylist(), table.column("label").to_pylist(), strict=True)
    )


def _model_info(measurement: dict[str, Any]) -> ModelInfo:
    facts = dict(measurement["model"])
    facts["access"] = Access.named(facts["access"])
    facts["input_shape"] = tuple(facts["input_shape"])
    facts["details"] = tuple(facts["details"].items())
    return ModelInfo(**facts)


def _row(out: Path, member: _Scored, numbers: _Numbers, truth: Mapping[str, int]) -> ModelScore:
    manifest, images = member.manifest, member.images
    head: dict[str, Any] = {
        "model": _model_info(manifest.measurement),
        "reading": manifest.measurement["evaluation"],
        "key": manifest.measurement["key"],
        "folder": str(member.folder.relative_to(out)),
    }
    if images is None:
        failed = next(iter(manifest.failures.values()), None)
        status = "failed" if manifest.failures else "incomplete"
        return ModelScore(**head, status=status, error=failed or member.problem)
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
    accuracy, clean_low, clean_high = _accuracy(images, truth)
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
        queries=images.scored * int(member.reading.get("samples") or 0),
        images_per_second=_speed(manifest),
        mean_segments=images.mean("num_segments"),
        degenerate_fraction=images.share_below("num_segments", DEGENERATE_SEGMENTS),
        r2=images.mean("r2"),
        warnings=_warnings(images, numbers.note),
    )


def _warnings(images: ImageScores, note: str | None) -> tuple[str, ...]:
    warnings = [note] if note else []
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


def _speed(manifest: Manifest) -> float | None:
    """Return images per second of worker time, over the parts whose time is known."""
    timed = [part for part in manifest.parts.values() if part["seconds"]]
    seconds = sum(part["seconds"] for part in timed)
    return sum(part["rows"] for part in timed) / seconds if seconds else None


def _accuracy(
    images: ImageScores, truth: Mapping[str, int]
) -> tuple[float | None, float | None, float | None]:
    """Return the fraction right with its Wilson bounds, or Nones where no label is known."""
    pairs = [
        (predicted, truth[sample_id])
        for sample_id, predicted in images.predictions()
        if sample_id in truth
    ]
    if not pairs:
        return None, None, None
    right = sum(predicted == label for predicted, label in pairs)
    return right / len(pairs), *wilson(right, len(pairs))
