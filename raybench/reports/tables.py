"""The ranked table of scores, as text, Markdown, CSV and JSON.

    print(as_text(table))

Lower is better throughout, and only under the reading that the title names: a score is a
description of explanations, so no wording here says more than that about a model.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.table import Table

from raybench.core.errors import StoreError
from raybench.core.results import ModelScore, ScoreTable
from raybench.reports.layout import (
    GAP,
    WIDTH,
    draw,
    hide_remote,
    markdown,
    page_text,
    print_page,
    shorten,
)
from raybench.reports.notes import comparisons, footnotes, ordered

__all__ = [
    "as_json",
    "as_markdown",
    "as_text",
    "footnotes",
    "interval",
    "number",
    "print_table",
    "ranked_table",
    "write_csv",
]

_NONE = "-"


def number(value: float | None, digits: int = 4) -> str:
    """Return `value` with `digits` significant digits and thousands separators; ``-`` for None.

    Trailing zeros stay, since they are measured. Below 1e-5 the notation is scientific.
    """
    if value is None:
        return _NONE
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if exponent < -5:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """Return ``value [low, high]``; the brackets are left out where there is no interval."""
    if value is None or low is None or high is None:
        return number(value)
    return f"{number(value)} [{number(low)}, {number(high)}]"


def _title(table: ScoreTable) -> str:
    parts = [
        table.dataset.name,
        f"reading {table.reading}",
        f"n = {table.images}",
        f"k = {table.samples:,}",
        f"seed {table.seed}",
    ]
    against = set(comparisons(table).values())
    if len(against) == 1:
        parts.append(f"R.I. against {against.pop()}")
    return " · ".join(parts)


# What a table leaves out while it is wider than the page, in this order; all of it is in Markdown,
# CSV and JSON. The normalised score with its interval and the noise stay.
_DISPENSABLE = ("R.I. intervals", "images/s", "queries", "clean %", "R.I. %")

Column = tuple[str, Callable[[ModelScore], str]]


def _columns(table: ScoreTable, left_out: Sequence[str] = ()) -> list[Column]:
    """Return each column's heading and what it shows of a row.

    Args:
        table: the scores.
        left_out: those of `_DISPENSABLE` to do without.
    """
    pairs = comparisons(table)
    bare = "R.I. intervals" in left_out

    def rank(row: ModelScore) -> str:
        return _NONE if row.rank is None else f"{row.rank}{'=' if row.tied else ''}"

    def score(row: ModelScore) -> str:
        if row.status != "complete":
            return row.status
        return interval(row.score, row.ci_low, row.ci_high)

    def gain(row: ModelScore) -> str:
        name = row.model.name
        if name not in pairs:
            return "baseline" if name in pairs.values() else _NONE
        return number(row.ri) if bare else interval(row.ri, row.ri_low, row.ri_high)

    def accuracy(row: ModelScore) -> str:
        return number(None if row.clean_accuracy is None else 100 * row.clean_accuracy)

    def normalised(row: ModelScore) -> str:
        return interval(row.normalised, row.normalised_low, row.normalised_high)

    columns: list[Column] = [("rank", rank), ("model", lambda row: row.model.name)]
    if any(row.normalised is not None for row in table.rows):
        columns.append(("normalised [95 % CI]", normalised))
    columns.append(("brittle-score [95 % CI]", score))
    if any(row.noise_floor is not None for row in table.rows):
        columns.append(("noise", lambda row: number(row.noise_floor, 2)))
    if pairs and "R.I. %" not in left_out:
        columns.append(("R.I. %" if bare else "R.I. % [95 % CI]", gain))
    if any(row.clean_accuracy is not None for row in table.rows) and "clean %" not in left_out:
        columns.append(("clean %", accuracy))
    if "queries" not in left_out:
        columns.append(("queries", lambda row: f"{row.queries:,}"))
    if "images/s" not in left_out:
        columns.append(("images/s", lambda row: number(row.images_per_second, 3)))
    return columns


def _dispensable(table: ScoreTable) -> list[str]:
    """Return those of `_DISPENSABLE` that the table has."""
    absent = set()
    if all(row.ri_low is None or row.ri_high is None for row in table.rows):
        absent.add("R.I. intervals")
    if not comparisons(table):
        absent |= {"R.I. intervals", "R.I. %"}
    if all(row.clean_accuracy is None for row in table.rows):
        absent.add("clean %")
    return [name for name in _DISPENSABLE if name not in absent]


def _costs(table: ScoreTable, left_out: Sequence[str]) -> list[str]:
    """Return what is left out, and in words the costs among it."""
    rows = [row for row in ordered(table) if row.status == "complete"]
    notes = []
    if left_out:
        notes.append(f"Left out for want of width: {', '.join(left_out)}; the reports have them.")
    if "queries" in left_out and rows:
        counts = {f"{row.queries:,}" for row in rows}
        each = [f"{row.model.name} {row.queries:,}" for row in rows]
        notes.append(f"Queries: {counts.pop() if len(counts) == 1 else shorten(each)} a model.")
    if "images/s" in left_out and rows:
        each = [f"{row.model.name} {number(row.images_per_second, 3)}" for row in rows]
        notes.append(f"Images/s: {', '.join(each)}.")
    return notes


def ranked_table(table: ScoreTable, *, width: int = WIDTH) -> Table:
    """Return the table for a terminal `width` columns wide, best first, missing scores last.

    Ties carry ``=`` behind the rank. Warnings and errors are in the caption, and so is what the
    width has no room for (`_DISPENSABLE`).
    """
    rows, present = ordered(table), _dispensable(table)
    for count, gap in [(0, GAP), *((count, 1) for count in range(len(present) + 1))]:
        left_out = present[:count]
        columns = _columns(table, left_out)
        widths = [max(len(head), *(len(show(row)) for row in rows), 0) for head, show in columns]
        if sum(widths) + gap * len(widths) <= width:
            break
    return draw(
        _title(table),
        [heading for heading, _ in columns],
        [[show(row) for _, show in columns] for row in rows],
        footnotes(table) + _costs(table, left_out),
        wrong=[row.status != "complete" for row in rows],
        tight=gap == 1,
    )


def print_table(table: ScoreTable) -> None:
    """Print the table on stdout, in colour and as wide as the terminal where it is one."""
    print_page(lambda width: ranked_table(table, width=width))


def as_text(table: ScoreTable) -> str:
    """Return the table as plain text of at most 100 columns, without colours."""
    return page_text(lambda width: ranked_table(table, width=width))


def as_markdown(table: ScoreTable) -> str:
    """Return the table in GitHub's Markdown, footnotes as a list, and what a terminal leaves out.

    That is R.I. over both denominators, and the scores at other logit scales (spec 01 T7).
    """
    columns = _columns(table)
    if comparisons(table):
        place = next(i for i, (heading, _) in enumerate(columns) if heading.startswith("R.I. %"))
        heading, show = columns[place]
        columns[place] = (heading.replace("%", "% (Eq. 3)", 1), show)
        columns.insert(place + 1, ("R.I. % over own score", _gain_over_own))
    cells = [[show(row) for _, show in columns] for row in ordered(table)]
    page = markdown(_title(table), [heading for heading, _ in columns], cells, footnotes(table))
    scaled = [row for row in ordered(table) if row.temperature_half is not None]
    if not scaled:
        return page
    scales = [
        (row.temperature_half, row.score, row.temperature_double, row.matched) for row in scaled
    ]
    return (
        page
        + "\n"
        + markdown(
            "brittle-score with all logits times T, which changes no prediction",
            ["model", "T = 0.5", "T = 1", "T = 2", "T of mean confidence 0.9"],
            [
                [row.model.name, *map(number, values)]
                for row, values in zip(scaled, scales, strict=True)
            ],
            [],
        )
    )


def _gain_over_own(row: ModelScore) -> str:
    # The published column fits this denominator, not that of the paper's equation.
    return number(row.ri_over_model if row.baseline != row.model.name else None)


_NORMALISED_BOUNDS = ("normalised", "normalised_low", "normalised_high")


def _flat(row: ModelScore, redact: Callable[[str], str]) -> dict[str, Any]:
    """Return every field of `row` under its own name, the model's spread out."""
    flat: dict[str, Any] = {
        "model": row.model.name,
        "spec": redact(row.model.spec),
        "fingerprint": row.model.fingerprint,
        "access": row.model.access.name.lower(),
    }
    for field in fields(row):
        if field.name == "model":
            continue
        value = getattr(row, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise StoreError(
                f"{row.model.name}: {field.name} is {value}, and only finite numbers are "
                f"published; see 'raybench verify' on {row.folder}"
            )
        flat[field.name] = list(value) if isinstance(value, tuple) else value
    # One spelling of a bound for every score: NAME_ci_low, NAME_ci_high.
    for name, low, high in (("score", "ci_low", "ci_high"), _NORMALISED_BOUNDS):
        flat[f"{name}_ci_low"], flat[f"{name}_ci_high"] = flat[low], flat[high]
    del flat["normalised_low"], flat["normalised_high"]
    return flat


def as_json(table: ScoreTable, *, redact: Callable[[str], str] = hide_remote) -> dict[str, Any]:
    """Return the table as plain values for strict JSON, one flat object per model, best first.

    Args:
        table: the scores.
        redact: removes credentials from model specs; by default a remote address is cut off whole.

    Raises:
        StoreError: a value that is not finite.
    """
    return {
        "dataset": table.dataset.name,
        "reading": table.reading,
        "seed": table.seed,
        "samples": table.samples,
        "baseline": table.baseline,
        "rank_by": table.rank_by,
        "models": [_flat(row, redact) for row in ordered(table)],
        **({} if table.decisions is None else {"sequential": table.decisions.as_json()}),
    }


def write_csv(table: ScoreTable, path: Path, *, redact: Callable[[str], str] = hide_remote) -> Path:
    """Write the models of `as_json` as CSV, in full precision, and return `path`.

    Absent values are empty cells; several ties or warnings in one cell are parted by `` | ``.
    """
    common = {
        "dataset": table.dataset.name,
        "seed": table.seed,
        "samples": table.samples,
        "run_baseline": table.baseline,
    }
    rows = [{**common, **row} for row in as_json(table, redact=redact)["models"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: " | ".join(v) if isinstance(v, list) else v for k, v in row.items()}
            )
    return path
