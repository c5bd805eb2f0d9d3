"""Ranks and scatters: what is drawn, what is said of it, and that nothing covers anything."""

import dataclasses
import io
import itertools
import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.reports.agreement_figures import (
    AgreementPoint,
    draw_agreement,
    fig4_agreement,
)
from raybench.reports.disagreement_figures import draw_disagreement, fig5_disagreement

DATASET = DatasetInfo(
    spec="digits",
    name="digits",
    shape=(1, 8, 8),
    num_classes=10,
    size=797,
    has_labels=True,
    fingerprint="d" * 64,
)


def row(name: str, score: float, matched: float | None, normalised: float | None) -> ModelScore:
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
        score=score,
        matched=matched,
        normalised=normalised,
    )


def table(*rows: ModelScore, rank_by: str = "normalised") -> ScoreTable:
    return ScoreTable(
        dataset=DATASET,
        reading="grid?cells=4",
        seed=7,
        samples=1000,
        baseline=None,
        rows=rows,
        rank_by=rank_by,
    )


# Ranks by score 1 2 3 4, matched 2 1 3 4, normalised 2 3 1 4.
ROWS = (
    row("a", 0.1, 0.6, 0.52),
    row("b", 0.2, 0.5, 0.53),
    row("c", 0.3, 0.7, 0.51),
    row("d", 0.4, 0.8, 0.54),
)


def tie(rows: tuple[ModelScore, ...], *pairs: tuple[str, str]) -> list[ModelScore]:
    tied: dict[str, list[str]] = {one.model.name: [] for one in rows}
    for first, second in pairs:
        tied[first].append(second)
        tied[second].append(first)
    return [dataclasses.replace(one, tied=tuple(tied[one.model.name])) for one in rows]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    FigureCanvasAgg(figure).print_png(io.BytesIO())
    return figure


def texts(figure: Figure) -> str:
    return " ".join("\n".join(text.get_text() for text in figure.findobj(Text)).split())


def lines(figure: Figure) -> list[Line2D]:
    """Return the lines of the models, in the order of the rows."""
    return [line for line in figure.axes[0].lines if len(line.get_ydata()) > 2]


def marks(figure: Figure) -> dict[tuple[float, float], str]:
    """Return the rank written at each (column, place)."""
    found = figure.axes[0].findobj(Annotation)
    return {text.xy: text.get_text() for text in found}


def bars(figure: Figure) -> list[tuple[float, float, float]]:
    """Return (column, first place, last place) of each bar of ties."""
    return [
        (line.get_xdata()[0], *np.round(line.get_ydata() + np.array([0.3, -0.3]), 9))
        for line in figure.axes[0].lines
        if line.get_linewidth() == 4
    ]


