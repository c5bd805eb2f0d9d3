"""JSMA against pairs found by hand and by exhaustion."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import lp_norm
from raybench.kernels.attacks.jsma import jsma


def linear(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return logits of weights [K, D], summed in float64 so that batches do not matter."""

    def scores(images: Tensor) -> Tensor:
        products = images.flatten(1).to(torch.float64)[:, None] * weight.to(torch.float64)
        answer = products.sum(2).to(torch.float32)
        return answer if bias is None else answer + bias

    return scores


def random_model(shape: tuple[int, int, int], classes: int = 4) -> tuple[Tensor, Tensor]:
    """Return weights [K, D] and images [5, C, H, W] of that shape."""
    generator = torch.Generator().manual_seed(3)
    size = shape[0] * shape[1] * shape[2]
    weight = torch.randn(classes, size, generator=generator)
    return weight, 0.6 * torch.rand(5, *shape, generator=generator)


def test_the_best_pair_of_four_features_is_raised() -> None:
    # Of class 1: a = (3, 1, 2, -9), of the others b = (-1, -4, 1, -9): the products -a*b of pairs
    # are 01: 4*5 = 20, 02: 0 (b = 0), 12: 3*3 = 9, and all with 3 have a < 0.
    weight = torch.tensor([[-1.0, -4.0, 1.0, -9.0], [3.0, 1.0, 2.0, -9.0]])
    images = torch.full((1, 1, 2, 2), 0.5)
    scores = linear(weight, torch.tensor([0.0, -7.0]))
    result = jsma(scores, images, torch.tensor([1]), theta=0.25, gamma=0.5)
    raised = (result.images - images).flatten()
    assert scores(images).argmax(1).item() == 0
    assert result.found.all()
    assert raised.tolist() == [0.25, 0.25, 0.0, 0.0]
    assert result.found_at.item() == 1
    assert result.found_queries.item() == result.queries.item() == 2
    assert result.gradients.item() == 2


@pytest.mark.parametrize("use_softmax", [False, True])
def test_pairs_are_those_of_exhaustion(use_softmax: bool) -> None:
    """One pair is allowed; the model is asked at the image and at the raised one."""
    weight, images = random_model((2, 3, 3))
    seen: list[Tensor] = []
    inner = linear(weight, torch.tensor([0.0, 0.0, 0.0, -20.0]))

    def scores(shown: Tensor) -> Tensor:
        seen.append(shown.detach().clone())
        return inner(shown)

    labels = torch.full((5,), 3)
    result = jsma(scores, images, labels, theta=0.1, gamma=2 / 18, use_softmax=use_softmax)
    assert not result.found.any()
    assert torch.equal(result.images, images)
    assert (result.gradients == (1 if use_softmax else 2)).all()
    before, after = seen
    jacobian = torch.autograd.functional.jacobian(
        lambda x: inner(x).double().softmax(1) if use_softmax else inner(x), images
    )
    for at in range(5):
        toward = jacobian[at, :, at].flatten(1)[3]
        # Probabilities sum to 1: their derivatives cancel exactly, which a float32 sum would not.
        away = -toward if use_softmax else jacobian[at, :3, at].flatten(1).sum(0)
        products = {
            (p, q): -((toward[p] + toward[q]) * (away[p] + away[q])).item()
            for p, q in itertools.combinations(range(18), 2)
            if toward[p] + toward[q] > 0 and away[p] + away[q] < 0
        }
        best = max(products, key=lambda pair: products[pair])
        moved = (after[at] != before[at]).flatten().nonzero().flatten().tolist()
        assert tuple(moved) == best


def test_features_already_at_one_stay_out() -> None:
    weight = torch.zeros(2, 4)
    weight[1] = torch.tensor([9.0, 2.0, 1.0, 0.5])
    weight[0] = -weight[1]
    images = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 2, 2)
    scores = linear(weight, torch.tensor([22.0, 0.0]))
    result = jsma(scores, images, torch.tensor([1]), gamma=0.5)
    assert result.found.all()
    assert result.images.flatten().tolist() == [1.0, 1.0, 1.0, 0.0]


