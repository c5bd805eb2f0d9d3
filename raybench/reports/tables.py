"""The ranked table of scores, as text, Markdown, CSV and JSON.

    print(as_text(table))

Lower is better throughout, and only under the reading that the title names: a score is a
description of explanations, so no wording here says more than that about a model.
"""

import csv
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raybench.core.errors import StoreError
from raybench.core.results import ModelScore, ScoreTable

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

_WIDTH = 100
_NONE = "-"
_MANY = 5
_GAP = 2  # what the box puts between two columns


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
        f"n = {table.dataset.size:,}",
        f"k = {table.samples:,}",
        f"seed {table.seed}",
    ]
    against = set(_comparisons(table).values())
    if len(against) == 1:
        parts.append(f"R.I. against {against.pop()}")
    return " · ".join(parts)


def _comparisons(table: ScoreTable) -> dict[str, str]:
    """Return which model each model with an R.I. is compared with, itself left out."""
    return {
        row.model.name: row.baseline
        for row in table.rows
        if row.ri is not None and row.baseline is not None and row.baseline != row.model.name
    }


def _ordered(table: ScoreTable) -> list[ModelScore]:
    """Return the rows with those that have no score at the bottom, order kept otherwise."""
    return sorted(table.rows, key=lambda row: row.status != "complete")


def _columns(
    table: ScoreTable, *, compact: bool = False
) -> list[tuple[str, Callable[[ModelScore], str]]]:
    """Return each column's heading and what it shows of a row.

    `compact` leaves out the interval of R.I., the widest thing a reader finds elsewhere.
    """
    comparisons = _comparisons(table)

    def rank(row: ModelScore) -> str:
        return _NONE if row.rank is None else f"{row.rank}{'=' if row.tied else ''}"

    def score(row: ModelScore) -> str:
        if row.status != "complete":
            return row.status
        return interval(row.score, row.ci_low, row.ci_high)

    def gain(row: ModelScore) -> str:
        name = row.model.name
        if name not in comparisons:
            return "baseline" if name in comparisons.values() else _NONE
        return number(row.ri) if compact else interval(row.ri, row.ri_low, row.ri_high)

    def accuracy(row: ModelScore) -> str:
        return number(None if row.clean_accuracy is None else 100 * row.clean_accuracy)

    def normalised(row: ModelScore) -> str:
        if compact:
            return number(row.normalised)
        return interval(row.normalised, row.normalised_low, row.normalised_high)

    columns: list[tuple[str, Callable[[ModelScore], str]]] = [
        ("rank", rank),
        ("model", lambda row: row.model.name),
    ]
    if any(row.normalised is not None for row in table.rows):
        columns.append(("normalised" if compact else "normalised [95 % CI]", normalised))
    columns.append(("brittle-score [95 % CI]", score))
    if not compact and any(row.noise_floor is not None for row in table.rows):
        columns.append(("noise", lambda row: number(row.noise_floor, 2)))
    if comparisons:
        columns.append(("R.I. %" if compact else "R.I. % [95 % CI]", gain))
    if any(row.clean_accuracy is not None for row in table.rows):
        columns.append(("clean %", accuracy))
    return [
        *columns,
        ("queries", lambda row: f"{row.queries:,}"),
        ("images/s", lambda row: number(row.images_per_second, 3)),
    ]


def _list(items: Sequence[str], separator: str = ", ") -> str:
    """Return `items` in a row, the tail of a long list as its length."""
    shown = separator.join(items[:_MANY])
    return f"{shown} and {len(items) - _MANY} more" if len(items) > _MANY else shown


_RANKED = {
    "normalised": "the normalised score",
    "score": "the brittle-score",
    "matched": "the brittle-score at equal mean confidence",
}


def _temperature(rows: Sequence[ModelScore]) -> list[str]:
    """Return whether halving or doubling all logits would reorder the scores (spec 01 T7)."""
    known = [
        (row.score, row.temperature_half, row.temperature_double)
        for row in rows
        if row.score is not None
        and row.temperature_half is not None
        and row.temperature_double is not None
    ]
    if len(known) < 2:
        return []
    changes = [
        max(half, double) / min(half, double) for _, half, double in known if min(half, double) > 0
    ]
    orders = {tuple(np.argsort(column, kind="stable")) for column in zip(*known, strict=True)}
    verdict = "keeps" if len(orders) == 1 else "changes"
    size = f" and moves single scores up to {max(changes):.1f} times" if changes else ""
    return [
        f"Halving or doubling every model's logits, which changes no prediction, {verdict} the "
        f"order of the brittle-scores{size}."
    ]


