"""DeepFool against the nearest planes of linear models, and at ties."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import lp_norm
from raybench.kernels.attacks.deepfool import deepfool

SHAPE = (3, 3, 3)
BOTH = pytest.mark.parametrize("norm", ["l2", "linf"])


def linear(classes: int = 6) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return weights [K, D] and a model that sums in float64, so that batches do not matter."""
    weight = torch.randn(classes, 27, generator=torch.Generator().manual_seed(1))

    def scores(images: Tensor) -> Tensor:
        products = images.flatten(1).to(torch.float64)[:, None] * weight.to(torch.float64)
        return products.sum(2).to(torch.float32)

    return weight, scores


def curved(images: Tensor) -> Tensor:
    """Return logits [N, 6] that bend, so that several steps are needed."""
    _, inner = linear()
    return (inner(images) / 2) ** 3


def interior(count: int) -> Tensor:
    return 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2))


@BOTH
@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.5])
def test_a_linear_model_is_solved_in_one_step_of_the_exact_norm(
    norm: str, overshoot: float
) -> None:
    weight, scores = linear()
    images = interior(8)
    answer = scores(images).double()
    labels = answer.argmax(1)
    result = deepfool(scores, images, labels, norm=norm, overshoot=overshoot)
    slopes = (weight[None] - weight[labels][:, None]).double()
    length = slopes.norm(dim=2) if norm == "l2" else slopes.abs().sum(2)
    lead = answer.gather(1, labels[:, None]) - answer
    exact = ((lead + 1e-4) / length).nan_to_num(torch.inf, posinf=torch.inf)
    exact[torch.arange(8), labels] = torch.inf
    assert (result.found_at == 1).all()
    assert (scores(result.images).argmax(1) != labels).all()
    torch.testing.assert_close(
        lp_norm(result.images - images, norm),
        (1 + overshoot) * exact.amin(1),
        rtol=1e-4,
        atol=1e-6,
    )
    assert (result.queries == 2).all()
    assert (result.gradients == 5).all()


def test_only_candidates_are_rivals() -> None:
    """A class of low logit has the nearest plane; two candidates do not look at it."""

    def scores(images: Tensor) -> Tensor:
        first, last = images[:, 0, 0, 0], images[:, 2, 2, 2]
        return torch.stack([torch.ones_like(first), first, 10 * last - 7], 1)

    images = torch.full((1, *SHAPE), 0.5)
    labels = torch.tensor([0])
    both = deepfool(scores, images, labels, candidates=3, overshoot=0.0)
    one = deepfool(scores, images, labels, candidates=2, overshoot=0.0)
    assert scores(both.images).argmax(1).item() == 2
    assert lp_norm(both.images - images, "l2").item() == pytest.approx(0.3, abs=1e-4)
    assert lp_norm(one.images - images, "l2").item() != pytest.approx(0.3, abs=1e-2)
    assert (one.images[0, 2, 2, 2] == 0.5).all()
    assert both.gradients.item() == 2
    assert (one.gradients == one.queries - 1).all()


@BOTH
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_an_exact_tie_is_left(norm: str, scale: float) -> None:
    """argmax keeps the label at a tie, where a step of |f| / |w| has no length (torchattacks)."""

    def scores(images: Tensor) -> Tensor:
        rise = (images - 0.5).flatten(1).sum(1)
        return scale * torch.stack([torch.ones_like(rise), 1 + rise], 1)

    images = torch.full((1, *SHAPE), 0.5)
    labels = torch.tensor([0])
    assert scores(images).argmax(1).item() == 0
    assert scores(images)[0].unique().numel() == 1
    result = deepfool(scores, images, labels, norm=norm)
    assert result.found.all()
    assert scores(result.images).argmax(1).item() == 1
    assert lp_norm(result.images - images, norm).item() < 1e-4


