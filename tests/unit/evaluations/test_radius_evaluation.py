"""The flip radius as an evaluation: rows that depend on no neighbour, and queries that add up."""

import pytest
from toy import linear, toy_batch, toy_model

from raybench.evaluations.radius import RadiusEvaluation
from raybench.kernels.radius import queries_asked


@pytest.mark.parametrize(
    ("images", "samples"), [(1, 64), (3, 100), (16, 64), (17, 64), (32, 64), (35, 70)]
)
def test_queries_are_what_the_model_is_asked(images: int, samples: int) -> None:
    evaluation, model = RadiusEvaluation(samples=samples), toy_model(linear())
    evaluation(model, toy_batch(images), seed=0, batch_size=64)
    assert model.calls == evaluation.queries(images)
    if images % 16 == 0:
        assert model.calls == images * samples
    # What fills a group up is asked about in the search alone.
    filling = -images % 16
    assert model.calls - images * samples < filling * samples or filling == 0


def test_a_full_group_is_filled_with_nothing() -> None:
    assert queries_asked(16, 1000, 16) == queries_asked(16, 1000, 1) == 16_000
    assert queries_asked(1, 1000, 16) == 1000 + 15 * (1000 - 256 - 2)
    assert RadiusEvaluation().queries(0) == 0


def test_every_call_of_the_search_has_the_same_size() -> None:
    plain, sizes = linear(), []

    def watched(images):
        sizes.append(len(images))
        return plain(images)

    RadiusEvaluation(samples=64)(toy_model(watched), toy_batch(18), seed=0, batch_size=64)
    # 16 directions, the image and its centre, for each image alone; then steps of sixteen.
    assert set(sizes) == {18, 16}
    assert sizes.count(18) == 18


def test_an_image_finds_the_same_in_any_group() -> None:
    evaluation, model = RadiusEvaluation(samples=64), toy_model(linear())
    batch = toy_batch(5)
    together = evaluation(model, batch, seed=0, batch_size=64).to_pylist()
    for index, sample_id in enumerate(batch.ids):
        alone = type(batch)((sample_id,), (sample_id,), batch.images[index : index + 1])
        [row] = evaluation(model, alone, seed=0, batch_size=64).to_pylist()
        assert row == together[index]
