"""How one score's order of the models differs from another's, as a figure.

    fig5_disagreement(table, Path("out/fig5_disagreement"))

Shapes: P models, C columns of ranks.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray
from scipy import stats

from raybench.core.results import ScoreTable
from raybench.reports.figures import DPI, STYLE, TALLEST, WIDTH, save, wrapped

__all__ = ["draw_disagreement", "fig5_disagreement"]

# Okabe and Ito's colours without yellow, which white swallows; line styles tell them in grey.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
_FEWEST = 3
_LETTERS = 130  # of 8 points in `WIDTH`
_MANY = 5  # names in a sentence
_LANE = 7.0  # points from one bar of ties to the next
_COLUMNS = {
    "score": "brittle-score",
    "matched": "score at equal\nmean confidence",
    "normalised": "normalised score",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranks:
    """The models of a table in the columns that are known.

    Attributes:
        names: P model names.
        fields: C fields of `ModelScore`.
        values: [P, C], NaN where a model has no such number.
        places: [P, C], 1 for the lowest value, no two alike, NaN likewise.
        tied: [C, P, P], equal values and, in the column that the table ranks by, its ties.
    """

    names: tuple[str, ...]
    fields: tuple[str, ...]
    values: NDArray[np.float64]
    places: NDArray[np.float64]
    tied: NDArray[np.bool_]


def fig5_disagreement(table: ScoreTable, path_stem: Path) -> list[Path]:
    """Write the ranks of `draw_disagreement` as PNG and SVG and return their paths.

    Returns an empty list where there is nothing that could disagree.
    """
    with mpl.rc_context(STYLE):
        figure = draw_disagreement(table)
        return [] if figure is None else save(figure, path_stem)


def draw_disagreement(table: ScoreTable) -> Figure | None:
    """Return each model's rank by score, by temperature-matched score and normalised, as lines.

    Lines that cross no other are thin and grey. Models tied in the column that the table ranks by
    share a bar. A model without a number in some column has no mark there.

    Returns:
        None for fewer than three models, or fewer than two columns that differ and know three.
    """
    ranks = _ranks(table)
    if len(ranks.fields) < 2:
        return None
    count, columns = ranks.places.shape
    names = max(map(len, ranks.names))
    size = (WIDTH + 0.15 * max(0, min(names, 48) - 16), min(1.9 + 0.34 * count, TALLEST))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    styles = itertools.count()
    for line, crosses in zip(ranks.places, _crossing(ranks.places), strict=True):
        turn = next(styles) if crosses else 0
        colour = _COLOURS[turn % len(_COLOURS)] if crosses else "0.6"
        dashes = _LINES[turn % len(_LINES)]
        width = 2.2 if crosses else 1.2
        axes.plot(line, color=colour, linestyle=dashes, linewidth=width, zorder=2 + crosses)
    lanes = 0
    for column in range(columns):
        _draw_marks(axes, ranks, column)
        lanes = _draw_ties(figure, column, _runs(ranks.places[:, column], ranks.tied[column]))
    _name_lines(axes, ranks, lanes)
    title = (
        f"Ranks of the same models by {columns} scores on {table.dataset.name} (1 = lowest = least "
        f"brittle)\nreading {table.reading}\n"
        f"n = {table.images} images, k = {table.samples:,} samples, seed {table.seed}"
    )
    figure.suptitle(wrapped(title), fontsize=10, x=0.01, ha="left")
    figure.supxlabel(_disagreement_caption(table, ranks), fontsize=8, x=0.01, ha="left")
    return figure


def _ranks(table: ScoreTable) -> _Ranks:
    """Return the columns that know enough models.

    A table of the flip radius alone has one number under two names, of which one is left out.
    """
    rows = [row for row in table.rows if row.status == "complete" and row.score is not None]
    names = tuple(row.model.name for row in rows)
    known: dict[str, NDArray[np.float64]] = {}
    for field in _COLUMNS:
        column = np.array([getattr(row, field) for row in rows], np.float64)  # None: NaN
        repeats = any(np.array_equal(column, other, equal_nan=True) for other in known.values())
        if (~np.isnan(column)).sum() >= _FEWEST and not repeats:
            known[field] = column
    stated = np.array([[name in row.tied for name in names] for row in rows], bool)
    nothing = np.empty((len(rows), 0))
    places = [
        stats.rankdata(column, method="ordinal", nan_policy="omit") for column in known.values()
    ]
    return _Ranks(
        names=names,
        fields=tuple(known),
        values=np.column_stack([nothing, *known.values()]),
        places=np.column_stack([nothing, *places]),
        tied=np.array(
            [
                (column[:, None] == column) | (stated if field == table.rank_by else False)
                for field, column in known.items()
            ]
        ),
    )


def _crossing(places: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether each line [P] crosses another between neighbouring columns of `places`."""
    found = np.zeros(len(places), dtype=bool)
    for left, right in itertools.pairwise(places.T):
        found |= ((left[:, None] - left) * (right[:, None] - right) < 0).any(axis=1)
    return found


