import math
import pickle
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from toy import linear, lower, toy_batch, toy_model

from raybench.core.errors import InputError, SpecError
from raybench.core.types import Access, Batch, Failure
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.kernels.targets import TARGETS, TEMPERATURES

SHAPE = (1, 8, 8)


def grid(**options: object) -> LimeEvaluation:
    settings = {"samples": 120, "cells": 4, "fill": "mean", "design": "bernoulli"} | options
    return LimeEvaluation(reading="grid", **settings)


def score(evaluation: LimeEvaluation, model, batch: Batch, seed: int = 0, batch_size: int = 64):
    return evaluation(model, batch, seed=seed, batch_size=batch_size)


MASKED = [
    f"{reading}?fill={fill}"
    for reading in ("grid", "superpixel", "superpixel-sum", "superpixel-pixel", "mask")
    for fill in ("mean", "0", "blur")
]
OTHER = [
    "grid?design=hadamard&samples=256",
    "grid?design=antithetic",
    "superpixel?segmentation=slic&count=20",
    "superpixel?segmentation=grid&cells=5&fill=0.5",
    "superpixel?kernel_size=2&alpha=0.5&force=true",
    "pixel-gauss?sigma=0.1",
    "coarse-gauss?cells=3",
    "coarse-gauss",
]


@pytest.mark.parametrize("text", MASKED + OTHER)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_setting_round_trips_and_gives_rows_of_its_schema(text: str, target: str) -> None:
    text += f"{'&' if '?' in text else '?'}target={target}"
    shape = (3, 24, 24)
    evaluation = parse_reading(text, samples=150, shape=shape)
    k = evaluation.samples
    again = parse_reading(evaluation.canonical(), samples=99, shape=shape)
    assert again == evaluation == pickle.loads(pickle.dumps(evaluation))
    assert again.canonical() == evaluation.canonical()
    model = toy_model(linear(shape), shape=shape)
    rows = score(evaluation, model, toy_batch(2, shape))
    assert rows.schema == evaluation.schema()
    assert rows.column("status").to_pylist() == ["ok", "ok"]
    assert rows.column("k").to_pylist() == [k, k]
    for row in rows.to_pylist():
        assert len(row["weights"]) == row["num_segments"]
        if target != "prob_all":
            assert row["l1"] == pytest.approx(np.abs(row["weights"]).sum(), rel=1e-5)
        if evaluation.reading in ("grid", "superpixel", "pixel-gauss", "coarse-gauss"):
            assert row["score"] == pytest.approx(row["l1"] / row["num_segments"])
        if evaluation.reading == "superpixel-sum":
            assert row["score"] == pytest.approx(row["l1"])
        if evaluation.reading == "mask":
            assert 0 <= row["score"] <= 1
        assert row["normalised"] == pytest.approx(row["margin_l1"] / row["margin"])
        assert row["noise_floor"] >= 0
        assert row["reading"] == evaluation.canonical()


def test_lowest_access_level_gives_the_same_and_one_lower_is_declared() -> None:
    model, batch = toy_model(linear()), toy_batch()
    scores_only = lower(model, Access.SCORES)
    evaluation = grid()
    assert evaluation.requires == Access.SCORES
    assert grid(target="logit_pred").requires == Access.LOGITS
    full, black_box = score(evaluation, model, batch), score(evaluation, scores_only, batch)
    for name in ("l1", "margin_l1", "probability", "margin", "intercept"):
        np.testing.assert_allclose(full.column(name), black_box.column(name), rtol=1e-4, atol=1e-7)


def test_rows_do_not_depend_on_neighbours_order_or_batching() -> None:
    model, batch, evaluation = toy_model(linear()), toy_batch(5), grid()
    whole = score(evaluation, model, batch)
    for index in range(5):
        alone = Batch(
            batch.ids[index : index + 1],
            batch.sources[index : index + 1],
            batch.images[index : index + 1],
        )
        assert score(evaluation, model, alone).equals(whole.slice(index, 1))
    other = score(evaluation, model, batch, batch_size=7)
    np.testing.assert_allclose(other.column("l1"), whole.column("l1"), rtol=1e-5)


def test_queries_are_counted_exactly() -> None:
    model, evaluation = toy_model(linear()), grid()
    score(evaluation, model, toy_batch(3))
    assert model.calls == evaluation.queries(3) == 360


