"""Running means and noise as drawn, on scores whose means are known."""

import dataclasses
import io
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.reports.noise_figures import NoiseCurve, draw_noise, fig6_noise, shown_rows


def row(name: str, rank: int = 1) -> ModelScore:
    model = ModelInfo(
        spec=f"zoo:{name}",
        name=name,
        access=Access.SCORES,
        input_shape=(1, 8, 8),
        num_classes=10,
        fingerprint="f" * 64,
    )
    return ModelScore(
        model=model,
        reading="grid",
        key="a" * 64,
        folder=name,
        status="complete",
        score=0.5,
        rank=rank,
    )


def table(*rows: ModelScore) -> ScoreTable:
    dataset = DatasetInfo(
        spec="digits",
        name="digits",
        shape=(1, 8, 8),
        num_classes=10,
        size=4,
        has_labels=True,
        fingerprint="d" * 64,
    )
    return ScoreTable(
        dataset=dataset, reading="grid?cells=4", seed=7, samples=1234, baseline=None, rows=rows
    )


FIRST = NoiseCurve(
    model="first",
    scores=np.array([1.0, math.nan, 3.0, 2.0]),
    noise_floor=0.5,
    corrected=1.75,
)
SECOND = NoiseCurve(
    model="second", scores=np.array([4.0, 4.0, 4.0, 4.0]), noise_floor=1.0, corrected=3.5
)
TWO = table(row("first"), row("second", 2))


def drawn(curves: list[NoiseCurve], scores: ScoreTable = TWO) -> Figure:
    figure = draw_noise(curves, scores)
    assert figure is not None
    FigureCanvasAgg(figure).print_png(io.BytesIO())
    return figure


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def test_the_running_mean_leaves_out_what_was_not_scored() -> None:
    figure = drawn([FIRST, SECOND])
    axes = figure.axes[0]
    own = axes.lines[-1]
    assert np.array_equal(own.get_xdata(), [2, 3])
    assert np.allclose(own.get_ydata(), [2.0, 2.0])  # of 1, 3 and of 1, 3, 2
    (band,) = axes.findobj(FillBetweenPolyCollection)
    heights = {tuple(corner) for corner in band.get_paths()[0].vertices.round(6)}
    # Standard deviations sqrt 2 over sqrt 2 images, and 1 over sqrt 3.
    for count, half in ((2, 1.96), (3, 1.96 / math.sqrt(3))):
        assert {(count, round(2 - half, 6)), (count, round(2 + half, 6))} <= heights
    # The other model's mean goes along, thinner.
    assert np.array_equal(axes.lines[0].get_ydata(), [4.0, 4.0, 4.0])
    assert axes.lines[0].get_linewidth() < own.get_linewidth()
    assert "2.000 ± 1.1 (±57 %)" in texts(figure)


def test_the_dumbbells_have_the_tables_numbers_and_name_k() -> None:
    axes = drawn([FIRST, SECOND]).axes[-1]
    floors, corrected, scores = (list(line.get_xdata()) for line in axes.lines)
    assert floors == [0.5, 1.0]
    assert corrected == [1.75, 3.5]
    assert scores == [2.0, 4.0]
    assert "k = 1,234 samples" in axes.get_xlabel()
    assert len({line.get_marker() for line in axes.lines}) == 3
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    shown = texts(axes.figure)
    assert "floor 25 % of score" in shown
    assert axes.get_xlim()[0] == 0
    top, bottom = (axes.transData.transform((0, place))[1] for place in (0, 1))
    assert top > bottom


def test_unknown_noise_is_not_drawn_as_none() -> None:
    silent = dataclasses.replace(FIRST, noise_floor=None, corrected=None)
    figure = drawn([silent])
    assert len(figure.axes) == 1
    assert "noise floor" not in texts(figure)
    figure = drawn([silent, SECOND])
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["second"]
    half = dataclasses.replace(FIRST, corrected=None)
    figure = drawn([half])
    assert math.isnan(figure.axes[-1].lines[1].get_xdata()[0])


def test_all_of_eight_models_are_shown_and_the_ends_of_more() -> None:
    rows = [row(f"m{i:02d}", i + 1) for i in range(11)]
    failed = dataclasses.replace(row("x"), status="failed", score=None)
    assert shown_rows(table(*rows[:8], failed)) == rows[:8]
    shown = shown_rows(table(*rows, failed))
    assert shown == [*rows[:4], *rows[-4:]]
    curves = [dataclasses.replace(SECOND, model=one.model.name) for one in shown]
    figure = drawn(curves, table(*rows, failed))
    assert "8 of 11 models, from both ends of the table" in texts(figure)
    assert len(figure.axes) == 9


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_no_text_is_cut_and_no_heading_touches_another(count: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"Rebuffi2021Fixing_{i}_16_cutmix_extra" for i in range(count)]
    curves = [
        NoiseCurve(model=name, scores=rng.random(50) / 100, noise_floor=0.001, corrected=0.004)
        for name in names
    ]
    figure = drawn(curves, table(*(row(name) for name in names)))
    drawn_box, page = figure.get_tightbbox(), figure.bbox_inches
    assert drawn_box.x0 >= page.x0 - 0.01
    assert drawn_box.y0 >= page.y0 - 0.01
    assert drawn_box.x1 <= page.x1 + 0.01
    assert drawn_box.y1 <= page.y1 + 0.01
    heads = [axes.title.get_window_extent() for axes in figure.axes[:-1] if axes.get_visible()]
    assert len(heads) == count
    for place, one in enumerate(heads):
        assert not any(one.overlaps(other) for other in heads[place + 1 :])


def test_scores_of_zero_are_drawn() -> None:
    zero = NoiseCurve(model="zero", scores=np.zeros(4), noise_floor=0.0, corrected=0.0)
    figure = drawn([zero])
    assert list(figure.axes[-1].lines[2].get_xdata()) == [0.0]
    assert "% of score" not in texts(figure)


def test_a_long_run_is_a_small_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    curves = [NoiseCurve(model=f"m{i}", scores=rng.random(50_000)) for i in range(8)]
    _, svg = fig6_noise(curves, tmp_path / "fig6", table(*(row(one.model) for one in curves)))
    assert svg.stat().st_size < 1_500_000
    ends = drawn(curves).axes[0].lines[-1].get_xydata()[-1]
    assert np.allclose(ends, [50_000, curves[0].scores.mean()])


def test_too_few_images_are_no_figure(tmp_path: Path) -> None:
    single = NoiseCurve(model="one", scores=np.array([1.0, math.nan]), noise_floor=0.5)
    assert fig6_noise([], tmp_path / "fig6", table()) == []
    assert fig6_noise([single], tmp_path / "fig6", TWO) == []
    assert list(tmp_path.iterdir()) == []


def test_it_is_written_twice_the_same(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    files = [fig6_noise([FIRST, SECOND], tmp_path / name / "fig6", TWO) for name in ("a", "b")]
    assert [path.name for path in files[0]] == ["fig6.png", "fig6.svg"]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert dict(mpl.rcParams) == before
