import numpy as np
import pyarrow as pa
import pytest
from toy import linear, toy_batch, toy_model

from raybench.core.types import Batch, Failure
from raybench.evaluations.readings import parse_reading
from raybench.reports.images import MATCHED_CONFIDENCE, image_scores

SHAPE = (1, 8, 8)


def rows_of(scale: float = 1.0, reading: str = "grid", count: int = 6) -> pa.Table:
    evaluation = parse_reading(reading, samples=200, shape=SHAPE)
    batch = toy_batch(count)
    broken = Batch(batch.ids, batch.sources, batch.images, (Failure("x", "x.png", "truncated"),))
    model = toy_model(linear(scale=scale))
    return pa.Table.from_batches([evaluation(model, broken, seed=0, batch_size=64)])


def test_columns_leave_unscored_images_out_of_every_mean() -> None:
    rows = rows_of()
    images = image_scores(rows)
    assert (images.scored, images.unscored, images.first_error) == (6, 1, "truncated")
    values = [row["score"] for row in rows.to_pylist() if row["status"] == "ok"]
    assert images.mean("score") == pytest.approx(np.mean(values))
    assert images.mean("nothing") is None
    assert len(list(images.predictions())) == 6


def test_temperatures_are_those_of_a_rescaled_model() -> None:
    plain, half, double = (image_scores(rows_of(scale)) for scale in (1.0, 0.5, 2.0))
    assert plain.at_temperature(0.5) == pytest.approx(half.mean("score"), rel=1e-4)
    assert plain.at_temperature(2.0) == pytest.approx(double.mean("score"), rel=1e-4)


def test_matching_takes_the_scale_of_the_logits_out() -> None:
    scores = []
    for scale in (0.1, 0.4, 1.6):
        matched = image_scores(rows_of(scale)).matched()
        assert matched is not None
        scores.append(np.nanmean(matched))
    # Linear interpolation between temperatures a factor of two apart costs a few percent.
    np.testing.assert_allclose(scores, scores[0], rtol=0.08)
    raw = [image_scores(rows_of(scale)).mean("score") for scale in (0.1, 1.6)]
    assert max(raw) / min(raw) > 3
    assert MATCHED_CONFIDENCE == 0.9


def test_normalised_does_not_move_with_the_scale() -> None:
    first, second = (image_scores(rows_of(scale)).normalised(logarithm=True) for scale in (1, 50))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_a_confidence_that_no_temperature_reaches_has_no_match() -> None:
    assert image_scores(rows_of(scale=1e-6)).matched() is None


def test_reliability_is_high_for_many_samples_and_absent_for_labels_alone() -> None:
    assert image_scores(rows_of()).reliability() > 0.8
    assert image_scores(rows_of(reading="pixel-gauss")).reliability() is None


def test_label_only_readings_know_no_margin() -> None:
    images = image_scores(rows_of(reading="grid?target=onehot"))
    assert images.mean("score") is not None
    assert images.mean("normalised") is not None  # the toy gives logits; only the target is labels
