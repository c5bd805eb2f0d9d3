"""How a sequential run decided: each pair's interval, narrowing as images come in.

fig7_sequences(table, Path("out/fig7_sequences"))
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from raybench.core.decisions import Decisions, PairDecision
from raybench.core.results import ScoreTable
from raybench.reports.figures import DPI, STYLE, WIDTH, plain, save, wrapped

__all__ = ["draw_sequences", "fig7_sequences"]

_MOST = 12  # pairs shown: those that took the most images
_COLUMNS = 3
_COLOURS = {"separated": "#0072B2", "tied": "#4D9A5B", "undecided": "#E8743B"}
_MARGIN = "0.88"


def fig7_sequences(table: ScoreTable, path_stem: Path) -> list[Path]:
    """Write `draw_sequences` as PNG and SVG and return their paths.

    Returns an empty list where no sequential run decided the table.
    """
    if table.decisions is None or not table.decisions.pairs:
        return []
    with mpl.rc_context(STYLE):
        return save(draw_sequences(table.decisions, table), path_stem)


def draw_sequences(decisions: Decisions, table: ScoreTable) -> Figure:
    """Return a panel for each pair of neighbours: its confidence sequence against images.

    The zero line, the margin in grey, and the look that decided. Of more than a dozen pairs, those
    that took the most images.
    """
    pairs = _shown(decisions.pairs)
    columns = 2 if len(pairs) == 4 else min(_COLUMNS, len(pairs))
    lines = -(-len(pairs) // columns)
    title = _title(decisions, table, len(pairs))
    figure = Figure(
        figsize=(WIDTH, 0.7 + 0.2 * len(title.splitlines()) + 1.9 * lines),
        dpi=DPI,
        layout="constrained",
    )
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for place, (axes, pair) in enumerate(zip(grid, pairs, strict=False)):
        _draw(axes, pair, decisions.margin, 96 // columns)
        axes.tick_params(labelbottom=place >= len(pairs) - columns)
    for axes in grid[len(pairs) :]:
        axes.set_visible(False)
    counts = [images for pair in pairs for images, _, _ in pair.path]
    grid[0].set_xscale("log", base=2)
    octaves = [2.0**power for power in range(31) if min(counts) <= 2**power <= max(counts)]
    grid[0].xaxis.set_major_locator(FixedLocator(octaves or [min(counts)]))
    grid[0].xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
    grid[0].xaxis.set_minor_locator(NullLocator())
    grid[0].set_ylim(*_limits(pairs, decisions.margin))
    figure.supxlabel("images that both models have (logarithmic)", fontsize=9)
    figure.supylabel(f"difference in {decisions.column}", fontsize=9)
    return figure


def _shown(pairs: Sequence[PairDecision]) -> list[PairDecision]:
    cost = {pair: pair.decided_at or pair.images + 1 for pair in pairs}
    kept = set(sorted(pairs, key=lambda pair: -cost[pair])[:_MOST])
    return [pair for pair in pairs if pair in kept]


def _title(decisions: Decisions, table: ScoreTable, shown: int) -> str:
    some = f"; {shown} of {len(decisions.pairs)} pairs" if shown < len(decisions.pairs) else ""
    return wrapped(
        f"When neighbours were told apart on {table.dataset.name}\n"
        f"{decisions.evaluation}; {decisions.method} confidence sequences that hold together but "
        f"for {100 * decisions.alpha:g} %{some}"
    )


def _draw(axes: Axes, pair: PairDecision, margin: float, letters: int) -> None:
    looks = [
        (images, low, high)
        for images, low, high in pair.path
        if low is not None and high is not None
    ]
    colour = _COLOURS[pair.verdict]
    if margin:
        axes.axhspan(-margin, margin, color=_MARGIN, linewidth=0, zorder=1)
    axes.axhline(0, color="black", linewidth=0.8, zorder=2)
    if looks:
        images, low, high = (np.array(column, dtype=float) for column in zip(*looks, strict=True))
        axes.fill_between(images, low, high, color=colour, alpha=0.25, linewidth=0, zorder=3)
        for end in (low, high):
            axes.plot(images, end, color=colour, linewidth=1.4, zorder=4)
    told = "undecided"
    if pair.decided_at is not None:
        told = f"{pair.verdict} at {pair.decided_at:,}"
        axes.axvline(pair.decided_at, color=colour, linewidth=1.0, linestyle="--", zorder=4)
    half = letters // 2
    names = "\n".join(
        name if len(name) <= letters else f"{name[: half - 1]}…{name[-half:]}"
        for name in (f"{pair.higher} -", pair.lower)
    )
    axes.set_title(f"{names}\n{told}", fontsize=8)
    axes.tick_params(labelsize=8)
    plain(axes, "y")


def _limits(pairs: Sequence[PairDecision], margin: float) -> tuple[float, float]:
    """Return y limits that hold every sequence from its second look on: the first is wide."""
    ends = [
        end
        for pair in pairs
        for _, *both in pair.path[1:] or pair.path
        for end in both
        if end is not None
    ]
    low, high = min([0.0, -margin, *ends]), max([0.0, margin, *ends])
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room
