"""The tables of the HTML report: what each cell shows and what it sorts by.

    grid = score_grid(table)
    grid.headings[0].text, grid.rows[0].cells[0].text

Numbers are written by the functions that write them in terminals and Markdown, so that a page and
a file never differ.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackScore, AttackTable, RobustScore
from raybench.core.types import ModelInfo
from raybench.reports.agreement import SCORE_LABELS, Joined
from raybench.reports.attack_text import attack_names
from raybench.reports.html_charts import Bar, forest, limits
from raybench.reports.layout import hide_remote
from raybench.reports.notes import comparisons, ordered
from raybench.reports.tables import number
from raybench.sinks.tracking import redact

__all__ = [
    "Cell",
    "Grid",
    "Heading",
    "Row",
    "attack_grid",
    "correlation_grid",
    "percent",
    "score_grid",
    "shown_spec",
    "text_grid",
]

_NONE = "–"  # noqa: RUF001 - a dash where a number would stand


Ranked = TypeVar("Ranked", ModelScore, RobustScore)


@dataclass(frozen=True, slots=True)
class Heading:
    """A column: its heading, whether it holds numbers, and what a pointer over it explains."""

    text: str
    numeric: bool = True
    hint: str = ""
    sortable: bool = True


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows: text, a quieter detail behind it, and a drawing.

    `sort` is what rows are sorted by; None comes last either way.
    """

    text: str
    sort: float | str | None = None
    detail: str = ""
    drawing: Markup | None = None
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Cells under the headings; `words` is what a filter searches, `tied` the ranks tied with."""

    cells: tuple[Cell, ...]
    words: str = ""
    rank: int | None = None
    tied: tuple[int, ...] = ()
    wrong: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table of the page.

    Attributes:
        caption: what it shows.
        headings: columns; `name` is the place of the one that names the row.
        rows: in the order shown first.
        sortable: whether readers may sort and filter.
        sorted_by: place of the column that the order comes from, if any.
        compact: few and narrow columns, which stay columns on a phone.
    """

    caption: str
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    name: int = 0
    sortable: bool = True
    sorted_by: int | None = None
    compact: bool = False


def shown_spec(spec: str) -> str:
    """Return a spec without credentials: remote places are cut off whole."""
    return redact(hide_remote(spec))


def percent(value: float | None) -> str:
    """Return a fraction in percent, with one decimal."""
    return _NONE if value is None else f"{100 * value:.1f}"


def _number(value: float | None, digits: int = 4) -> Cell:
    return Cell(_NONE if value is None else number(value, digits), value)


def _bounded(
    value: float | None,
    low: float | None,
    high: float | None,
    show: Callable[[float], str] = number,
) -> Cell:
    if value is None:
        return Cell(_NONE)
    if low is None or high is None:
        return Cell(show(value), value)
    return Cell(show(value), value, detail=f"[{show(low)}, {show(high)}]")


def _count(value: int | None) -> Cell:
    return Cell(_NONE if value is None else f"{value:,}", value)


def _rank(rank: int | None, tied: bool) -> Cell:
    return Cell(_NONE if rank is None else f"{rank}{'=' if tied else ''}", rank)


def _ties(rank: int | None, others: Sequence[int]) -> Cell:
    """Return the ranks that a model ties with, neighbours drawn together: ``2-4, 7``."""
    if rank is None:
        return Cell(_NONE)
    if not others:
        return Cell("none", 0)
    runs: list[list[int]] = []
    for other in sorted(others):
        # The model's own rank may lie within a run: 1, 3 of rank 2 reads as 1, 3 and not as 1-3.
        if runs and other == runs[-1][-1] + 1:
            runs[-1].append(other)
        else:
            runs.append([other])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return Cell(text, len(others))


def _namer(rows: Sequence[ModelScore] | Sequence[RobustScore]) -> Callable[[ModelInfo], Cell]:
    """Return what shows a model's name, with its access level where those differ."""
    differ = len({row.model.access for row in rows}) > 1

    def show(model: ModelInfo) -> Cell:
        level = f"{model.access.name.lower()} access" if differ else ""
        return Cell(model.name, model.name.casefold(), detail=level)

    return show


def _words(model: ModelInfo, status: str) -> str:
    return " ".join(
        (model.name, shown_spec(model.spec), model.access.name.lower(), status)
    ).casefold()


def _tied_ranks(row: ModelScore | RobustScore, ranks: dict[str, int | None]) -> tuple[int, ...]:
    found = (ranks.get(name) for name in row.tied)
    return tuple(sorted(rank for rank in found if rank is not None))