def footnotes(table: ScoreTable) -> list[str]:
    """Return the sentences that belong under the table: ties, gaps, warnings, errors."""
    rows = _ordered(table)
    complete = [row for row in rows if row.status == "complete"]
    notes = [
        f"Ranked by {_RANKED[table.rank_by]}: lower = less brittle under this reading; other "
        "readings may rank otherwise."
    ]
    sources = sorted({row.normalised_by for row in complete if row.normalised_by})
    if sources:
        notes.append(
            f"normalised: {', '.join(sources)}; no rescaling of the logits changes it. "
            "brittle-score: Eq. 2 of the paper, which every rescaling changes."
        )
    notes += _temperature(complete)
    ties = [f"{row.model.name} with {_list(row.tied)}" for row in complete if row.tied]
    if ties:
        notes.append(
            "= tied: the paired 95 % interval of the difference contains zero: "
            f"{_list(ties, '; ')}."
        )
    comparisons = _comparisons(table)
    if len(set(comparisons.values())) > 1:
        pairs = [f"{name} with {other}" for name, other in comparisons.items()]
        notes.append(f"R.I. compares {_list(pairs, '; ')}.")
    notes.extend(
        f"{row.model.name}: {row.unscored:,} images could not be scored and count in no mean."
        for row in complete
        if row.unscored
    )
    warned: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            warned.setdefault(warning, []).append(row.model.name)
    for warning, names in warned.items():
        whom = "all models" if len(names) == len(rows) > 1 else _list(names)
        notes.append(f"{whom}: {warning}")
    for row in rows:
        if row.status != "complete":
            reason = " ".join((row.error or "no score is published").split())
            notes.append(f"{row.model.name} is {row.status}: {reason}")
    return notes


def ranked_table(table: ScoreTable, *, width: int = _WIDTH) -> Table:
    """Return the table for a terminal `width` columns wide, best first, missing scores last.

    Ties carry ``=`` behind the rank. Warnings and errors are in the caption. Where the names would
    not fit, the interval of R.I. is left out; CSV, JSON and Markdown always have it.
    """
    columns = _columns(table)
    rows = _ordered(table)
    widths = [max(len(head), *(len(show(row)) for row in rows), 0) for head, show in columns]
    compact = sum(widths) + _GAP * len(widths) > width
    if compact:
        columns = _columns(table, compact=True)
    drawn = Table(
        title=Text(_title(table), style="bold"),
        title_justify="left",
        caption=Text("\n".join(footnotes(table)), style="dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 0) if compact else (0, _GAP - 1, 0, 0),
    )
    for heading, _ in columns:
        if heading == "model":
            drawn.add_column(heading, overflow="fold", min_width=8)
        else:
            drawn.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = None if row.status == "complete" else "red"
        drawn.add_row(*(Text(show(row)) for _, show in columns), style=style)
    return drawn


def _page(console: Console, table: ScoreTable) -> None:
    console.print(ranked_table(table, width=console.width))


def print_table(table: ScoreTable) -> None:
    """Print the table on stdout, in colour and as wide as the terminal where it is one."""
    if sys.stdout.isatty():
        _page(Console(), table)
    else:
        print(as_text(table), end="")


def as_text(table: ScoreTable) -> str:
    """Return the table as plain text of at most 100 columns, without colours."""
    page = io.StringIO()
    _page(Console(file=page, width=_WIDTH, color_system=None, force_terminal=False), table)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def as_markdown(table: ScoreTable) -> str:
    """Return the table in GitHub's Markdown, footnotes as a list."""
    columns = _columns(table)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join(
        [
            f"**{_title(table)}**",
            "",
            line([heading for heading, _ in columns]),
            line(["---" if heading == "model" else "---:" for heading, _ in columns]),
            *(line([show(row) for _, show in columns]) for row in _ordered(table)),
            "",
            *(f"- {note}" for note in footnotes(table)),
            "",
        ]
    )


def _hide_remote(spec: str) -> str:
    """Return `spec` cut before a URI: only remote places carry credentials."""
    head, mark, _ = spec.partition("://")
    return f"{head}{mark}..." if mark else spec


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


def as_json(table: ScoreTable, *, redact: Callable[[str], str] = _hide_remote) -> dict[str, Any]:
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
        "models": [_flat(row, redact) for row in _ordered(table)],
    }


def write_csv(
    table: ScoreTable, path: Path, *, redact: Callable[[str], str] = _hide_remote
) -> Path:
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
