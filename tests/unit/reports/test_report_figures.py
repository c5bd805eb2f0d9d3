"""Figures draw the table's own numbers, byte for byte the same each time."""

import dataclasses
import io
import itertools
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.reports.figures import (
    MASK_COLOURS,
    Panel,
    draw_explanations,
    draw_scores,
    fig1_scores,
    fig2_explanations,
)

DATASET = DatasetInfo(
    spec="digits",
    name="digits",
    shape=(1, 4, 4),
    num_classes=10,
    size=797,
    has_labels=True,
    fingerprint="d" * 64,
)


def row(name: str, score: float, low: float | None, high: float | None) -> ModelScore:
    model = ModelInfo(
        spec=f"zoo:{name}",
        name=name,
        access=Access.SCORES,
        input_shape=(1, 4, 4),
        num_classes=10,
        fingerprint="f" * 64,
    )
    return ModelScore(
        model=model,
        reading="grid?cells=2",
        key="a" * 64,
        folder=name,
        status="complete",
        score=score,
        ci_low=low,
        ci_high=high,
    )


def table(*rows: ModelScore) -> ScoreTable:
    return ScoreTable(
        dataset=DATASET, reading="grid?cells=2", seed=7, samples=1000, baseline=None, rows=rows
    )


PAIRED = table(
    row("cnn3-adv", 0.02, 0.019, 0.022),
    row("mlp2-adv", 0.03, 0.028, 0.031),
    row("mlp2", 0.04, 0.035, 0.045),
    row("cnn3", 0.05, 0.045, 0.055),
)
# The interval need not hold the mean, and a single image has none.
RANKED = table(row("b", 0.5, 0.51, 0.6), row("a", 0.25, 0.2, 0.3), row("c", 0.75, None, None))


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def spans(figure: Figure, axis: int) -> list[tuple[float, float]]:
    """Return the ends of the drawn intervals along `axis`."""
    return [
        tuple(segment[:, axis])
        for collection in figure.axes[0].findobj(LineCollection)
        for segment in collection.get_segments()
    ]


def png_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_pairs_stand_side_by_side_with_their_numbers() -> None:
    figure = draw_scores(PAIRED)
    assert figure is not None
    axes = figure.axes[0]
    standard, adversarial = axes.containers
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cnn3", "mlp2"]
    assert [bar.get_height() for bar in standard] == [0.05, 0.04]
    assert [bar.get_height() for bar in adversarial] == [0.02, 0.03]
    assert spans(figure, 1) == [
        (0.045, 0.055), (0.035, 0.045), (0.019, 0.022), (0.028, 0.031),
    ]  # fmt: skip
    for one, other in zip(standard, adversarial, strict=True):
        assert other.get_x() >= one.get_x() + one.get_width()
        assert one.get_hatch() != other.get_hatch()
        assert one.get_facecolor() != other.get_facecolor()
    assert axes.get_ylim()[0] == 0
    shown = texts(figure)
    for part in ("reading grid?cells=2", "n = 797", "k = 1,000", "seed 7", "0.05000", "95 % CI"):
        assert part in shown


def test_other_sets_are_a_ranked_list() -> None:
    figure = draw_scores(RANKED)
    assert figure is not None
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert [bar.get_width() for bar in axes.containers[0]] == [0.25, 0.5, 0.75]
    assert spans(figure, 0) == [(0.2, 0.3), (0.51, 0.6)]
    top, bottom = (axes.transData.transform((0, place))[1] for place in (0, 2))
    assert top > bottom


@pytest.mark.parametrize(
    "rows",
    [
        (row("a", 1.0, None, None), row("a-adv", 1.0, None, None), row("b", 1.0, None, None)),
        (row("a", 1.0, None, None), row("a", 2.0, None, None)),
    ],
    ids=["one without a twin", "two of one name"],
)
def test_no_row_is_lost_where_names_do_not_pair(rows: tuple[ModelScore, ...]) -> None:
    figure = draw_scores(table(*rows))
    assert figure is not None
    assert len(figure.axes[0].containers[0]) == len(rows)


def test_rows_without_a_score_are_not_drawn(tmp_path: Path) -> None:
    failed = dataclasses.replace(row("x", 0.0, None, None), status="failed", score=None)
    assert draw_scores(table(failed)) is None
    assert fig1_scores(table(failed), tmp_path / "fig1") == []
    assert list(tmp_path.iterdir()) == []
    figure = draw_scores(table(failed, *RANKED.rows))
    assert figure is not None
    assert len(figure.axes[0].containers[0]) == 3


def test_two_hundred_models_stay_legible(tmp_path: Path) -> None:
    rows = [row(f"model-{i:03d}", 0.5 + i / 1000, None, None) for i in range(200)]
    figure = draw_scores(table(*rows))
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert min(box.height for box in boxes) >= 10


@pytest.mark.parametrize("scores", [PAIRED, RANKED], ids=["paired", "ranked"])
def test_fig1_is_written_twice_the_same(scores: ScoreTable, tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    first = fig1_scores(scores, tmp_path / "one" / "fig1.v2")
    second = fig1_scores(scores, tmp_path / "two" / "fig1.v2")
    assert [path.name for path in first] == ["fig1.v2.png", "fig1.v2.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert png_size(first[0])[0] == 1200
    assert dict(mpl.rcParams) == before


def test_dollar_signs_in_names_are_not_mathematics(tmp_path: Path) -> None:
    awkward = table(row("$a_b$", 0.5, None, None), row("a\\frac", 0.6, None, None))
    assert all(path.stat().st_size for path in fig1_scores(awkward, tmp_path / "fig1"))


def panel(**changes: object) -> Panel:
    image = np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4)
    values: dict = {
        "id": "test/3",
        "image": image,
        "segments": np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]),
        "weights": {
            "cnn3-adv": np.array([0.02, -0.04, 0.001, 0.0], np.float32),
            "cnn3": np.array([-0.5, 0.25, 0.1, -0.005], np.float32),
        },
        "predicted": {"cnn3-adv": 3, "cnn3": 8},
    }
    return Panel(**{**values, **changes})


