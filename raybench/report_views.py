"""What the report's page shows of scores and of robust accuracy; no statistics of its own."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackTable
from raybench.kernels.targets import TEMPERATURES
from raybench.report_tables import ImageTables
from raybench.reports.agreement import SCORE_LABELS, Joined
from raybench.reports.attack_text import attack_notes
from raybench.reports.figures import Panel
from raybench.reports.html import BarLine, Budget, Figure, Plot, Reading, Tile
from raybench.reports.html_charts import Bar, Curve, Dot, bar, bar_limit, lines, scatter
from raybench.reports.html_gallery import picture_gallery
from raybench.reports.html_tables import (
    Cell,
    Heading,
    attack_grid,
    percent,
    score_grid,
    text_grid,
)
from raybench.reports.images import image_scores
from raybench.reports.notes import footnotes
from raybench.reports.tables import number
from raybench.sinks.store import load_rows, read_manifest
from raybench.sinks.tracking import redact

__all__ = ["Sheet", "reading_view", "robust_view", "scatter_plot", "tiles"]

_MOST_CURVES = 12
_TITLES = {
    "fig1": "Fig. 1, as a file",
    "fig2": "Fig. 2, the pair of the paper",
    "fig5_disagreement": "Fig. 5: ranks by raw, confidence-matched and normalised score",
    "fig6_noise": "Fig. 6: score against the number of images, and its noise",
    "robust": "Robust accuracy as bars",
    "effort": "Accuracy against iterations and queries",
    "security": "Accuracy against the size of the budget",
}
# What the page draws itself is linked only; the rest is shown where a reading is open.
_DRAWN_ANEW = ("fig1", "fig2", "robust")
_BARS = "Bars start at 0; whiskers are 95 % intervals over images."
_TRAINED = " The second colour marks models named -adv: adversarially trained."


@dataclass(frozen=True, slots=True)
class Sheet:
    """A figure of ``raybench show`` on disk, as a PNG."""

    path: Path

    def figure(self, *, shown: bool = True) -> Figure:
        """Return it for the page, its content included where it is `shown`."""
        stem = self.path.stem
        data = ""
        if shown and stem not in _DRAWN_ANEW:
            data = "data:image/png;base64," + base64.b64encode(self.path.read_bytes()).decode()
        address = f"figures/{self.path.parent.name}/{stem}"
        return Figure(_TITLES.get(stem, stem), address, data)


def reading_view(
    out: Path,
    table: ScoreTable,
    panels: Sequence[Panel],
    sheets: Sequence[Sheet],
    *,
    ident: str,
    first: bool,
) -> Reading:
    """Return everything that the page shows of one reading; the `first` one is open."""
    complete = [row for row in table.rows if row.status == "complete"]
    best = next((row for row in complete if row.rank == 1), None)
    lead = f"rank 1: {best.model.name}{' (tied)' if best.tied else ''}" if best else ""
    if len(complete) < len(table.rows):
        lead += f"{'; ' if lead else ''}{len(table.rows) - len(complete)} without a score"
    note = "" if panels else "No explanations are shown: the images have moved or have no segments."
    seed = f" · seed {table.seed}" if table.seed else ""
    return Reading(
        id=ident,
        title=f"{table.reading}{seed}",
        lead=lead,
        shown=first,
        grid=score_grid(table),
        notes=tuple(redact(note) for note in footnotes(table)),
        bars=tuple(_bars(complete)),
        bars_note=_BARS + (_TRAINED if any(_trained(r.model.name) for r in complete) else ""),
        gallery=tuple(picture_gallery(panels)),
        gallery_note=note,
        temperature=_temperature(out, table, complete),
        figures=tuple(sheet.figure(shown=first) for sheet in sheets),
    )


def _trained(name: str) -> bool:
    return name.endswith("-adv")


def _bars(rows: Sequence[ModelScore]) -> list[BarLine]:
    found = [
        Bar(row.model.name, row.score, row.ci_low, row.ci_high)
        for row in sorted(rows, key=lambda row: (row.score or 0.0, row.model.name))
        if row.score is not None
    ]
    limit = bar_limit(found)
    return [
        BarLine(
            name=one.name,
            text=number(one.value),
            detail=""
            if one.low is None or one.high is None
            else f"[{number(one.low)}, {number(one.high)}]",
            drawing=bar(one, limit, "trained" if _trained(one.name) else "plain"),
        )
        for one in found
    ]


def _temperature(out: Path, table: ScoreTable, rows: Sequence[ModelScore]) -> Plot | None:
    """Return the scores at the stored temperatures, or None where rows keep none."""
    known = [row for row in rows if row.temperature_half is not None]
    if not known:
        return None
    curves = []
    columns = (
        "sample_id", "status", "error", "predicted", "score", "l1", "temperature_l1",
        "temperature_probability",
    )  # fmt: skip
    for row in known:
        folder = out / row.folder
        images = image_scores(load_rows(folder, read_manifest(folder), columns))
        values = [(factor, images.at_temperature(factor)) for factor in TEMPERATURES]
        points = tuple((factor, value) for factor, value in values if value is not None)
        curves.append(Curve(row.model.name, points))
    drawn = curves
    more = ""
    if len(curves) > _MOST_CURVES:
        half = _MOST_CURVES // 2
        drawn = curves[:half] + curves[-half:]
        more = f" {len(drawn)} of {len(curves)} models, from both ends of the table."
    headings = [Heading("model", numeric=False)]
    headings += [Heading(f"T = {_factor(factor)}") for factor in TEMPERATURES]
    cells = [
        [Cell(curve.name), *(Cell(number(value), value) for _, value in curve.points)]
        for curve in curves
    ]
    return Plot(
        title="Temperature: the brittle-score when all logits are multiplied by T",
        drawing=lines(
            drawn,
            x_label="factor T on the logits",
            y_label="brittle-score",
            title=f"Brittle-score of {len(drawn)} models at {len(TEMPERATURES)} temperatures",
        ),
        caption=(
            "Multiplying the logits changes no prediction and no robust accuracy. Where lines "
            f"cross, the order by brittle-score depends on how confident models are.{more}"
        ),
        grid=text_grid("brittle-score with all logits times T", headings, cells),
        keys=tuple(curve.name for curve in drawn),
    )


def _factor(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def robust_view(table: AttackTable, sheets: Sequence[Sheet], ident: str, *, first: bool) -> Budget:
    """Return everything that the page shows of one budget; the `first` ones are open."""
    seed = f" · seed {table.seed}" if table.seed else ""
    return Budget(
        id=ident,
        title=f"{table.threat}{seed}",
        shown=first,
        grid=attack_grid(table),
        notes=tuple(redact(note) for note in attack_notes(table)),
        figures=tuple(sheet.figure(shown=first) for sheet in sheets),
    )


def scatter_plot(joined: Joined, *, shown: bool) -> Plot:
    """Return Fig. 3/4: a score over robust accuracy, points numbered as in the table beside it."""
    points = sorted(joined.points, key=lambda point: (-point.robust_accuracy, point.model))
    label = SCORE_LABELS[joined.field]
    dots = [
        Dot(
            name=point.model,
            x=point.robust_accuracy,
            y=point.score,
            x_bounds=_pair(point.robust_low, point.robust_high),
            y_bounds=_pair(point.ci_low, point.ci_high),
        )
        for point in points
    ]
    threat = joined.attacks.threat
    found = joined.found
    kinds = {"Spearman": "spearman", "Pearson": "pearson", "Kendall": "kendall"}
    correlations = ", ".join(
        f"{name} {_signed(getattr(found, field))} (p {getattr(found, f'{field}_p'):.3f})"
        for name, field in kinds.items()
    )
    caption = (
        f"Reading {joined.scores.reading}. {correlations} over {found.models} models. Bars: 95 % "
        "intervals."
    )
    cells = [
        [
            Cell(str(place), float(place)),
            Cell(point.model, point.model.casefold()),
            Cell(number(point.score), point.score),
            Cell(percent(point.robust_accuracy), point.robust_accuracy),
        ]
        for place, point in enumerate(points, start=1)
    ]
    headings = [
        Heading("no."),
        Heading("model", numeric=False),
        Heading(label),
        Heading("robust %"),
    ]
    return Plot(
        title=f"{label} against robust accuracy within {threat}",
        drawing=scatter(
            dots,
            x_label=f"robust accuracy within {threat}",
            y_label=label,
            title=f"{label} against robust accuracy within {threat}, {len(dots)} models",
        ),
        caption=caption,
        grid=text_grid(f"{label} and robust accuracy", headings, cells, compact=True),
        shown=shown,
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def tiles(tables: ImageTables, joined: Sequence[Joined]) -> list[Tile]:
    """Return what the section of a dataset says first."""
    scores, attacks = tables.shown, tables.attacks
    models = {info.fingerprint for info in tables.models}
    found = [Tile(f"{len(models):,}", "models")]
    if scores:
        first = scores[0]
        best = [row for row in first.rows if row.rank == 1]
        found += [
            Tile(
                f"{row.model.name}{' =' if row.tied else ''}",
                "ranks first (lowest score)" + (", tied" if row.tied else ""),
            )
            for row in best
        ]
    for table in attacks[:1]:
        best_robust = [row for row in table.rows if row.rank == 1]
        found += [
            Tile(
                f"{percent(row.robust_accuracy)} % · {row.model.name}",
                f"highest robust accuracy within {table.threat}" + (", tied" if row.tied else ""),
            )
            for row in best_robust
        ]
    if scores:
        own = [one for one in joined if one.scores is scores[0] and one.field == scores[0].rank_by]
        if own:
            found.append(
                Tile(
                    _signed(own[0].found.spearman),
                    f"Spearman, {SCORE_LABELS[own[0].field]} against robust accuracy within "
                    f"{own[0].attacks.threat} (the paper claims \N{MINUS SIGN}1)",
                )
            )
    return found
