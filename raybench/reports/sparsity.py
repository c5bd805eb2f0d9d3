"""How sparse explanations are: the numbers behind "sparser positive region" (spec 01 section 1.5).

    found = explanation_sparsity(out, table)
    page = sparsity_markdown(table, found)

From stored weights alone, over all images. Grid cells are a function of the image size, so their
shares are shares of the area; superpixels are not stored, so theirs are shares of the segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raybench.core.results import ScoreTable
from raybench.core.spec import Spec, parse
from raybench.kernels.draws import stream
from raybench.kernels.segments import grid_segments
from raybench.metrics.intervals import percentile_interval, resample_means
from raybench.metrics.sparsity import area_fractions, gini, hoyer, mask_values
from raybench.reports.layout import markdown
from raybench.reports.tables import interval
from raybench.sinks.store import load_rows, read_manifest

__all__ = ["RELATIVE", "Sparsity", "explanation_sparsity", "sparsity_json", "sparsity_markdown"]

RELATIVE = 0.05
"""The relative threshold: this share of an image's largest weight."""

_SIGNS = ("negative", "zero", "positive")
_MASKED = ("grid", "superpixel", "superpixel-sum", "superpixel-pixel", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """One model's means over images, each with its 95 % bootstrap interval.

    Attributes:
        model: its name.
        unit: what shares are of: "area" or "segments".
        statistics: (mean, low, high) by name: "negative", "zero" and "positive" of lime's mask (top
            10, at least 0.01), the same with "_relative" behind (at least `RELATIVE` of the
            largest), "gini" and "hoyer" of the magnitudes.
    """

    model: str
    unit: str
    statistics: Mapping[str, tuple[float, float, float]]


def explanation_sparsity(out: Path, table: ScoreTable) -> list[Sparsity]:
    """Return the sparsity of every complete model's explanations, in the order of the table.

    Empty where weights have no sign: of readings without masks, and of several responses at once.
    """
    reading = parse(table.reading)
    rows = [row for row in table.rows if row.status == "complete"]
    if reading.scheme not in _MASKED or reading.get("target") == "prob_all" or not rows:
        return []
    segments = _segments(reading, table.dataset.shape)
    found = [_per_image(out / row.folder, segments) for row in rows]
    names = list(_statistics(np.zeros(1), None))
    columns = np.full((max(map(len, found)), len(names) * len(found)), np.nan)
    for index, one in enumerate(found):
        columns[: len(one), index * len(names) : (index + 1) * len(names)] = one
    # The resampling of the dataset's other intervals, shared by all models.
    bootstrap = resample_means(columns, stream(0, "bootstrap", table.dataset.fingerprint))
    result = []
    for index, row in enumerate(rows):
        start = index * len(names)
        statistics = {
            name: (
                float(bootstrap.means[start + offset]),
                *percentile_interval(bootstrap.resampled[:, start + offset]),
            )
            for offset, name in enumerate(names)
        }
        unit = "segments" if segments is None else "area"
        result.append(Sparsity(model=row.model.name, unit=unit, statistics=statistics))
    return result


def _segments(reading: Spec, shape: tuple[int, int, int]) -> np.ndarray | None:
    cells = reading.get("cells")
    return None if cells is None else grid_segments(shape[1], shape[2], int(cells)).numpy()


def _per_image(folder: Path, segments: np.ndarray | None) -> np.ndarray:
    """Return the statistics of each image of a measurement [N, 8]; NaN where it has no weights."""
    stored = load_rows(folder, read_manifest(folder), ("status", "weights"))
    nothing = [np.nan] * len(_statistics(np.zeros(1), None))
    rows = [
        list(_statistics(np.asarray(weights, dtype=np.float64), segments).values())
        if status == "ok"
        else nothing
        for status, weights in zip(
            stored.column("status").to_pylist(), stored.column("weights").to_pylist(), strict=True
        )
    ]
    return np.array(rows)


def _statistics(weights: np.ndarray, segments: np.ndarray | None) -> dict[str, float]:
    found: dict[str, float] = {}
    places = np.arange(len(weights)) if segments is None else segments
    for suffix, relative in (("", None), ("_relative", RELATIVE)):
        shares = area_fractions(mask_values(weights, relative=relative), places)
        found |= {f"{sign}{suffix}": share for sign, share in zip(_SIGNS, shares, strict=True)}
    return found | {"gini": gini(weights), "hoyer": hoyer(weights)}


def sparsity_json(found: list[Sparsity]) -> list[dict[str, Any]]:
    """Return `found` as plain values: NAME, NAME_ci_low and NAME_ci_high of each statistic."""
    return [
        {"model": one.model, "unit": one.unit}
        | {
            f"{name}{end}": value
            for name, values in one.statistics.items()
            for end, value in zip(("", "_ci_low", "_ci_high"), values, strict=True)
        }
        for one in found
    ]


def sparsity_markdown(table: ScoreTable, found: list[Sparsity]) -> str:
    """Return `found` as a table in GitHub's Markdown; empty where there is nothing."""
    if not found:
        return ""
    headings = [*_SIGNS, *(f"{sign} (relative)" for sign in _SIGNS), "Gini", "Hoyer"]
    cells = [
        [one.model, *(interval(*values) for values in one.statistics.values())] for one in found
    ]
    unit = found[0].unit
    notes = [
        f"Shares of the {unit} whose weight counts with that sign: among the 10 largest and at "
        f"least 0.01, or (relative) at least {RELATIVE} of the image's largest. The absolute "
        "threshold widens the zero share of every less confident model.",
        "Gini and Hoyer of the magnitudes: 0 all equal, 1 concentrated on one segment.",
    ]
    if unit == "segments":
        notes.append("Superpixels are not stored, so every segment counts the same.")
    title = f"Sparsity of explanations, means over images [95 % CI] · reading {table.reading}"
    return markdown(title, ["model", *headings], cells, notes)
