"""The flip radius against geometry: a linear model's nearest boundary point in the pixel box."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from raybench.kernels.draws import stream
from raybench.kernels.linearised import (
    DELTA,
    block_sizes,
    flip_direction,
    nonnegative_least_squares,
    probe_design,
)
from raybench.kernels.radius import CAP, RadiusResult, flip_radius, square_side


class Linear:
    """Logits W x + b in float64, with W of blocks of four pixels a side over pixel noise."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, rough: float) -> None:
        generator = torch.Generator().manual_seed(7)
        channels, height, width = shape
        coarse = torch.randn(classes, channels, height // 4, width // 4, generator=generator)
        smooth = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
        noise = torch.randn(classes, *shape, generator=generator)
        self.weight = (smooth + rough * noise).double() / math.prod(shape)
        # Grey images are undecided, so that images differ in class and radii in size.
        self.bias = -self.weight.sum((1, 2, 3)) / 2

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
        return (images.double()[:, None] * self.weight).sum((2, 3, 4)) + self.bias

    def true_radius(self, image: Tensor) -> float:
        """Least t at which clip(image +- t) reaches another class: bisection, pixel by pixel."""
        scores = self(image[None])[0]
        label = int(scores.argmax())
        best = 1.0
        for other in set(range(len(scores))) - {label}:
            slope = self.weight[label] - self.weight[other]
            room = torch.where(slope > 0, image.double(), 1 - image.double())
            margin = float(scores[label] - scores[other])
            low, high = 0.0, 1.0
            if float((slope.abs() * room).sum()) < margin:
                continue
            for _ in range(60):
                middle = (low + high) / 2
                if float((slope.abs() * room.clamp(max=middle)).sum()) < margin:
                    low = middle
                else:
                    high = middle
            best = min(best, high)
        return best


def images_of(count: int, shape: tuple[int, int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.rand(count, *shape, generator=generator) * 0.8 + 0.1


def radii(
    scores: Callable[[Tensor], Tensor], images: Tensor, *, queries: int = 1000, batch: int = 300
) -> RadiusResult:
    return flip_radius(scores, images, seed=0, queries=queries, batch=batch)


@pytest.mark.parametrize(
    ("shape", "rough"), [((1, 8, 8), 0.5), ((3, 8, 8), 0.2), ((1, 28, 28), 0.2)]
)
def test_linear_models_are_bounded_from_above_and_closely(
    shape: tuple[int, int, int], rough: float
) -> None:
    model = Linear(shape, 5, rough=rough)
    images = images_of(8, shape)
    found = radii(model, images)
    truth = torch.tensor([model.true_radius(image) for image in images], dtype=torch.float64)
    assert float(truth.max()) < CAP  # the test has something to find
    ratio = found.radii / truth[:, None]
    assert float(ratio.min()) >= 1 - 1e-5  # float32 images
    # The first radii tried fall by 0.7 each, so an image can miss by 1 / 0.7, and by more where two
    # classes are nearly as near and the wrong one was chosen.
    assert float(ratio[:, -1].max()) <= 2
    assert float(ratio[:, -1].median()) <= 1.25
    # The linearised margin is the radius of a linear model, but for the box and the estimate.
    assert float((found.linearised / truth).mean()) == pytest.approx(1, abs=0.1)
    # More queries never hurt, and what was recorded last is what all queries found.
    assert bool((found.radii.diff(dim=1) <= 0).all())
    assert found.checkpoints == (640, 768, 896, 1000)
    clean = model(images)
    assert torch.equal(found.predicted, clean.argmax(1))
    top = clean.topk(2, dim=1).values
    torch.testing.assert_close(found.margin, top[:, 0] - top[:, 1])
    assert bool(found.finite.all())


def test_radii_do_not_depend_on_the_scale_of_the_logits() -> None:
    model, images = Linear((1, 8, 8), 4, rough=0.5), images_of(4, (1, 8, 8))
    plain = radii(model, images, queries=200)
    for scale in (2.0**-10, 2.0**20):  # powers of two: exact in floating point
        scaled = radii(lambda x, scale=scale: model(x) * scale, images, queries=200)
        assert torch.equal(scaled.radii, plain.radii)
        assert torch.equal(scaled.extrapolated, plain.extrapolated)
        torch.testing.assert_close(scaled.linearised, plain.linearised, rtol=1e-9, atol=0)
    # Log-probabilities differ from logits by a constant in each row.
    logs = radii(lambda x: model(x).log_softmax(1), images, queries=200)
    torch.testing.assert_close(logs.radii, plain.radii)


@pytest.mark.parametrize("queries", [64, 65, 333])
def test_every_image_spends_exactly_the_queries_it_is_given(queries: int) -> None:
    model, images = Linear((1, 8, 8), 4, rough=0.5), images_of(5, (1, 8, 8))
    asked = 0

    def counting(x: Tensor) -> Tensor:
        nonlocal asked
        asked += len(x)
        assert len(x) <= 7
        return model(x)

    found = radii(counting, images, queries=queries, batch=7)
    assert asked == 5 * queries
    assert found.queries == queries
    assert found.checkpoints[-1] == queries


def test_a_constant_model_has_radius_one_and_extrapolates_to_the_cap() -> None:
    found = radii(
        lambda x: torch.tensor([[0.2, 0.5, 0.1]]).expand(len(x), -1), images_of(2, (3, 8, 8))
    )
    assert found.radii.tolist() == [[1.0] * 4] * 2
    assert found.extrapolated.tolist() == [CAP] * 2
    assert found.predicted.tolist() == [1, 1]


def test_an_image_finds_the_same_alone_and_among_others() -> None:
    # Rough, so that the windows have work to do and images accept different ones.
    model, images = Linear((1, 28, 28), 4, rough=1.0), images_of(4, (1, 28, 28))
    together = radii(model, images, queries=400)
    for batch in (1, 3):
        again = radii(model, images, queries=400, batch=batch)
        torch.testing.assert_close(again.radii, together.radii, rtol=1e-12, atol=0)
    reverse = radii(model, images.flip(0), queries=400)
    torch.testing.assert_close(reverse.radii.flip(0), together.radii, rtol=1e-12, atol=0)
    for index in range(4):
        alone = radii(model, images[index : index + 1], queries=400)
        torch.testing.assert_close(alone.radii[0], together.radii[index], rtol=1e-12, atol=0)
        torch.testing.assert_close(alone.linearised[0], together.linearised[index])


def test_windows_improve_what_the_differences_left_open() -> None:
    model, images = Linear((1, 28, 28), 4, rough=1.0), images_of(8, (1, 28, 28))
    found = radii(model, images)
    logs = found.radii.log().mean(0)
    assert float(logs[0] - logs[-1]) > 0.03
    # The trend leads further down, as far as four times the queries would at the same slope.
    positions = np.log(found.checkpoints)
    for row, extrapolated in zip(
        found.radii.clamp(max=CAP).log().numpy(), found.extrapolated, strict=True
    ):
        slope = np.polyfit(positions, row, 1)[0]
        assert float(extrapolated) == pytest.approx(math.exp(row[-1]) * 4**slope, rel=1e-9)
    assert bool((found.extrapolated <= found.radii[:, -1]).all())


def test_other_seeds_search_elsewhere() -> None:
    model, images = Linear((1, 28, 28), 4, rough=1.0), images_of(3, (1, 28, 28))
    first, again, other = (flip_radius(model, images, seed=s, queries=300) for s in (0, 0, 1))
    assert torch.equal(first.radii, again.radii)
    assert not torch.equal(first.linearised, other.linearised)
    assert not torch.equal(first.radii, other.radii)


def test_answers_that_are_not_finite_are_marked_and_touch_no_other_image() -> None:
    model, images = Linear((1, 8, 8), 4, rough=0.5), images_of(3, (1, 8, 8))
    images[1, 0, 0, 0] = 0.95

    def sometimes(x: Tensor) -> Tensor:
        broken = (x[:, 0, 0, 0] - 0.95).abs() < 0.01
        return torch.where(broken[:, None], torch.nan, model(x))

    found = radii(sometimes, images, queries=100)
    assert found.finite.tolist() == [True, False, True]
    assert bool(found.radii[1].isnan().all())
    assert bool(found.extrapolated[1].isnan())
    others = radii(model, images[[0, 2]], queries=100)
    torch.testing.assert_close(found.radii[[0, 2]], others.radii, rtol=1e-12, atol=0)

    # A class of probability zero has log-probability minus infinity, which is an answer.
    def impossible(x: Tensor) -> Tensor:
        return torch.cat([model(x), torch.full((len(x), 1), -torch.inf, dtype=torch.float64)], 1)

    with_impossible = radii(impossible, images, queries=100)
    assert bool(with_impossible.finite.all())
    assert torch.equal(with_impossible.radii, radii(model, images, queries=100).radii)


def test_batches_that_do_not_fit_memory_are_halved() -> None:
    model, images = Linear((1, 8, 8), 4, rough=0.5), images_of(3, (1, 8, 8))

    def small(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("does not fit")
        return model(x)

    found = radii(small, images, queries=70)
    torch.testing.assert_close(found.radii, radii(model, images, queries=70).radii)
    with pytest.raises(torch.OutOfMemoryError):
        radii(lambda x: small(x.repeat(3, 1, 1, 1)), images, queries=70)


def test_wrong_inputs_are_named() -> None:
    model, images = Linear((1, 8, 8), 4, rough=0.5), images_of(1, (1, 8, 8))
    with pytest.raises(ValueError, match="queries must be at least 64, found 63"):
        radii(model, images, queries=63)
    with pytest.raises(ValueError, match=r"images must be \[N, C, H, W\] .*found \(1, 8, 8\)"):
        radii(model, images[0])
    with pytest.raises(ValueError, match="batch must be at least 1"):
        radii(model, images, batch=0)
    with pytest.raises(ValueError, match="at least two classes, found"):
        radii(lambda x: model(x)[:, :1], images)


def test_window_sides_follow_the_square_attack_schedule() -> None:
    sides = [square_side(spent, 1000, 28, 28) for spent in (0, 1, 5, 20, 50, 259, 500, 801)]
    assert sides == [25, 25, 18, 13, 9, 3, 2, 1]
    assert square_side(0, 1000, 1, 1) == 1


@pytest.mark.parametrize(
    ("height", "width", "sizes"),
    [
        (28, 28, (1, 2, 4, 7)),
        (32, 32, (1, 2, 4, 8)),
        (224, 224, (1, 2, 4, 28)),
        (8, 8, (1, 2, 4)),
        (9, 14, (1, 2, 4)),
        (3, 3, (1,)),
    ],
)
def test_block_sizes(height: int, width: int, sizes: tuple[int, ...]) -> None:
    assert block_sizes(height, width) == sizes


def test_directions_are_signs_constant_on_blocks_in_equal_parts() -> None:
    design = probe_design(stream(0, "radius directions", "common"), (3, 28, 28), 256)
    assert design.directions.shape == (256, 3, 28, 28)
    assert set(design.directions.unique().tolist()) == {-1.0, 1.0}
    for part, size in zip(design.directions.split(64), (1, 2, 4, 7), strict=True):
        corners = part[:, :, ::size, ::size]
        blown = corners.repeat_interleave(size, 2).repeat_interleave(size, 3)
        assert torch.equal(part, blown)
        assert abs(float(corners.mean())) < 5 / math.sqrt(corners.numel())
    # The prior's Gram matrices are U P U' with P the indicator of "same block".
    flat = design.directions.flatten(1).double()
    for scale in design.scales[:4]:
        same = (scale.blocks[:, None] == scale.blocks[None]).double()
        torch.testing.assert_close(scale.gram, flat @ same @ flat.mT)


def test_direction_points_down_the_margin_of_a_smooth_model() -> None:
    model, image = Linear((1, 8, 8), 4, rough=0.0), images_of(1, (1, 8, 8))[0]
    design = probe_design(stream(0, "x", "common"), (1, 8, 8), 64)
    centre = image.clamp(DELTA, 1 - DELTA)
    clean, probed = model(image[None])[0], model(centre + DELTA * design.directions)
    found = flip_direction(design, clean, model(centre[None])[0], probed)
    label = int(clean.argmax())
    slope = model.weight[label] - model.weight[found.runner_up]
    # Sixteen numbers decide the gradient: 64 differences show every sign.
    assert torch.equal(found.sign, -slope.sign().float())
    margin = float(clean[label] - clean[found.runner_up])
    assert found.radius == pytest.approx(margin / float(slope.abs().sum()), rel=0.05)


def test_nonnegative_least_squares_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        matrix = rng.random((20, 8)) * rng.choice([1e-3, 1, 1e3], 8)
        target = matrix @ np.maximum(rng.normal(size=8), 0) + rng.normal(size=20)
        expected, _ = nnls(matrix, target)
        found = nonnegative_least_squares(matrix, target)
        np.testing.assert_allclose(matrix @ found, matrix @ expected, rtol=0, atol=1e-8)
        assert found.min() >= 0
    assert nonnegative_least_squares(np.eye(3), np.array([-1.0, 2.0, 0.0])).tolist() == [0, 2, 0]