def test_permuting_classes_changes_nothing_but_the_label() -> None:
    function = linear()
    order = torch.tensor([2, 0, 1])
    plain = score(grid(), toy_model(function), toy_batch())
    permuted = score(grid(), toy_model(lambda x: function(x)[:, order]), toy_batch())
    np.testing.assert_allclose(plain.column("l1"), permuted.column("l1"), rtol=1e-5)
    back = order[torch.tensor(permuted.column("predicted").to_pylist())]
    assert back.tolist() == plain.column("predicted").to_pylist()


def test_seed_changes_masks_and_models_share_them() -> None:
    batch = toy_batch()
    first, second = (
        score(grid(), toy_model(linear()), batch),
        score(grid(), toy_model(linear()), batch, seed=1),
    )
    assert not np.allclose(first.column("l1"), second.column("l1"), rtol=1e-3)
    # Common random numbers: a model twice as steep in the logits has exactly twice the weights.
    steep = score(grid(target="margin_pred"), toy_model(linear(scale=2.0)), batch)
    plain = score(grid(target="margin_pred"), toy_model(linear()), batch)
    np.testing.assert_allclose(
        np.array(steep.column("weights").to_pylist()),
        2 * np.array(plain.column("weights").to_pylist()),
        rtol=1e-4,
        atol=1e-6,
    )


def test_temperature_columns_are_the_scores_of_rescaled_models() -> None:
    """T7: predictions stay, the score does not; each column is what the rescaled model gets."""
    batch = toy_batch(2)
    plain = score(grid(), toy_model(linear()), batch)
    labels = plain.column("predicted")
    for factor in (0.5, 1.0, 4.0):
        rescaled = score(grid(), toy_model(linear(scale=factor)), batch)
        assert rescaled.column("predicted") == labels
        column = TEMPERATURES.index(factor)
        kept = [row[column] for row in plain.column("temperature_l1").to_pylist()]
        np.testing.assert_allclose(kept, rescaled.column("l1"), rtol=1e-4)
        sure = [row[column] for row in plain.column("temperature_probability").to_pylist()]
        np.testing.assert_allclose(sure, rescaled.column("probability"), rtol=1e-4)


def test_unreadable_images_and_bad_answers_are_error_rows() -> None:
    batch = toy_batch(2)
    broken = Batch(batch.ids, batch.sources, batch.images, (Failure("x", "x.png", "truncated"),))
    rows = score(grid(), toy_model(linear()), broken).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok", "error"]
    assert rows[2]["error"] == "truncated"
    assert rows[2]["score"] is None
    assert set(rows[2]["weights"]) == {None}

    def sick(images: torch.Tensor) -> torch.Tensor:
        answer = linear()(images)
        return torch.where(images.mean((1, 2, 3), keepdim=False)[:, None] > 2, answer, math.nan)

    for row in score(grid(), toy_model(sick), batch).to_pylist():
        assert row["status"] == "error"
        assert "not finite" in row["error"]