def _score_bar(row: ModelScore, field: str) -> Bar | None:
    """Return what a table ranks by, with its interval where one is known."""
    value = getattr(row, field)
    bounds = {
        "score": (row.ci_low, row.ci_high),
        "normalised": (row.normalised_low, row.normalised_high),
    }
    return None if value is None else Bar(row.model.name, value, *bounds.get(field, (None, None)))


def _drawn(one: Bar | None, scale: tuple[float, float]) -> Cell:
    return Cell("", one.value if one else None, drawing=forest(one, scale) if one else None)


_RANKED = {"score": "brittle-score", "normalised": "normalised", "matched": "matched"}


def _ranked(
    rows: Sequence[Ranked],
    columns: Sequence[tuple[Heading, Callable[[Ranked], Cell]]],
    ranks: dict[str, int | None],
    caption: str,
) -> Grid:
    """Return one line a model under `columns`: rank, name, and what more there is."""
    headings, shows = zip(*columns, strict=True)
    return Grid(
        caption=caption,
        headings=headings,
        rows=tuple(
            Row(
                cells=tuple(show(row) for show in shows),
                words=_words(row.model, row.status),
                rank=row.rank,
                tied=_tied_ranks(row, ranks),
                wrong=row.status != "complete",
            )
            for row in rows
        ),
        name=1,
        sorted_by=0,
    )


def score_grid(table: ScoreTable) -> Grid:
    """Return the ranked table of one reading, best first, failed models at the bottom."""
    rows = ordered(table)
    pairs = comparisons(table)
    name = _namer(rows)
    ranks = {row.model.name: row.rank for row in rows}
    bars = {row.key: _score_bar(row, table.rank_by) for row in rows}
    scale = limits([one for one in bars.values() if one])

    def has(field: str) -> bool:
        return any(getattr(row, field) is not None for row in rows)

    def score(row: ModelScore) -> Cell:
        if row.status != "complete":
            return Cell(row.status)
        return _bounded(row.score, row.ci_low, row.ci_high)

    def gain(row: ModelScore) -> Cell:
        if row.model.name in pairs:
            return _bounded(row.ri, row.ri_low, row.ri_high)
        return Cell("baseline" if row.model.name in pairs.values() else _NONE)

    def images(row: ModelScore) -> Cell:
        more = f"{row.unscored:,} unscored" if row.unscored else ""
        return Cell(f"{row.n:,}", row.n, detail=more)

    columns: list[tuple[Heading, Callable[[ModelScore], Cell]]] = [
        (Heading("rank", hint="= : tied with others"), lambda r: _rank(r.rank, bool(r.tied))),
        (Heading("model", numeric=False), lambda r: name(r.model)),
    ]
    if has("normalised"):
        columns.append(
            (
                Heading("normalised", hint="no rescaling of the logits changes it; 95 % interval"),
                lambda r: _bounded(r.normalised, r.normalised_low, r.normalised_high),
            )
        )
    columns.append((Heading("brittle-score", hint="Eq. 2 of the paper; 95 % interval"), score))
    if table.rank_by == "matched":
        heading = Heading("matched", hint="brittle-score at equal mean confidence")
        columns.append((heading, lambda r: _number(r.matched)))
    columns.append(
        (
            Heading(
                f"{_RANKED[table.rank_by]}, drawn",
                hint="value and 95 % interval, all on one scale: lower = left",
                sortable=False,
            ),
            lambda r: _drawn(bars[r.key], scale),
        )
    )
    columns.append(
        (
            Heading("tied with ranks", hint="paired 95 % interval of the difference contains 0"),
            lambda r: _ties(r.rank, _tied_ranks(r, ranks)),
        )
    )
    if has("noise_floor"):
        heading = Heading("noise", hint="what weights of pure sampling noise would score")
        columns.append((heading, lambda r: _number(r.noise_floor, 2)))
    if pairs:
        columns.append((Heading("R.I. %", hint="Eq. 3, against its baseline; 95 %"), gain))
    if has("clean_accuracy"):
        columns.append(
            (
                Heading("clean %", hint="share of images right; Wilson 95 % interval"),
                lambda r: _bounded(r.clean_accuracy, r.clean_low, r.clean_high, percent),
            )
        )
    columns.append((Heading("images"), images))
    caption = f"Models on {table.dataset.name}, reading {table.reading}"
    return _ranked(rows, columns, ranks, caption)