def images(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_explanations_show_image_weights_and_signs() -> None:
    figure = draw_explanations([panel()], reading="grid?cells=2")
    image, weights, mask, _, other_weights, other_mask = images(figure)
    assert np.array_equal(image[..., 0], panel().image[0])
    assert np.array_equal(weights[::2, ::2], np.float32([[0.02, -0.04], [0.001, 0.0]]))
    assert np.array_equal(other_weights[::2, ::2], np.float32([[-0.5, 0.25], [0.1, -0.005]]))
    blue, yellow, pink = (MASK_COLOURS[sign] for sign in (-1, 0, 1))
    assert [tuple(mask[y, x]) for y, x in ((0, 0), (0, 3), (3, 0), (3, 3))] == [
        pink, blue, yellow, yellow,
    ]  # fmt: skip
    assert [tuple(other_mask[y, x]) for y, x in ((0, 0), (0, 3), (3, 0), (3, 3))] == [
        blue, pink, pink, yellow,
    ]  # fmt: skip


def test_the_scale_of_a_row_is_shared_and_symmetric() -> None:
    quiet = {name: np.zeros(4, np.float32) for name in ("cnn3-adv", "cnn3")}
    figure = draw_explanations([panel(), panel(weights=quiet)], reading="grid")
    limits = [axes.images[0].get_clim() for axes in figure.axes]
    assert limits[1] == limits[4] == (-0.5, 0.5)
    low, high = limits[7]
    assert low == -high < 0
    assert "scale ±0.5" in texts(figure)


def test_titles_state_reading_threshold_models_and_predictions() -> None:
    absolute = texts(draw_explanations([panel()], reading="grid?cells=2", top=5))
    for part in (
        "grid?cells=2", "the 5 largest |w|", "≥ 0.01", "cnn3-adv", "predicted 8", "test/3",
        "+25%  0 50%",
    ):  # fmt: skip
        assert part in absolute
    relative = texts(draw_explanations([panel()], reading="grid", relative=0.05))
    assert "≥ 0.05·max|w|" in relative


def test_thresholds_reach_the_masks() -> None:
    yellow = MASK_COLOURS[0]

    def zeros(**options: float) -> list[float]:
        figure = draw_explanations([panel()], reading="grid", **options)
        drawn = images(figure)
        return [float((mask == yellow).all(axis=2).mean()) for mask in (drawn[2], drawn[5])]

    assert zeros() == [0.5, 0.25]
    assert zeros(top=1) == [0.75, 0.75]
    assert zeros(min_weight=0.3) == [1.0, 0.75]
    assert zeros(relative=0.02) == [0.25, 0.25]


def test_colour_images_of_any_shape_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wide = panel(
        id="a/very/long/path/to/some/file/image_00001.jpeg",
        image=rng.random((3, 10, 30), np.float32),
        segments=np.arange(300).reshape(10, 30) % 4,
    )
    figure = draw_explanations([wide], reading="superpixel")
    assert np.allclose(images(figure)[0], np.moveaxis(wide.image, 0, 2))
    assert "…" in texts(figure)


def test_fig2_is_written_twice_the_same(tmp_path: Path) -> None:
    panels = [panel(id=f"test/{i}") for i in range(3)]
    first = fig2_explanations(panels, tmp_path / "one" / "fig2", reading="grid")
    second = fig2_explanations(panels, tmp_path / "two" / "fig2", reading="grid")
    assert [path.suffix for path in first] == [".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert png_size(first[0])[0] >= 1200


def test_no_text_is_cut_or_overlaps_the_title() -> None:
    figure = draw_explanations([panel(), panel()], reading="grid?cells=2")
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(io.BytesIO())
    page = figure.bbox
    for text in figure.findobj(Text):
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent()
            assert box.x0 >= -1, text
            assert box.x1 <= page.x1 + 1, text
    assert figure._suptitle is not None
    title = figure._suptitle.get_window_extent()
    assert all(axes.title.get_window_extent().y1 < title.y0 for axes in figure.axes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((2, 4, 4), np.float32)}, r"image must be \[1 or 3, H, W\]"),
        ({"segments": np.zeros((4, 5), np.int64)}, r"segments must be \[4, 4\]"),
        ({"weights": {"cnn3": np.zeros(3, np.float32)}}, r"weights of cnn3 must be \[4\]"),
        ({"predicted": {"cnn3": 1}}, "same models"),
    ],
)
def test_panels_that_do_not_fit_together_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        panel(**changes)


def test_rows_must_show_the_same_models() -> None:
    other = panel(weights={"x": np.zeros(4, np.float32)}, predicted={"x": 0})
    for panels in ([], [panel(), other]):
        with pytest.raises(ValueError, match="same models"):
            draw_explanations(panels, reading="grid")


def test_no_words_a_score_cannot_carry() -> None:
    figures = [draw_scores(PAIRED), draw_scores(RANKED), draw_explanations([panel()], reading="g")]
    shown = "\n".join(texts(figure) for figure in figures if figure is not None)
    assert not re.search(r"robust|prove|guarant", shown, re.IGNORECASE)
    assert "lower = less brittle under this reading" in shown
