"""The sentences under a ranked table: what it ranks by, what would reorder it, what is missing."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from raybench.core.decisions import Decisions, PairDecision
from raybench.core.results import ModelScore, ScoreTable
from raybench.reports.images import MATCHED_CONFIDENCE
from raybench.reports.layout import shorten

__all__ = ["comparisons", "footnotes", "ordered"]

_RANKED = {
    "normalised": "the normalised score",
    "score": "the brittle-score",
    "matched": "the brittle-score at equal mean confidence",
}


def comparisons(table: ScoreTable) -> dict[str, str]:
    """Return which model each model with an R.I. is compared with, itself left out."""
    return {
        row.model.name: row.baseline
        for row in table.rows
        if row.ri is not None and row.baseline is not None and row.baseline != row.model.name
    }


def ordered(table: ScoreTable) -> list[ModelScore]:
    """Return the rows with those that have no score at the bottom, order kept otherwise."""
    return sorted(table.rows, key=lambda row: row.status != "complete")


def footnotes(table: ScoreTable) -> list[str]:
    """Return the sentences that belong under the table: order, ties, warnings, errors."""
    rows = ordered(table)
    complete = [row for row in rows if row.status == "complete"]
    notes = [
        f"Ranked by {_RANKED[table.rank_by]}: lower = less brittle under this reading; other "
        "readings may rank otherwise."
    ]
    notes += _normalised(complete) + _disagreement(complete) + _temperature(complete)
    ties = [f"{row.model.name} with {shorten(row.tied)}" for row in complete if row.tied]
    if table.decisions is not None:
        notes += _decided(table.decisions)
    elif any(row.fixed_n is not None for row in complete):
        notes.append(
            "A sequential run chose how many images each model has; intervals for a fixed n are "
            "too narrow after that."
        )
    elif ties:
        notes.append(
            "= tied: the paired 95 % interval of the difference contains zero: "
            f"{shorten(ties, '; ')}."
        )
    pairs = comparisons(table)
    if len(set(pairs.values())) > 1:
        named = [f"{name} with {other}" for name, other in pairs.items()]
        notes.append(f"R.I. compares {shorten(named, '; ')}.")
    warned: dict[str, list[str]] = {}
    for row in rows:
        for warning in row.warnings:
            warned.setdefault(warning, []).append(row.model.name)
    for warning, names in warned.items():
        whom = "all models" if len(names) == len(rows) > 1 else shorten(names)
        notes.append(f"{whom}: {warning}")
    for row in rows:
        if row.status != "complete":
            reason = _first_line(row.error or "no score is published")
            notes.append(f"{row.model.name} is {row.status}: {reason}")
    return notes


_METHODS = {
    "betting": "a betting confidence sequence, which holds for any numbers in [0, 1] (Waudby-Smith "
    "and Ramdas 2024)",
    "asymptotic": "an asymptotic confidence sequence, whose error nears this with more images "
    "(Waudby-Smith et al. 2024)",
}
_SIGNS = {"separated": "<", "tied": "=", "undecided": "?"}


def _decided(found: Decisions) -> list[str]:
    """Return what a sequential run decided, what that is worth, and what it saved."""
    most = max((images for _, images in found.models.values()), default=0)
    share = found.queries_spent / found.queries_fixed_n if found.queries_fixed_n else 1.0
    open_pairs = sum(pair.verdict == "undecided" for pair in found.pairs)
    what = "Every two neighbours are decided"
    if open_pairs:
        what = f"{open_pairs} of {len(found.pairs)} neighbours are still undecided"
    tied = f"tied within ±{found.margin:g}" if found.margin else "tied (no margin was given)"
    verdicts = [_pair(pair) for pair in found.pairs]
    return [
        f"{what} at {most:,} of {found.fixed_n:,} images: {found.queries_spent:,} queries over all "
        f"readings, {100 * share:.0f} % of the {found.queries_fixed_n:,} of fixed n.",
        f"Neighbours (< separated, = {tied}, ? undecided) with the interval of their difference in "
        f"{found.column}: {shorten(verdicts, '; ')}.",
        f"These verdicts hold together and at every look, but for {100 * found.alpha:g} %: "
        f"{_METHODS[found.method]}; Bonferroni over {found.pairs_covered} pairs. The table's own "
        "intervals are those of a fixed n, too narrow where a run stops by what it sees; = behind "
        "a rank: not separated from a neighbour.",
    ]


def _pair(pair: PairDecision) -> str:
    shown = [look for look in pair.path if look[0] == pair.decided_at] or pair.path[-1:]
    images, *ends = shown[0]
    low, high = (f"{end:.3g}" if end is not None else "?" for end in ends)
    sign = _SIGNS[pair.verdict]
    return f"{pair.lower} {sign} {pair.higher} [{low}, {high}] at {images:,} images"


def _normalised(rows: Sequence[ModelScore]) -> list[str]:
    sources = sorted({row.normalised_by for row in rows if row.normalised_by})
    if not sources:
        return []
    queries = sorted({row.normalised_queries for row in rows if row.normalised_queries})
    spent = " to ".join(f"{count:,}" for count in (queries[:1] + queries[1:][-1:]))
    more = f" ({spent} further queries for each model)" if queries else ""
    return [
        f"normalised: {', '.join(sources)}{more}; no rescaling of the logits changes it. "
        "brittle-score: Eq. 2 of the paper, which every rescaling changes."
    ]


def _disagreement(rows: Sequence[ModelScore]) -> list[str]:
    """Return how many pairs of models change places between the raw score and its relatives."""
    columns = {
        "brittle-score": [row.score for row in rows],
        "matched": [row.matched for row in rows],
        "normalised": [row.normalised for row in rows],
    }
    known = {
        name: np.array(values, dtype=float)
        for name, values in columns.items()
        if len(values) > 1 and None not in values
    }
    swaps = {
        f"{first} and {second}": _swaps(known[first], known[second])
        for first, second in combinations(known, 2)
    }
    if not swaps:
        return []
    pairs = len(rows) * (len(rows) - 1) // 2
    legend = (
        f" matched: the brittle-score where the mean confidence is {MATCHED_CONFIDENCE}."
        if "matched" in known
        else ""
    )
    if not any(swaps.values()):
        return [f"{', '.join(known)}: the order of the models is the same by each.{legend}"]
    counted = "; ".join(f"{count} between {names}" for names, count in swaps.items() if count)
    return [
        f"The orders disagree: of {pairs} pairs of models, tied ones included, these swap places: "
        f"{counted}.{legend}"
    ]


def _swaps(first: np.ndarray, second: np.ndarray) -> int:
    signs = [np.sign(np.subtract.outer(column, column)) for column in (first, second)]
    return int((signs[0] * signs[1] < 0).sum()) // 2


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


def _first_line(error: str) -> str:
    """Return the line of `error` that says what happened: in a traceback, the exception's."""
    lines = [line for line in error.splitlines() if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        lines = [line for line in lines[1:] if not line[0].isspace()]
    return lines[0].strip() if lines else "no reason is known"
