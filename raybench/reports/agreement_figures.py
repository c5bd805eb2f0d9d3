"""A score of models against their accuracy under attack, as a figure.

fig4_agreement(points, Path("out/fig4"), score_label="brittle-score", accuracy_label="...")
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import Bbox, BboxBase

from raybench.kernels.draws import stream
from raybench.metrics.correlation import Agreement, agreement
from raybench.reports.figures import DPI, STYLE, WIDTH, plain, save, wrapped
from raybench.reports.tables import number

__all__ = [
    "AgreementPoint",
    "agreement_of",
    "draw_agreement",
    "fig4_agreement",
]

_FEWEST = 3
_LETTERS = 130  # of 8 points in `WIDTH`
_NAMED = 40  # points beyond which names would only cover each other, and take minutes to place


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementPoint:
    """One model's score and its accuracy under attack; bounds are 95 %, None where unknown.

    Attributes:
        model: its name, the label of the point.
        score, ci_low, ci_high: score and interval.
        robust_accuracy, robust_low, robust_high: fractions in [0, 1].
    """

    model: str
    score: float
    ci_low: float | None = None
    ci_high: float | None = None
    robust_accuracy: float
    robust_low: float | None = None
    robust_high: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"{self.model}: score must be finite, found {self.score}")
        for name in ("robust_accuracy", "robust_low", "robust_high"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{self.model}: {name} must lie in [0, 1], found {value}")


def agreement_of(points: Sequence[AgreementPoint]) -> Agreement:
    """Return the correlations of scores with accuracies, whatever the order of the points.

    Raises:
        ValueError: fewer than three points.
    """
    return _agreement(tuple(sorted(points, key=lambda point: point.model)))


# A table's text and its figure ask for the same, and hundreds of models take seconds.
@lru_cache(maxsize=64)
def _agreement(ordered: tuple[AgreementPoint, ...]) -> Agreement:
    return agreement(
        np.array([point.robust_accuracy for point in ordered]),
        np.array([point.score for point in ordered]),
        stream(0, "agreement", "|".join(point.model for point in ordered)),
    )


def fig4_agreement(
    points: Sequence[AgreementPoint],
    path_stem: Path,
    *,
    score_label: str,
    accuracy_label: str,
) -> list[Path]:
    """Write the scatter of `draw_agreement` as PNG and SVG and return their paths.

    Returns an empty list where there are no points.
    """
    if not points:
        return []
    with mpl.rc_context(STYLE):
        figure = draw_agreement(points, score_label=score_label, accuracy_label=accuracy_label)
        return save(figure, path_stem)


def draw_agreement(
    points: Sequence[AgreementPoint], *, score_label: str, accuracy_label: str
) -> Figure:
    """Return the scores over accuracies under attack, with 95 % error bars and correlations.

    Args:
        points: one or more models.
        score_label: what the score is and, after a comma, under which reading: the title has all of
            it, the y axis what stands before the comma.
        accuracy_label: title of the x axis, whose ticks carry the percent sign.
    """
    figure = Figure(figsize=(WIDTH, 5.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for point in points:
        for ends in _bars(point):
            axes.plot(*np.transpose(ends), color="0.55", linewidth=1.2, zorder=2)
        axes.plot(
            point.robust_accuracy, point.score, "o", color="#0072B2", markeredgecolor="black",
            markersize=7, zorder=3,
        )  # fmt: skip
    axes.margins(0.14)
    axes.set_xlabel(wrapped(accuracy_label, 85))
    axes.set_ylabel(wrapped(score_label.partition(", ")[0], 52))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    plain(axes, "y")
    axes.grid(axis="x", color="0.88", linewidth=0.8)
    title = f"{score_label}\nagainst {accuracy_label}; {len(points)} models, bars: 95 % intervals"
    figure.suptitle(wrapped(title), fontsize=10, x=0.01, ha="left")
    figure.supxlabel(wrapped(_agreement_caption(points), _LETTERS), fontsize=8, x=0.01, ha="left")
    if len(points) <= _NAMED:
        _name_points(figure, axes, points)
    return figure


def _bars(point: AgreementPoint) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the ends of the error bars that are known."""
    bars = []
    if point.robust_low is not None and point.robust_high is not None:
        bars.append(((point.robust_low, point.score), (point.robust_high, point.score)))
    if point.ci_low is not None and point.ci_high is not None:
        bars.append(((point.robust_accuracy, point.ci_low), (point.robust_accuracy, point.ci_high)))
    return bars