def _runs(places: NDArray[np.float64], tied: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the longest runs (first, last place) in which every model ties with every other."""
    order = [int(row) for row in np.argsort(places) if not np.isnan(places[row])]
    runs: list[tuple[int, int]] = []
    for start in range(len(order)):
        end = start
        while end + 1 < len(order) and tied[order[end + 1], order[start : end + 1]].all():
            end += 1
        if end > start and (not runs or runs[-1][1] < end + 1):
            runs.append((start + 1, end + 1))
    return runs


def _draw_marks(axes: Axes, ranks: _Ranks, column: int) -> None:
    """Write the ranks of a column into circles: the lowest of equal values, ``=`` where tied."""
    values = ranks.values[:, column]
    for row, place in enumerate(ranks.places[:, column]):
        if np.isnan(place):
            continue
        tie = "=" if (np.delete(ranks.tied[column, row], row)).any() else ""
        axes.plot(
            column, place, "o", markersize=17, zorder=4, markerfacecolor="white",
            markeredgecolor="black", markeredgewidth=0.8,
        )  # fmt: skip
        text = f"{1 + int((values < values[row]).sum())}{tie}"
        size = 8 if len(text) < 4 else 6.5
        axes.annotate(text, (column, place), ha="center", va="center", fontsize=size, zorder=5)


def _draw_ties(figure: Figure, column: int, runs: Sequence[tuple[int, int]]) -> int:
    """Draw a bar for each run right of its column, in lanes that do not overlap; return lanes."""
    axes = figure.axes[0]
    ends: list[int] = []  # last place that each lane's bars reach
    for first, last in runs:
        lane = next((lane for lane, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        points = 13 + _LANE * lane
        beside = offset_copy(axes.transData, figure, x=points, units="points")
        axes.plot(
            [column, column], [first - 0.3, last + 0.3], color="0.45", linewidth=4.0, zorder=1,
            solid_capstyle="butt", transform=beside, clip_on=False,
        )  # fmt: skip
    return len(ends)


def _name_lines(axes: Axes, ranks: _Ranks, lanes: int) -> None:
    """Write the columns' names above and the models' at both ends, right of the bars."""
    last = len(ranks.fields) - 1
    axes.set_xticks(range(last + 1), [_COLUMNS[field] for field in ranks.fields], fontsize=9)
    axes.xaxis.tick_top()
    axes.set_xlim(-0.1, last + 0.1)
    axes.set_ylim(len(ranks.names) + 0.6, 0.4)
    right = axes.twinx()
    right.set_ylim(axes.get_ylim())
    right.patch.set_visible(False)
    for side, column, pad in ((axes, 0, 4.0), (right, last, 4.0 + _LANE * lanes)):
        places = ranks.places[:, column]
        known = [int(row) for row in np.argsort(places) if not np.isnan(places[row])]
        side.set_yticks(places[known], [ranks.names[row] for row in known], fontsize=9)
        side.tick_params(axis="y", length=0, pad=pad)
        side.tick_params(axis="x", length=0)
        side.spines[:].set_visible(False)


def _disagreement_caption(table: ScoreTable, ranks: _Ranks) -> str:
    heads = [_COLUMNS[field].replace("\n", " ") for field in ranks.fields]
    base = ranks.fields.index(table.rank_by) if table.rank_by in ranks.fields else 0
    upper = np.triu_indices(len(ranks.names), 1)
    gaps = [(column[:, None] - column)[upper] for column in ranks.values.T]
    tied = ranks.tied[base][upper]
    counts = []
    for head, gap in zip(heads, gaps, strict=True):
        other = gap * gaps[base] < 0
        if head != heads[base]:
            pairs = int((~np.isnan(gap * gaps[base])).sum())
            among = f" ({(other & tied).sum()} of them tied)" if other.any() else ""
            counts.append(f"{head} {other.sum()} of {pairs}{among}")
    notes = [
        f"Pairs of models in another order than by the {heads[base]}: {', '.join(counts)}. Thin "
        "lines cross none."
    ]
    if tied.any():
        notes.append(
            f"Bars and =: tied by the {heads[base]} (the paired 95 % interval of the difference "
            "contains zero); for other columns only equal values are marked."
        )
    for head, column in zip(heads, ranks.values.T, strict=True):
        unknown = [ranks.names[row] for row in np.flatnonzero(np.isnan(column))]
        if unknown:
            whose = ", ".join(unknown) if len(unknown) <= _MANY else f"{len(unknown)} models"
            notes.append(f"Not known: {head} of {whose}.")
    return wrapped(" ".join(notes), _LETTERS)