def attack_grid(table: AttackTable) -> Grid:
    """Return robust accuracy within one budget, and accuracy under each attack alone."""
    ranks = {row.model.name: row.rank for row in table.rows}
    names = attack_names(table)
    name = _namer(table.rows)
    bars = {
        row.model.name: Bar(row.model.name, row.robust_accuracy, row.robust_low, row.robust_high)
        for row in table.rows
        if row.robust_accuracy is not None
    }

    def robust(row: RobustScore) -> Cell:
        if row.status != "complete":
            return Cell(row.status)
        return _bounded(row.robust_accuracy, row.robust_low, row.robust_high, percent)

    def under(spec: str) -> Callable[[RobustScore], Cell]:
        def show(row: RobustScore) -> Cell:
            own = [attack for attack in row.attacks if attack.reading == spec]
            return _under(own[0]) if own else Cell(_NONE)

        return show

    columns: list[tuple[Heading, Callable[[RobustScore], Cell]]] = [
        (Heading("rank", hint="= : tied with others"), lambda r: _rank(r.rank, bool(r.tied))),
        (Heading("model", numeric=False), lambda r: name(r.model)),
        (Heading("robust %", hint="no successful attack found; Wilson 95 % interval"), robust),
        (
            Heading("robust %, drawn", hint="value and 95 % interval, 0 to 100 %", sortable=False),
            lambda r: _drawn(bars.get(r.model.name), (-0.02, 1.02)),
        ),
        (
            Heading("tied with ranks", hint="McNemar's exact test, 5 %"),
            lambda r: _ties(r.rank, _tied_ranks(r, ranks)),
        ),
        (
            Heading("clean %", hint="share of images right; Wilson 95 % interval"),
            lambda r: _bounded(r.clean_accuracy, r.clean_low, r.clean_high, percent),
        ),
    ]
    if len(names) > 1:
        columns += [
            (Heading(f"{short} %", hint=spec), under(spec)) for spec, short in names.items()
        ]
    columns.append((Heading("images"), lambda r: _count(r.n)))
    caption = f"Models on {table.dataset.name}, attacked within {table.threat}"
    return _ranked(table.rows, columns, ranks, caption)


def _under(attack: AttackScore) -> Cell:
    if attack.accuracy is None:
        return Cell(attack.status)
    return Cell(percent(attack.accuracy), attack.accuracy)


def correlation_grid(joined: Sequence[Joined]) -> Grid:
    """Return the correlations of scores with robust accuracy, one line for each pair."""

    def signed(value: float) -> str:
        return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")

    def cell(value: float, p: float) -> Cell:
        return Cell(signed(value), value, detail=f"p = {number(p, 2)}")

    rows = []
    for one in joined:
        found = one.found
        reading = one.scores.reading
        rows.append(
            Row(
                cells=(
                    Cell(SCORE_LABELS[one.field], SCORE_LABELS[one.field], detail=reading),
                    Cell(one.attacks.threat, one.attacks.threat),
                    cell(found.spearman, found.spearman_p),
                    cell(found.pearson, found.pearson_p),
                    cell(found.kendall, found.kendall_p),
                    Cell(
                        f"{found.pairs - found.concordant} of {found.pairs}",
                        (found.pairs - found.concordant) / max(1, found.pairs),
                    ),
                    Cell(str(found.models), found.models, detail="" if found.exact else "sampled"),
                ),
                words=f"{SCORE_LABELS[one.field]} {reading} {one.attacks.threat}".casefold(),
            )
        )
    return Grid(
        caption="Score against robust accuracy: correlations (-1 = the claim holds perfectly)",
        headings=(
            Heading("score", numeric=False),
            Heading("robust accuracy within", numeric=False),
            Heading("Spearman", hint="two-sided permutation p-values"),
            Heading("Pearson", hint="two-sided permutation p-values"),
            Heading("Kendall", hint="tau-b; two-sided permutation p-values"),
            Heading("pairs as claimed", hint="the lower score has the higher accuracy; no ties"),
            Heading("models", hint="p-values are exact unless marked sampled"),
        ),
        rows=tuple(rows),
    )


def text_grid(
    caption: str,
    headings: Sequence[Heading],
    rows: Sequence[Sequence[Cell | str]],
    *,
    sortable: bool = False,
    compact: bool = False,
) -> Grid:
    """Return a table of plain cells; a text sorts by itself."""
    return Grid(
        caption=caption,
        headings=tuple(headings),
        rows=tuple(
            Row(
                cells=tuple(
                    cell if isinstance(cell, Cell) else Cell(cell, cell.casefold()) for cell in row
                ),
                words=" ".join(c.text if isinstance(c, Cell) else c for c in row).casefold(),
            )
            for row in rows
        ),
        sortable=sortable,
        compact=compact,
    )