def _agreement_caption(points: Sequence[AgreementPoint]) -> str:
    if len(points) < _FEWEST:
        return f"No correlation is computed from fewer than {_FEWEST} models."
    # The order of the points must not change the permutations drawn.
    found = agreement_of(points)
    if math.isnan(found.pearson):
        return "No correlation is defined: all values along one axis are equal."
    how = "exact: all orders counted" if found.exact else "from random orders"
    correlations = ", ".join(
        f"{name} = {value:+.3f} (p = {number(p, 2)})".replace("= -", "= \N{MINUS SIGN}")
        for name, value, p in (
            ("Pearson r", found.pearson, found.pearson_p),
            ("Spearman rho", found.spearman, found.spearman_p),
            ("Kendall tau-b", found.kendall, found.kendall_p),
        )
    )
    return (
        f"{correlations}; two-sided permutation p-values, {how}. Pairs in which the lower score "
        f"has the higher accuracy: {found.pairs - found.concordant} of {found.pairs} (ties left "
        "out)."
    )


# Where a leader leaves a name, as a share of its box, for each alignment.
_NEAREST = {"left": 0.0, "bottom": 0.0, "center": 0.5, "right": 1.0, "top": 1.0}


def _spots() -> Iterator[tuple[float, float, str, str]]:
    """Yield where a name may stand beside its point: offset in points and alignment, best first."""
    for far in (6.0, 14.0, 24.0, 36.0, 50.0, 66.0):
        for x, ha in ((far, "left"), (-far, "right"), (0.0, "center")):
            yield x, far, ha, "bottom"
            yield x, -far, ha, "top"
        yield far + 2, 0.0, "left", "center"
        yield -far - 2, 0.0, "right", "center"
        yield far, far, "right", "bottom"
        yield far, -far, "right", "top"


def _name_points(figure: Figure, axes: Axes, points: Sequence[AgreementPoint]) -> None:
    """Write each name where it covers least of points, bars, earlier names and the page's edge.

    The figure is laid out first, since only then is it known where things lie in pixels.
    """
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    taken: list[BboxBase] = []
    for point in points:
        x, y = axes.transData.transform((point.robust_accuracy, point.score))
        taken.append(Bbox.from_extents(x - 9, y - 9, x + 9, y + 9))
        for ends in _bars(point):
            (left, low), (right, high) = axes.transData.transform(np.array(ends))
            taken.append(Bbox.from_extents(left - 2, low - 2, right + 2, high + 2))
    for point in points:
        anchor = (point.robust_accuracy, point.score)
        probe = axes.annotate(point.model, anchor, (0, 0), textcoords="offset points", fontsize=8)
        found = []
        for order, (dx, dy, ha, va) in enumerate(_spots()):
            probe.set(position=(dx, dy), ha=ha, va=va)
            box = probe.get_window_extent().expanded(1.0, 0.9)
            covered = sum(_shared(box, other) for other in taken)
            beyond = box.width * box.height - _shared(box, figure.bbox)
            found.append((round(covered + 100 * beyond), order, (dx, dy, ha, va), box))
            if found[-1][0] == 0:
                break
        probe.remove()
        _, _, (dx, dy, ha, va), box = min(found)
        taken.append(box)
        corner = (_NEAREST[ha], _NEAREST[va])
        leader = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "relpos": corner}
        axes.annotate(
            point.model, anchor, (dx, dy), textcoords="offset points", fontsize=8, zorder=4,
            ha=ha, va=va, arrowprops=leader if max(abs(dx), abs(dy)) > 8 else None,
        )  # fmt: skip


def _shared(one: BboxBase, other: BboxBase) -> float:
    """Return the area that two boxes share, in square pixels."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)