def test_probability_of_exactly_zero_leaves_the_margin_unknown() -> None:
    class Certain:
        def __init__(self) -> None:
            self.info = toy_model(linear(), access=Access.SCORES).info
            self.device = "cpu"

        def probabilities(self, images: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64).expand(len(images), 3)

    for row in score(grid(), Certain(), toy_batch(1)).to_pylist():
        assert row["status"] == "ok"
        assert row["score"] == 0.0
        assert row["margin"] is None
        assert row["margin_l1"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gird", "did you mean grid"),
        ("grid?tagret=prob_pred", "did you mean target"),
        ("grid?target=prob", "no target is named 'prob'"),
        ("grid?fill=blue", "expected mean, blur, or a number"),
        ("grid?fill=2", r"number in \[0, 1\], found '2.0'"),
        ("pixel-gauss?fill=0", "has no option fill"),
        ("grid?sigma=0.1", "has no option sigma"),
        ("superpixel?segmentation=felz", "quickshift or slic or grid"),
        ("superpixel?segmentation=slic&cells=3", "slic takes count"),
        ("grid?design=sobol", "bernoulli or antithetic or hadamard"),
        ("grid?samples=1", r"2\.\.1000000, found 1"),
        ("grid?samples=many", "invalid literal"),
        ("grid?kernel_size=2", "has no option kernel_size"),
        ("superpixel?cells=4", "quickshift has neither cells"),
        ("grid?alpha=0", "alpha must be a finite number above 0"),
        ("grid?alpha=inf", "alpha must be a finite number above 0"),
        ("grid?cells=0", "cells must be at least 1"),
        ("grid:x", "expected reading"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_reading(text, samples=100, shape=SHAPE)


def test_impossible_grids_are_refused_with_the_mend() -> None:
    with pytest.raises(InputError, match=r"cells must lie in 1\.\.8"):
        parse_reading("grid?cells=9", samples=1000, shape=SHAPE)
    with pytest.raises(InputError, match=r"60 samples cannot fit 64 cells; use --samples 128"):
        parse_reading("grid?cells=8&fill=0", samples=60, shape=SHAPE)
    with pytest.raises(InputError, match="single pixels"):
        parse_reading("grid?cells=8", samples=1000, shape=SHAPE)


@pytest.mark.parametrize(("side", "cells"), [(8, 4), (28, 7), (32, 8), (224, 8), (5, 2)])
def test_default_grid(side: int, cells: int) -> None:
    assert parse_reading("grid", samples=1000, shape=(1, side, side)).cells == cells


@pytest.mark.parametrize(("side", "size"), [(28, 1.0), (32, 1.0), (128, 4.0), (224, 4.0)])
def test_default_quickshift(side: int, size: float) -> None:
    assert parse_reading("superpixel", samples=10, shape=(3, side, side)).kernel_size == size


def test_fixed_grids_have_fixed_size_lists() -> None:
    assert pa.types.is_fixed_size_list(grid().schema().field("weights").type)
    loose = parse_reading("superpixel", samples=10, shape=SHAPE)
    assert pa.types.is_list(loose.schema().field("weights").type)


@pytest.mark.parametrize("text", ["pixel-gauss?sigma=0.1", "coarse-gauss?cells=3", "grid"])
def test_a_batch_that_does_not_fit_memory_is_halved(text: str) -> None:
    asked = []

    def small(images: torch.Tensor) -> torch.Tensor:
        if len(images) > 5:
            raise torch.OutOfMemoryError("does not fit")
        asked.append(len(images))
        return linear()(images)

    evaluation = parse_reading(text, samples=50, shape=SHAPE)
    rows = score(evaluation, toy_model(small), toy_batch(1), batch_size=40)
    assert sum(asked) == 50
    assert set(asked) == {5}
    plain = score(evaluation, toy_model(linear()), toy_batch(1), batch_size=5)
    assert rows.equals(plain)


def test_an_image_with_more_superpixels_than_the_samples_carry_is_an_error_row() -> None:
    shape = (1, 32, 32)
    evaluation = parse_reading("superpixel?kernel_size=1", samples=12, shape=shape)
    smooth = torch.linspace(0, 1, 32).expand(shape)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(("a", "b"), ("a", "b"), torch.stack([smooth, noise]))
    rows = score(evaluation, toy_model(linear(shape), shape=shape), batch).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "error"]
    assert "12 samples cannot fit 18 superpixels" in rows[1]["error"]
    assert rows[1]["score"] is None


@pytest.mark.parametrize("text", ["grid", "superpixel?fill=0", "grid?design=hadamard&samples=256"])
@pytest.mark.parametrize("target", ["prob_pred", "margin_pred", "prob_all"])
def test_the_exact_way_gives_the_same_rows_to_rounding(text: str, target: str) -> None:
    shape = (3, 24, 24)
    settings = f"{text}{'&' if '?' in text else '?'}target={target}"
    fast = parse_reading(settings, samples=150, shape=shape)
    exact = replace(fast, exact=True)
    assert exact.canonical() == fast.canonical()
    model, batch = toy_model(linear(shape, scale=3.0), shape=shape), toy_batch(3, shape)
    one, other = (score(reading, model, batch).to_pylist() for reading in (fast, exact))
    assert one != other  # another way was taken
    for row, twin in zip(one, other, strict=True):
        for name, value in row.items():
            if isinstance(value, float | list):
                np.testing.assert_allclose(value, twin[name], rtol=1e-6, atol=1e-9, err_msg=name)
            else:
                assert value == twin[name], name
