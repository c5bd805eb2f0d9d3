"""The first two figures of a run: scores with their intervals, and explanations side by side.

    fig1_scores(table, Path("out/fig1"))                        # fig1.png, fig1.svg
    fig2_explanations(panels, Path("out/fig2"), reading="grid")

Drawn with matplotlib's objects alone, so that no global state is touched; the same input gives the
same SVG bytes. Shapes: C channels, H height, W width, S segments.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Patch
from numpy.typing import NDArray

from raybench.core.results import ModelScore, ScoreTable
from raybench.metrics.sparsity import area_fractions, mask_values
from raybench.reports.tables import number

__all__ = [
    "DPI",
    "MASK_COLOURS",
    "STYLE",
    "TALLEST",
    "WIDTH",
    "Panel",
    "draw_explanations",
    "draw_scores",
    "fig1_scores",
    "fig2_explanations",
    "mask_values",
    "plain",
    "save",
    "wrapped",
]

# Negative, zero, positive, in the colours of the paper's figure (spec 01 section 1.5).
MASK_COLOURS: Mapping[int, tuple[float, float, float]] = {
    -1: (0.16, 0.38, 0.76),
    0: (0.97, 0.91, 0.45),
    1: (0.93, 0.42, 0.65),
}

# Blue and vermilion stay apart for every kind of colour vision; the hatch tells them in grey.
_STANDARD = "#0072B2"
_ADVERSARIAL = "#E8743B"
_HATCH = "///"
_SUFFIX = "-adv"
DPI = 150
WIDTH = 8.0  # inches: 1,200 pixels
_MOST_PAIRS = 8
TALLEST = 400.0  # inches; Agg draws at most 65,536 pixels
STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "raybench",
    "text.parse_math": False,  # names may hold dollar signs
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One image and its explanations under several models, over the same segments.

    Attributes:
        id: sample id, shown beside the row.
        image: pixels [C, H, W] in [0, 1], one or three channels.
        segments: segment of each pixel [H, W], integers in 0 .. S-1.
        weights: signed weights [S] by model name, in the order of display (left first).
        predicted: predicted class by model name.
    """

    id: str
    image: NDArray[np.float32]
    segments: NDArray[np.int64]
    weights: Mapping[str, NDArray[np.float32]]
    predicted: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[0] not in (1, 3):
            raise ValueError(
                f"{self.id}: image must be [1 or 3, H, W], found {list(self.image.shape)}"
            )
        if self.segments.shape != self.image.shape[1:]:
            raise ValueError(
                f"{self.id}: segments must be {list(self.image.shape[1:])} as the image, found "
                f"{list(self.segments.shape)}"
            )
        count = int(self.segments.max()) + 1
        for name, weights in self.weights.items():
            if weights.shape != (count,):
                raise ValueError(
                    f"{self.id}: weights of {name} must be [{count}], one for each segment, found "
                    f"{list(weights.shape)}"
                )
        if set(self.weights) != set(self.predicted):
            raise ValueError(f"{self.id}: weights and predicted must name the same models")


def fig1_scores(table: ScoreTable, path_stem: Path) -> list[Path]:
    """Write the bar chart of `draw_scores` as PNG and SVG and return their paths.

    Returns an empty list where no model has a score.
    """
    with mpl.rc_context(STYLE):
        figure = draw_scores(table)
        return [] if figure is None else save(figure, path_stem)


def draw_scores(table: ScoreTable) -> Figure | None:
    """Return the scores as bars with 95 % intervals, or None where there are none.

    Models that pair up as X and X-adv stand side by side; any other set is a ranked list of
    horizontal bars.
    """
    rows = [row for row in table.rows if row.status == "complete" and row.score is not None]
    if not rows:
        return None
    pairs = _pairs(rows)
    return _paired_bars(table, pairs) if pairs else _ranked_bars(table, rows)


def _pairs(rows: Sequence[ModelScore]) -> list[tuple[ModelScore, ModelScore]]:
    """Return (X, X-adv) for every row, or nothing unless all of a few rows pair up."""
    named = {row.model.name: row for row in rows}
    pairs = [
        (row, named[name + _SUFFIX])
        for name, row in sorted(named.items())
        if name + _SUFFIX in named
    ]
    whole = len(named) == len(rows) == 2 * len(pairs)
    return pairs if whole and len(pairs) <= _MOST_PAIRS else []


def _title(table: ScoreTable) -> str:
    return wrapped(
        f"brittle-score on {table.dataset.name}, reading {table.reading}\n"
        f"n = {table.images} images, k = {table.samples:,} samples, seed {table.seed}; "
        "whiskers: 95 % CI over images"
    )


_SCORE_LABEL = "brittle-score (lower = less brittle under this reading)"


def _value(row: ModelScore) -> float:
    assert row.score is not None
    return row.score