def test_each_line_goes_through_its_models_ranks() -> None:
    figure = drawn(draw_disagreement(table(*ROWS)))
    assert [list(line.get_ydata()) for line in lines(figure)] == [
        [1, 2, 2], [2, 1, 3], [3, 3, 1], [4, 4, 4],
    ]  # fmt: skip
    left, right = ([label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes)
    assert left == ["a", "b", "c", "d"]
    assert right == ["c", "a", "b", "d"]
    top, bottom = (figure.axes[0].transData.transform((0, place))[1] for place in (1, 4))
    assert top > bottom
    shown = texts(figure)
    for part in ("grid?cells=4", "n = 797", "k = 1,000", "seed 7", "mean confidence"):
        assert part in shown


def test_only_lines_that_cross_stand_out() -> None:
    widths = [line.get_linewidth() for line in lines(drawn(draw_disagreement(table(*ROWS))))]
    assert widths[:3] == [2.2] * 3
    assert widths[3] < 2
    styles = [
        (line.get_color(), line.get_linestyle(), line._dash_pattern)
        for line in lines(drawn(draw_disagreement(table(*ROWS))))[:3]
    ]
    assert all(one[0] != other[0] for one, other in itertools.combinations(styles, 2))
    assert all(one[2] != other[2] for one, other in itertools.combinations(styles, 2))


def test_the_caption_counts_the_pairs_and_their_ties() -> None:
    figure = drawn(draw_disagreement(table(*tie(ROWS, ("b", "c")))))
    # Against normalised (c a b d): by score a-c and b-c are turned; matched turns a-b, a-c, b-c.
    assert "brittle-score 2 of 6 (1 of them tied)" in texts(figure)
    assert "score at equal mean confidence 3 of 6 (1 of them tied)" in texts(figure)
    assert "tied by the normalised score" in texts(figure)


def test_ties_are_marked_in_the_column_the_table_ranks_by() -> None:
    chain = tie(ROWS, ("c", "a"), ("a", "b"))  # c with a and a with b, but not c with b
    figure = drawn(draw_disagreement(table(*chain)))
    assert bars(figure) == [(2, 1, 2), (2, 2, 3)]
    ranks = marks(figure)
    assert [ranks[2, place] for place in (1, 2, 3, 4)] == ["1=", "2=", "3=", "4"]
    assert [ranks[0, place] for place in (1, 2, 3, 4)] == ["1", "2", "3", "4"]
    overlapping = [
        line.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        for line in figure.axes[0].lines
        if line.get_linewidth() == 4
    ]
    assert overlapping[0].x1 < overlapping[1].x0

    whole = tie(ROWS, ("c", "a"), ("a", "b"), ("c", "b"))
    assert bars(drawn(draw_disagreement(table(*whole)))) == [(2, 1, 3)]
    by_score = drawn(draw_disagreement(table(*tie(ROWS, ("a", "b")), rank_by="score")))
    assert bars(by_score) == [(0, 1, 2)]


def test_equal_values_share_a_rank_in_any_column() -> None:
    rows = (ROWS[0], dataclasses.replace(ROWS[1], score=0.1), *ROWS[2:])
    figure = drawn(draw_disagreement(table(*rows)))
    assert bars(figure) == [(0, 1, 2)]
    assert [marks(figure)[0, place] for place in (1, 2, 3)] == ["1=", "1=", "3"]


def test_a_model_without_a_number_has_no_mark_there() -> None:
    rows = (dataclasses.replace(ROWS[0], matched=None), *ROWS[1:])
    figure = drawn(draw_disagreement(table(*rows)))
    places = [list(line.get_ydata()) for line in lines(figure)]
    assert math.isnan(places[0][1])
    assert [line[1] for line in places[1:]] == [1, 2, 3]
    assert "Not known: score at equal mean confidence of a." in texts(figure)


@pytest.mark.parametrize(
    "rows",
    [
        (),
        ROWS[:2],
        tuple(dataclasses.replace(one, matched=None, normalised=None) for one in ROWS),
        # The flip radius alone: one number under two names.
        tuple(dataclasses.replace(one, matched=None, normalised=one.score) for one in ROWS),
        tuple(dataclasses.replace(one, status="failed") for one in ROWS),
    ],
    ids=["none", "two models", "one column", "one column twice", "failed"],
)
def test_nothing_is_drawn_where_nothing_can_disagree(
    rows: tuple[ModelScore, ...], tmp_path: Path
) -> None:
    assert draw_disagreement(table(*rows)) is None
    assert fig5_disagreement(table(*rows), tmp_path / "fig5") == []
    assert list(tmp_path.iterdir()) == []


def test_two_columns_are_enough() -> None:
    rows = [dataclasses.replace(one, matched=None) for one in ROWS]
    figure = drawn(draw_disagreement(table(*rows)))
    heads = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert heads == ["brittle-score", "normalised score"]


def test_long_names_and_many_models_stay_on_the_page() -> None:
    rng = np.random.default_rng(0)
    rows = [row(f"Rebuffi2021Fixing_{i:02d}_16_cutmix_extra", *rng.random(3)) for i in range(20)]
    named = [one.model.name for one in rows]
    rows = [dataclasses.replace(one, tied=tuple(set(named) - {one.model.name})) for one in rows]
    figure = drawn(draw_disagreement(table(*rows)))
    inside(figure)
    for axes in figure.axes:
        boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def inside(figure: Figure) -> None:
    """Check that nothing is drawn beyond the page, to a pixel."""
    drawn_box, page = figure.get_tightbbox(), figure.bbox_inches
    pixel = 1 / figure.dpi
    assert drawn_box.x0 >= page.x0 - pixel
    assert drawn_box.y0 >= page.y0 - pixel
    assert drawn_box.x1 <= page.x1 + pixel
    assert drawn_box.y1 <= page.y1 + pixel


def test_both_figures_are_written_twice_the_same(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    written = []
    for name in ("one", "two"):
        files = fig5_disagreement(table(*ROWS), tmp_path / name / "fig5_disagreement")
        files += fig4_agreement(
            POINTS, tmp_path / name / "fig4", score_label="score", accuracy_label="accuracy"
        )
        assert [path.name for path in files] == [
            "fig5_disagreement.png", "fig5_disagreement.svg", "fig4.png", "fig4.svg",
        ]  # fmt: skip
        written.append([path.read_bytes() for path in files])
    assert written[0] == written[1]
    assert dict(mpl.rcParams) == before


def point(name: str, accuracy: float, score: float) -> AgreementPoint:
    return AgreementPoint(
        model=name,
        score=score,
        ci_low=score - 0.01,
        ci_high=score + 0.02,
        robust_accuracy=accuracy,
        robust_low=max(0.0, accuracy - 0.03),
        robust_high=accuracy + 0.04,
    )


POINTS = [
    point("standard", 0.0, 0.9), point("b", 0.3, 0.7), point("c", 0.5, 0.75), point("d", 0.6, 0.5),
]  # fmt: skip


def agreement_of(points: list[AgreementPoint]) -> Figure:
    label = "brittle-score, grid?cells=4"
    return drawn(draw_agreement(points, score_label=label, accuracy_label="accuracy at 8/255"))


def test_points_and_bars_are_where_they_belong() -> None:
    axes = agreement_of(POINTS).axes[0]
    points = [line.get_xydata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert np.array_equal(points, [(0.0, 0.9), (0.3, 0.7), (0.5, 0.75), (0.6, 0.5)])
    ends = [line.get_xydata() for line in axes.lines if line.get_marker() == "None"]
    assert np.allclose(ends[:2], [[(0, 0.9), (0.04, 0.9)], [(0, 0.89), (0, 0.92)]])
    assert len(ends) == 8
    assert [text.get_text() for text in axes.get_xticklabels()][-1].endswith(" %")
    assert axes.get_ylabel() == "brittle-score"
    assert axes.get_xlabel() == "accuracy at 8/255"


def test_the_caption_has_the_correlations_of_few_models_exactly() -> None:
    shown = texts(agreement_of(POINTS))
    # One pair (b, c) of six is out of order: Kendall (1 - 5) / 6, Spearman 1 - 6 * 2 / 60 turned.
    assert "Kendall tau-b = −0.667 (p = 0.33)" in shown  # noqa: RUF001 - a minus sign
    assert "Spearman rho = −0.800 (p = 0.33)" in shown  # noqa: RUF001
    r = float(np.corrcoef([0, 0.3, 0.5, 0.6], [0.9, 0.7, 0.75, 0.5])[0, 1])
    assert f"Pearson r = −{-r:.3f}" in shown  # noqa: RUF001
    assert "exact" in shown
    assert "5 of 6" in shown
    assert "grid?cells=4" in shown


def test_p_values_of_many_models_are_not_called_exact_and_ignore_the_order() -> None:
    rng = np.random.default_rng(0)
    many = [point(f"m{i}", *rng.random(2) * 0.9) for i in range(10)]
    captions = {texts(agreement_of(order)).split("Pearson")[1] for order in (many, many[::-1])}
    assert [("exact" in one, "random" in one) for one in captions] == [(False, True)]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (POINTS[:2], "No correlation is computed from fewer than 3 models."),
        ([point(name, 0.5, y) for name, y in (("a", 0.1), ("b", 0.2), ("c", 0.3))], "No correlat"),
    ],
    ids=["two models", "one accuracy"],
)
def test_correlations_that_do_not_exist_are_not_printed(
    points: list[AgreementPoint], said: str
) -> None:
    shown = texts(agreement_of(points))
    assert said in shown
    assert "nan" not in shown


def test_bounds_may_be_unknown_and_no_points_are_no_figure(tmp_path: Path) -> None:
    bare = [AgreementPoint(model="a", score=0.5, robust_accuracy=0.2)]
    assert len(agreement_of(bare).axes[0].lines) == 1
    assert fig4_agreement([], tmp_path / "x", score_label="s", accuracy_label="a") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robust_accuracy": 49.25}, r"robust_accuracy must lie in \[0, 1\], found 49.25"),
        ({"robust_accuracy": math.nan}, "robust_accuracy must lie"),
        ({"robust_low": -0.1}, "robust_low must lie"),
        ({"score": math.inf}, "score must be finite"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgreementPoint(**{"model": "a", "score": 0.5, "robust_accuracy": 0.5, **changes})


def test_names_cover_neither_points_nor_bars_nor_each_other() -> None:
    rng = np.random.default_rng(1)
    crowd = [point(f"Model2021Name_{i}", *(0.55 + 0.1 * rng.random(2))) for i in range(8)] + [
        point("Rebuffi2021Fixing_70_16_cutmix_extra", 0.9, 0.1)
    ]
    figure = agreement_of(crowd)
    inside(figure)
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(name).expanded(0.98, 0.8) for name in axes.findobj(Annotation)]
    assert len(boxes) == 9
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    centres = [axes.transData.transform((one.robust_accuracy, one.score)) for one in crowd]
    marks = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in centres]
    assert not any(box.overlaps(mark) for box in boxes for mark in marks)
