"""Carlini and Wagner in L0 against models that need a known number of pixels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.carlini_l0 import carlini_l0
from raybench.kernels.attacks.common import lp_norm, margin

QUICK = {"steps": 60, "lr": 0.1, "initial_c": 0.1, "largest_c": 1e3}


def linear(weight: Tensor, bias: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Return two logits: bias and weight * x, summed in float64 so that batches do not matter."""

    def scores(images: Tensor) -> Tensor:
        rise = (images.to(torch.float64) * weight.to(torch.float64)).flatten(1).sum(1)
        return torch.stack([torch.full_like(rise, bias), rise], 1).to(torch.float32)

    return scores


def pixels(*strong: int) -> Tensor:
    """Return weights [1, 4, 4]: 0.1, or 5 at the strong pixels."""
    weight = torch.full((16,), 0.1)
    weight[list(strong)] = 5.0
    return weight.view(1, 4, 4)


@pytest.mark.parametrize(("bias", "needed"), [(6.0, 1), (10.0, 2), (13.0, 3)])
def test_as_few_pixels_as_the_model_allows(bias: float, needed: int) -> None:
    # From 0.3 a strong pixel gives at most 3.5 and the image starts at 0.3 * (1.3 + 15) = 4.89.
    scores = linear(pixels(2, 7, 9), bias)
    images = torch.full((1, 1, 4, 4), 0.3)
    start = margin(scores(images), torch.tensor([0])).item()
    assert (needed - 1) * 3.5 < start < needed * 3.5
    result = carlini_l0(scores, images, torch.tensor([0]), **QUICK)
    assert result.found.all()
    assert scores(result.images).argmax(1).item() == 1
    assert lp_norm(result.images - images, "l0").item() == needed
    moved = (result.images != images).flatten().nonzero().flatten().tolist()
    assert set(moved) <= {2, 7, 9}


def test_channels_that_move_against_each_other_do_not_cancel() -> None:
    """The only pixel that can win moves by (+d, -d); a signed sum of 0 freezes it first."""
    weight = torch.full((2, 4, 4), 0.01)
    weight[0, 0, 0], weight[1, 0, 0] = 5.0, -5.0
    scores = linear(weight, 2.0)
    images = torch.full((1, 2, 4, 4), 0.5)
    labels = torch.tensor([0])
    result = carlini_l0(scores, images, labels, **QUICK)
    assert result.found.all()
    assert lp_norm(result.images - images, "l0").item() == 1
    cancelled = carlini_l0(scores, images, labels, signed_sum=True, **QUICK)
    assert lp_norm(cancelled.images - images, "l0").item() > 1


def test_confidence_is_kept_and_costs_pixels() -> None:
    scores = linear(pixels(2, 7, 9), 5.0)
    images = torch.full((1, 1, 4, 4), 0.3)
    result = carlini_l0(scores, images, torch.tensor([0]), confidence=5.0, **QUICK)
    assert result.found.all()
    assert margin(scores(result.images), torch.tensor([0])).item() <= -5
    assert lp_norm(result.images - images, "l0").item() == 2


def test_targets_are_sought() -> None:
    scores = linear(pixels(2, 7, 9), 5.0)
    images = torch.full((2, 1, 4, 4), 0.3)
    result = carlini_l0(scores, images, torch.tensor([1, 0]), targeted=True, **QUICK)
    assert result.found.all()
    assert scores(result.images).argmax(1).tolist() == [1, 0]
    assert result.found_at[1] == 0
    assert torch.equal(result.images[1], images[1])
    assert result.queries[1] == result.found_queries[1] == 1


def test_an_image_alone_gets_what_it_gets_in_a_batch_and_every_query_counts() -> None:
    inner = linear(pixels(2, 7, 9), 6.0)
    asked: list[int] = []

    def scores(images: Tensor) -> Tensor:
        asked.append(len(images))
        return inner(images)

    images = 0.2 + 0.15 * torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(4, dtype=torch.int64)
    whole = carlini_l0(scores, images, labels, **QUICK)
    assert sum(asked) == whole.queries.sum()
    assert torch.equal(whole.gradients, whole.queries - 1)
    assert len(whole.queries.unique()) > 1
    assert whole.found.all()
    for at in range(4):
        one = slice(at, at + 1)
        alone = carlini_l0(scores, images[one], labels[one], **QUICK)
        for name in ("images", "found", "found_at", "found_queries", "queries", "gradients"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), name


def test_a_model_without_gradients_fails_and_says_so() -> None:
    def flat(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    images = torch.full((2, 1, 4, 4), 0.3)
    labels = torch.zeros(2, dtype=torch.int64)
    result = carlini_l0(flat, images, labels, **{**QUICK, "steps": 10})
    assert not result.found.any()
    assert (result.found_queries == -1).all()
    assert result.zero_gradient.all()
    assert torch.equal(result.images, images)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 0}, "steps must be above 0; found 0"),
        ({"lr": -1.0}, "lr must be above 0; found -1.0"),
        ({"confidence": -0.5}, "confidence must be at least 0; found -0.5"),
        ({"largest_c": 1e-4}, "largest_c must be above initial_c, which is 0.001"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    images = torch.full((1, 1, 4, 4), 0.3)
    scores = linear(pixels(2))
    with pytest.raises(ValueError, match=text):
        carlini_l0(scores, images, torch.tensor([0]), **change)