@BOTH
def test_a_step_that_lands_on_a_plateau_of_the_tie_goes_on(norm: str) -> None:
    """Logits in steps of 1/64: the linear model's step ends in a tie again and again."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return (values * 64).floor() / 64

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    def scores(images: Tensor) -> Tensor:
        rise = Rounded.apply((images - 0.5).flatten(1).sum(1) - 0.25)
        return torch.stack([torch.zeros_like(rise), rise], 1)

    images = torch.full((1, *SHAPE), 0.5)
    result = deepfool(scores, images, torch.tensor([0]), norm=norm, overshoot=0.0)
    assert result.found.all()
    # 17/64 is the first rise that wins; doubling the excess ends at most at twice what was missing.
    rise = (result.images - images).sum().item()
    assert 17 / 64 <= rise < 17 / 64 + 2 / 64 + 1e-3


@BOTH
def test_an_image_alone_gets_what_it_gets_in_a_batch(norm: str) -> None:
    images = interior(6)
    labels = curved(images).argmax(1)
    labels[4] = (labels[4] + 1) % 6
    whole = deepfool(curved, images, labels, norm=norm)
    assert whole.found.all()
    assert len(whole.found_at.unique()) > 2
    for at in range(6):
        one = slice(at, at + 1)
        alone = deepfool(curved, images[one], labels[one], norm=norm)
        for name in ("images", "found", "found_at", "found_queries", "queries", "gradients"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), name


def test_every_image_asked_about_is_counted() -> None:
    asked: list[int] = []

    def scores(images: Tensor) -> Tensor:
        asked.append(len(images))
        return curved(images)

    images = interior(6)
    labels = curved(images).argmax(1)
    result = deepfool(scores, images, labels, steps=2)
    assert not result.found.all()
    assert result.found.any()
    assert sum(asked) == result.queries.sum()
    found = result.found
    assert torch.equal(result.found_queries[found], result.queries[found])
    assert (result.queries[~found] == 3).all()
    assert torch.equal(result.gradients, 5 * (result.queries - 1))
    assert torch.equal(result.images[~found], images[~found])


def test_an_image_already_wrong_is_returned_as_it_is() -> None:
    images = interior(2)
    labels = curved(images).argmax(1)
    labels[1] = (labels[1] + 1) % 6
    result = deepfool(curved, images, labels)
    assert result.found_at.tolist()[1] == 0
    assert result.queries.tolist()[1] == 1
    assert result.gradients.tolist()[1] == 0
    assert torch.equal(result.images[1], images[1])


@BOTH
def test_images_at_the_ends_of_the_range_stay_within(norm: str) -> None:
    images = interior(8).round()
    labels = curved(images).argmax(1)
    result = deepfool(curved, images, labels, norm=norm)
    assert result.found.all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    assert (curved(result.images).argmax(1) != labels).all()


@pytest.mark.parametrize("attached", [True, False])
def test_an_image_without_gradients_is_left_at_once(attached: bool) -> None:
    def flat(images: Tensor) -> Tensor:
        values = torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)
        return values + 0 * images.flatten(1).sum(1, keepdim=True) if attached else values

    images = interior(2)
    result = deepfool(flat, images, torch.zeros(2, dtype=torch.int64))
    assert not result.found.any()
    assert result.zero_gradient.all()
    assert (result.queries == 1).all()
    assert torch.equal(result.images, images)


def test_gradients_may_be_off_outside_and_no_images_are_no_work() -> None:
    images = interior(2)
    labels = curved(images).argmax(1)
    with torch.no_grad():
        assert deepfool(curved, images, labels).found.all()
        assert len(deepfool(curved, images[:0], labels[:0]).images) == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l1"}, "norm must be one of l2, linf; found 'l1'"),
        ({"steps": 0}, "steps must be above 0; found 0"),
        ({"overshoot": -0.1}, "overshoot must be at least 0; found -0.1"),
        ({"candidates": 1}, "candidates must be at least 2; found 1"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        deepfool(curved, interior(2), torch.zeros(2, dtype=torch.int64), **change)