def _interval(row: ModelScore) -> tuple[float, float] | None:
    if row.ci_low is None or row.ci_high is None:
        return None
    return row.ci_low, row.ci_high


def _paired_bars(table: ScoreTable, pairs: Sequence[tuple[ModelScore, ModelScore]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 4.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    width = 0.38
    for side, (label, colour, hatch) in enumerate(
        (("standard", _STANDARD, ""), ("adversarially trained (-adv)", _ADVERSARIAL, _HATCH))
    ):
        rows = [pair[side] for pair in pairs]
        places = np.arange(len(rows)) + (side - 0.5) * (width + 0.02)
        axes.bar(
            places,
            [_value(row) for row in rows],
            width,
            color=colour,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.8,
            label=label,
        )
        for place, row in zip(places, rows, strict=True):
            limits = _interval(row)
            top = _value(row)
            if limits is not None:
                axes.vlines(place, *limits, color="black", linewidth=1.4)
                axes.plot([place, place], limits, "_", color="black", markersize=8)
                top = max(top, limits[1])
            axes.annotate(
                number(_value(row)), (place, top), (0, 4), textcoords="offset points",
                ha="center", va="bottom", fontsize=9,
            )  # fmt: skip
    axes.set_xticks(np.arange(len(pairs)), [standard.model.name for standard, _ in pairs])
    axes.set_ylabel(_SCORE_LABEL, fontsize=9)
    axes.set_ylim(0, axes.dataLim.y1 * 1.12 or 1)
    axes.set_title(_title(table), fontsize=10, loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    plain(axes, "y")
    return figure


def _ranked_bars(table: ScoreTable, rows: Sequence[ModelScore]) -> Figure:
    height = min(1.5 + 0.27 * len(rows), TALLEST)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows, key=_value)
    places = np.arange(len(ordered))
    adversarial = [row.model.name.endswith(_SUFFIX) for row in ordered]
    bars = axes.barh(
        places,
        [_value(row) for row in ordered],
        0.72,
        color=[_ADVERSARIAL if adv else _STANDARD for adv in adversarial],
        edgecolor="black",
        linewidth=0.6,
    )
    for bar, adv in zip(bars, adversarial, strict=True):
        bar.set_hatch(_HATCH if adv else "")
    for place, row in zip(places, ordered, strict=True):
        limits = _interval(row)
        end = _value(row)
        if limits is not None:
            axes.hlines(place, *limits, color="black", linewidth=1.4)
            axes.plot(limits, [place, place], "|", color="black", markersize=6)
            end = max(end, limits[1])
        axes.annotate(
            number(_value(row)), (end, place), (4, 0), textcoords="offset points",
            ha="left", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(places, [row.model.name for row in ordered], fontsize=8)
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    axes.set_xlim(0, axes.dataLim.x1 * 1.12 or 1)
    axes.set_xlabel(_SCORE_LABEL, fontsize=9)
    figure.suptitle(_title(table), fontsize=10, x=0.01, ha="left")
    if any(adversarial):
        figure.legend(
            handles=[
                Patch(facecolor=_STANDARD, edgecolor="black", label="other"),
                Patch(facecolor=_ADVERSARIAL, edgecolor="black", hatch=_HATCH, label="named -adv"),
            ],
            loc="outside lower center",
            ncols=2,
            frameon=False,
            fontsize=8,
        )
    plain(axes, "x")
    return figure


def wrapped(text: str, letters: int = 99) -> str:
    """Return `text`, its lines broken to `letters`: what `WIDTH` holds at 10 points."""
    lines = [textwrap.fill(line, letters, break_on_hyphens=False) for line in text.splitlines()]
    return "\n".join(lines)


def plain(axes: Axes, scale: str) -> None:
    """Leave `axes` two spines, and a grid behind the data along `scale`, x or y."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y" if scale == "y" else "x", color="0.88", linewidth=0.8)


def fig2_explanations(
    panels: Sequence[Panel],
    path_stem: Path,
    *,
    reading: str,
    top: int = 10,
    min_weight: float = 0.01,
    relative: float | None = None,
) -> list[Path]:
    """Write the explanations of `draw_explanations` as PNG and SVG and return their paths."""
    with mpl.rc_context(STYLE):
        figure = draw_explanations(
            panels, reading=reading, top=top, min_weight=min_weight, relative=relative
        )
        return save(figure, path_stem)


def draw_explanations(
    panels: Sequence[Panel],
    *,
    reading: str,
    top: int = 10,
    min_weight: float = 0.01,
    relative: float | None = None,
) -> Figure:
    """Return rows of image, signed weights and three-valued mask, for each model side by side.

    The weight maps of a row share one scale, symmetric around zero and written beside the row. The
    masks are those of `mask_values`, coloured straight from the sign.

    Args:
        panels: the images, all with the same models in the same order.
        reading: reading spec the weights were computed under.
        top: how many segments a mask may hold.
        min_weight: least magnitude in a mask.
        relative: if given, the least magnitude is this share of the image's largest instead.

    Raises:
        ValueError: no panels, or panels with different models.
    """
    names = list(panels[0].weights) if panels else []
    if not names or any(list(panel.weights) != names for panel in panels):
        raise ValueError("panels must be one or more, all with the same models in the same order")
    columns = 3 * len(names)
    width = max(WIDTH, 1.42 * columns)
    shape = panels[0].segments.shape
    cell = 0.88 * width / columns * float(np.clip(shape[0] / shape[1], 0.4, 2.5))
    head, foot, gap = 0.95, 0.55, 0.35
    height = head + foot + cell * len(panels) + gap * (len(panels) - 1)
    figure = Figure(figsize=(width, height), dpi=DPI)
    # A thin empty column parts the models.
    ratios = ([1.0] * 3 + [0.12]) * len(names)
    grid = GridSpec(
        len(panels), len(ratios) - 1, figure, width_ratios=ratios[:-1], wspace=0.06,
        hspace=gap / cell, left=0.085, right=0.99, top=1 - head / height, bottom=foot / height,
    )  # fmt: skip
    for line, panel in enumerate(panels):
        largest = max(float(np.abs(panel.weights[name]).max()) for name in names)
        for side, name in enumerate(names):
            cells = [figure.add_subplot(grid[line, 4 * side + place]) for place in range(3)]
            mask = mask_values(panel.weights[name], top, min_weight, relative)
            _draw_model(cells, panel, name, mask, largest)
            if line == 0:
                cells[1].set_title(name, fontsize=11, fontweight="bold", pad=8)
            if side == 0:
                cells[0].set_ylabel(f"{_tail(panel.id)}\nscale ±{largest:.3g}", fontsize=8)
    _frame(figure, reading, _threshold(top, min_weight, relative))
    return figure


def _tail(id_: str, length: int = 22) -> str:
    """Return the end of a long id: the file, where an id is a path."""
    return id_ if len(id_) <= length else "…" + id_[1 - length :]


def _threshold(top: int, min_weight: float, relative: float | None) -> str:
    least = f"{min_weight:g}" if relative is None else f"{relative:g}·max|w|"
    return f"the {top} largest |w| with |w| ≥ {least}"


def _draw_model(
    cells: Sequence[Axes],
    panel: Panel,
    name: str,
    mask: NDArray[np.int8],
    largest: float,
) -> None:
    """Draw the image, the weight map and the mask of one model into three axes."""
    pixels = np.moveaxis(panel.image, 0, 2)
    shown = pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
    cells[0].imshow(np.clip(shown, 0, 1))
    limit = largest or 1.0
    cells[1].imshow(panel.weights[name][panel.segments], cmap="RdBu_r", vmin=-limit, vmax=limit)
    colours = np.array([MASK_COLOURS[sign] for sign in (-1, 0, 1)])
    cells[2].imshow(colours[mask[panel.segments] + 1])
    negative, zero, positive = area_fractions(mask, panel.segments)
    captions = (
        f"predicted {panel.predicted[name]}",
        "weights",
        f"+{positive:.0%}  0 {zero:.0%}  −{negative:.0%}",  # noqa: RUF001 - a minus sign
    )
    for axes, caption in zip(cells, captions, strict=True):
        axes.set_xlabel(caption, fontsize=8, labelpad=2)
        axes.set_xticks([])
        axes.set_yticks([])


def _frame(figure: Figure, reading: str, threshold: str) -> None:
    """Write the title and the legend of the masks."""
    figure.suptitle(
        f"Explanations under reading {reading}\n"
        f"weight maps share the scale of their row; masks: sign of {threshold}, shares of the area",
        fontsize=10,
        x=0.01,
        ha="left",
        y=1 - 0.06 / figure.get_figheight(),
        va="top",
    )
    labels = {-1: "negative weight", 0: "none or below threshold", 1: "positive weight"}
    figure.legend(
        handles=[
            Patch(facecolor=MASK_COLOURS[sign], edgecolor="0.4", label=f"mask: {label}")
            for sign, label in labels.items()
        ],
        loc="lower center",
        ncols=3,
        frameon=False,
        fontsize=8,
    )


def save(figure: Figure, path_stem: Path) -> list[Path]:
    """Write PNG and SVG beside each other, without dates or versions, and return their paths."""
    FigureCanvasAgg(figure)
    path_stem.parent.mkdir(parents=True, exist_ok=True)
    png, svg = (path_stem.with_name(f"{path_stem.name}.{kind}") for kind in ("png", "svg"))
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
