"""How settled a score is: its running mean over images, and how much of it could be noise.

    fig6_noise(curves, Path("out/fig6_noise"), table)

Shapes: N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from raybench.core.results import ModelScore, ScoreTable
from raybench.metrics.sample_size import running_interval
from raybench.reports.figures import DPI, STYLE, WIDTH, plain, save, wrapped
from raybench.reports.tables import number

__all__ = ["NoiseCurve", "draw_noise", "fig6_noise", "shown_rows"]

_ENDS = 4  # models shown from either end of a long table
_COLUMNS = 4
_BAND = "#9CC7E4"
_LINE = "#00507D"
_OTHERS = "0.45"
_DRAWN = 400  # points of a line: more would only make the SVG heavy
_EARLY = 0.1  # share of the images whose wide band may leave the picture


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseCurve:
    """One model's scores in the stored order of the images, and what of their mean is noise.

    Attributes:
        model: its name.
        scores: [N] float64, NaN where an image was not scored.
        noise_floor: what pure noise would score; None where the reading cannot tell.
        corrected: the score less its noise; None likewise.
    """

    model: str
    scores: NDArray[np.float64]
    noise_floor: float | None = None
    corrected: float | None = None

    @property
    def known(self) -> NDArray[np.float64]:
        """The scores that are known [<= N], in order."""
        scores: NDArray[np.float64] = self.scores[~np.isnan(self.scores)]
        return scores


def shown_rows(table: ScoreTable) -> list[ModelScore]:
    """Return the complete rows that the figure shows: all of eight, else four from either end."""
    rows = [row for row in table.rows if row.status == "complete" and row.score is not None]
    return rows if len(rows) <= 2 * _ENDS else rows[:_ENDS] + rows[-_ENDS:]


def fig6_noise(curves: Sequence[NoiseCurve], path_stem: Path, table: ScoreTable) -> list[Path]:
    """Write `draw_noise` as PNG and SVG and return their paths.

    Returns an empty list where no model has two scored images.
    """
    with mpl.rc_context(STYLE):
        figure = draw_noise(curves, table)
        return [] if figure is None else save(figure, path_stem)


def draw_noise(curves: Sequence[NoiseCurve], table: ScoreTable) -> Figure | None:
    """Return each model's running mean with its band and, below, score against noise.

    One small panel for each model, since bands of models that nearly tie would hide each other; the
    scale is shared and the other models' means are in grey. The lower panel is left out where no
    noise is known.

    Args:
        curves: the models of `shown_rows`, in its order.
        table: where they come from: reading, k, n and seed.

    Returns:
        None where no model has two scored images.
    """
    curves = [curve for curve in curves if len(curve.known) > 1]
    if not curves:
        return None
    noisy = [curve for curve in curves if curve.noise_floor is not None]
    lines = -(-len(curves) // _COLUMNS)
    heights = [0.5 + 1.95 * lines] + ([1.35 + 0.34 * len(noisy)] if noisy else [])
    title = _title(curves, table)
    height = 0.2 + 0.2 * len(title.splitlines()) + sum(heights)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _running(parts[0], curves, lines)
    if noisy:
        _dumbbells(parts[1], noisy, table.samples)
    return figure


def _title(curves: Sequence[NoiseCurve], table: ScoreTable) -> str:
    complete = sum(row.status == "complete" for row in table.rows)
    lines = [
        f"How settled the scores are on {table.dataset.name}",
        f"reading {table.reading}",
        f"n = {table.images} images, k = {table.samples:,} samples, seed {table.seed}",
    ]
    if complete > 2 * _ENDS:
        lines[2] += f"; {len(curves)} of {complete} models, from both ends of the table"
    return wrapped("\n".join(lines))


class _Running(NamedTuple):
    """A running mean at M numbers of images: counts [M], means [M], half the 95 % band [M]."""

    counts: NDArray[np.int64]
    means: NDArray[np.float64]
    half: NDArray[np.float64]


def _run(curve: NoiseCurve) -> _Running:
    means, half = running_interval(curve.known)
    kept = np.unique(np.linspace(1, len(means) - 1, _DRAWN).astype(np.int64))
    return _Running(kept + 1, means[kept], half[kept])


def _running(part: SubFigure, curves: Sequence[NoiseCurve], lines: int) -> None:
    columns = -(-len(curves) // lines)
    grid = part.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    running = [_run(curve) for curve in curves]
    for place, (axes, curve) in enumerate(zip(grid, curves, strict=False)):
        for other, (counts, means, _) in enumerate(running):
            if other != place:
                axes.plot(counts, means, color=_OTHERS, linewidth=0.7, zorder=2.5)
        counts, means, half = running[place]
        axes.fill_between(counts, means - half, means + half, color=_BAND, linewidth=0, zorder=2)
        axes.plot(counts, means, color=_LINE, linewidth=1.6, zorder=3)
        share = f" (±{100 * half[-1] / means[-1]:.0f} %)" if means[-1] > 0 else ""
        name = _short(curve.model, 100 // columns)
        axes.set_title(f"{name}\n{number(means[-1])} ± {number(half[-1], 2)}{share}", fontsize=8)
        axes.tick_params(labelsize=8, labelbottom=place >= len(curves) - columns)
        plain(axes, "y")
    for axes in grid[len(curves) :]:
        axes.set_visible(False)
    grid[0].set_ylim(*_limits(running))
    grid[0].set_xlim(1, max(run.counts[-1] for run in running))
    others = " (thin: means of the other models)" if len(curves) > 1 else ""
    part.supxlabel(f"images n, in the stored order{others}", fontsize=9)
    part.supylabel("running mean, 95 % normal band", fontsize=9)


def _short(name: str, letters: int) -> str:
    """Return a name without its middle, where it is too long: both its ends tell it apart."""
    half = letters // 2
    return name if len(name) <= letters else f"{name[: letters - half - 1]}…{name[-half:]}"


def _limits(running: Sequence[_Running]) -> tuple[float, float]:
    """Return y limits that hold every band but the earliest tenth, which would dwarf the rest."""
    lows, highs = [], []
    for counts, means, half in running:
        late = counts >= min(max(5, _EARLY * counts[-1]), counts[-1])
        lows.append((means - half)[late].min())
        highs.append((means + half)[late].max())
    low, high = max(0.0, float(min(lows))), float(max(highs))
    room = 0.05 * (high - low) or 0.5
    return max(0.0, low - room), high + room


def _dumbbells(part: SubFigure, curves: Sequence[NoiseCurve], samples: int) -> None:
    axes = part.subplots()
    places = np.arange(len(curves))
    scores = np.array([curve.known.mean() for curve in curves])
    floors = np.array([_or_nan(curve.noise_floor) for curve in curves])
    corrected = np.array([_or_nan(curve.corrected) for curve in curves])
    axes.hlines(places, floors, scores, color="0.8", linewidth=1.2, zorder=1)
    axes.hlines(places, corrected, scores, color="0.35", linewidth=3.0, zorder=2)
    _marks(axes, floors, places, "D", "white", "noise floor: what pure noise would score")
    _marks(axes, corrected, places, "s", "#F0B27A", "score less its noise")
    _marks(axes, scores, places, "o", _LINE, "score")
    right = float(np.nanmax([scores, floors, corrected])) or 1.0
    for place, score, floor in zip(places, scores, floors, strict=True):
        if score > 0:
            axes.annotate(
                f"floor {100 * floor / score:.0f} % of score", (1.0, place), (4, 0),
                xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                ha="left", va="center", fontsize=8, annotation_clip=False,
            )  # fmt: skip
    axes.set_yticks(places, [curve.model for curve in curves], fontsize=8)
    axes.set_ylim(len(curves) - 0.4, -0.6)
    axes.set_xlim(0, right * 1.06)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(
        f"brittle-score and its noise at k = {samples:,} samples for each image "
        "(lower = less brittle under this reading)",
        fontsize=9,
    )
    part.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    plain(axes, "x")


def _marks(
    axes: Axes,
    values: NDArray[np.float64],
    places: NDArray[np.int64],
    marker: str,
    face: str,
    label: str,
) -> None:
    axes.plot(
        values, places, marker, markersize=8, markerfacecolor=face, markeredgecolor="black",
        markeredgewidth=0.9, linestyle="none", label=label, zorder=3,
    )  # fmt: skip


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