def test_no_feature_is_raised_twice_and_it_ends_when_all_are_used() -> None:
    weight = torch.tensor([[-1.0] * 8, [1.0] * 8])
    images = torch.zeros(1, 1, 2, 4)
    asked: list[Tensor] = []
    inner = linear(weight, torch.tensor([100.0, 0.0]))

    def scores(shown: Tensor) -> Tensor:
        asked.append(shown.detach().clone())
        return inner(shown)

    result = jsma(scores, images, torch.tensor([1]), theta=0.25, gamma=1.0)
    assert not result.found.any()
    assert [int((shown > 0).sum()) for shown in asked] == [0, 2, 4, 6, 8]
    assert asked[-1].max() == 0.25
    assert torch.equal(result.images, images)


def test_it_stops_where_no_pair_is_admissible() -> None:
    """cleverhans' graph then takes the argmax of zeros, and changes pixel 0."""
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    asked: list[int] = []
    inner = linear(weight, torch.tensor([3.0, 0.0]))

    def scores(shown: Tensor) -> Tensor:
        asked.append(len(shown))
        return inner(shown)

    images = torch.full((2, 1, 2, 2), 0.25)
    result = jsma(scores, images, torch.tensor([1, 1]), gamma=1.0)
    assert asked == [2]
    assert not result.found.any()
    assert not result.zero_gradient.any()
    assert torch.equal(result.images, images)


def test_the_number_of_features_is_within_gamma_and_twice_the_pairs() -> None:
    weight, images = random_model((1, 6, 6))
    scores = linear(weight)
    labels = (scores(images).argmax(1) + 1) % 4
    result = jsma(scores, images, labels, gamma=0.5)
    assert result.found.any()
    changed = lp_norm(result.images - images, "l0")
    assert (changed <= 18).all()
    found = result.found
    assert (changed[found] == 2 * result.found_at[found]).all()
    assert (scores(result.images).argmax(1) == labels)[found].all()
    assert result.images.max() <= 1


def test_restricted_search_finds_the_pairs_of_the_full_one_in_many_features() -> None:
    """3 x 19 x 19 features are above the exact limit: 256 of them hold the best pairs."""
    weight, images = random_model((3, 19, 19), classes=10)
    scores = linear(weight)
    labels = scores(images).topk(4).indices[:, 3]
    settings = {"theta": 0.4, "gamma": 0.04}
    quick = jsma(scores, images, labels, **settings)
    full = jsma(scores, images, labels, candidates=1083, **settings)
    assert full.found.sum() >= 3
    assert full.found_at.max() > 2
    assert torch.equal(quick.images, full.images)
    fewer = jsma(scores, images, labels, candidates=2, **settings)
    assert not torch.equal(fewer.images, full.images)


def test_an_image_alone_gets_what_it_gets_in_a_batch_and_every_query_counts() -> None:
    weight, images = random_model((1, 6, 6))
    inner = linear(weight)
    asked: list[int] = []

    def scores(shown: Tensor) -> Tensor:
        asked.append(len(shown))
        return inner(shown)

    labels = (inner(images).argmax(1) + 1) % 4
    labels[2] = inner(images).argmax(1)[2]
    whole = jsma(scores, images, labels, theta=0.4, gamma=0.5)
    assert sum(asked) == whole.queries.sum()
    assert whole.found_at[2] == 0
    assert whole.gradients[2] == 0
    assert torch.equal(whole.images[2], images[2])
    assert len(whole.queries.unique()) > 2
    for at in range(5):
        one = slice(at, at + 1)
        alone = jsma(scores, images[one], labels[one], theta=0.4, gamma=0.5)
        for name in ("images", "found", "found_at", "found_queries", "queries", "gradients"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), name


@pytest.mark.parametrize("attached", [True, False])
def test_a_model_without_gradients_is_left_at_once(attached: bool) -> None:
    def flat(images: Tensor) -> Tensor:
        values = torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)
        return values + 0 * images.flatten(1).sum(1, keepdim=True) if attached else values

    images = torch.full((2, 1, 4, 4), 0.5)
    result = jsma(flat, images, torch.tensor([1, 1]), gamma=1.0)
    assert not result.found.any()
    assert result.zero_gradient.all()
    assert (result.queries == 1).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"theta": 0.0}, "theta must be above 0; found 0.0"),
        ({"gamma": 0.0}, "gamma must be above 0; found 0.0"),
        ({"gamma": 1.5}, "gamma must be at most 1; found 1.5"),
        ({"candidates": 1}, "candidates must be at least 2; found 1"),
        ({"targeted": False}, "targeted must be True: JSMA needs a wanted class; found False"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    weight, images = random_model((1, 3, 3))
    with pytest.raises(ValueError, match=text):
        jsma(linear(weight), images, torch.zeros(5, dtype=torch.int64), **change)
