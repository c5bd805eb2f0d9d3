"""L-BFGS against the distance to the planes of linear models."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from raybench.kernels.attacks.common import lp_norm, margin
from raybench.kernels.attacks.lbfgs import lbfgs

SHAPE = (1, 4, 4)


def linear(classes: int = 2) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    weight = torch.randn(classes, 16, generator=torch.Generator().manual_seed(1))
    return weight, lambda images: images.flatten(1) @ weight.T


def interior(count: int) -> Tensor:
    return 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2))


def test_two_classes_are_parted_at_the_distance_of_the_plane() -> None:
    weight, scores = linear()
    images = interior(4)
    labels = scores(images).argmax(1)
    exact = margin(scores(images), labels) / (weight[1] - weight[0]).norm()
    result = lbfgs(scores, images, 1 - labels, search_steps=14, targeted=True)
    assert result.found.all()
    assert (scores(result.images).argmax(1) != labels).all()
    sizes = lp_norm(result.images - images, "l2")
    torch.testing.assert_close(sizes, exact.double(), rtol=0.01, atol=0)


def test_the_last_point_asked_about_is_the_minimum_for_its_c() -> None:
    _, inner = linear(3)
    asked: list[Tensor] = []

    def scores(images: Tensor) -> Tensor:
        asked.append(images.detach().clone())
        return inner(images)

    images = interior(1)
    labels = inner(images).argmin(1)
    lbfgs(scores, images, labels, search_steps=1, initial_c=0.5, targeted=True)
    end = asked[-1].requires_grad_(True)
    loss = 0.5 * functional.cross_entropy(inner(end), labels) + (end - images).square().sum()
    loss.backward()
    assert (end - images).abs().max() > 0.1
    assert end.grad.abs().max() < 1e-3


def test_untargeted_is_beyond_the_plane_but_not_far() -> None:
    """-J is concave where the class is sure: its minimum jumps over the boundary as c grows."""
    weight, scores = linear()
    images = interior(4)
    labels = scores(images).argmax(1)
    exact = (margin(scores(images), labels) / (weight[1] - weight[0]).norm()).double()
    result = lbfgs(scores, images, labels, search_steps=14)
    assert result.found.all()
    assert (scores(result.images).argmax(1) != labels).all()
    sizes = lp_norm(result.images - images, "l2")
    assert (sizes >= exact * 0.9999).all()
    assert (sizes <= exact * 1.25).all()


def test_the_wanted_class_is_reached_among_several() -> None:
    _, scores = linear(5)
    images = interior(3)
    labels = (scores(images).argmax(1) + 2) % 5
    result = lbfgs(scores, images, labels, search_steps=8, targeted=True)
    assert result.found.all()
    assert (scores(result.images).argmax(1) == labels).all()


def test_more_of_the_search_is_never_farther() -> None:
    _, scores = linear(3)
    images = interior(3)
    labels = scores(images).argmax(1)
    sizes = [
        lp_norm(lbfgs(scores, images, labels, search_steps=n).images - images, "l2")
        for n in (4, 6, 10)
    ]
    assert (sizes[0] >= sizes[1]).all()
    assert (sizes[1] >= sizes[2]).all()
    assert (sizes[0] > sizes[2]).any()


def test_counters_are_those_of_the_model_and_images_do_not_meet() -> None:
    _, inner = linear(3)
    asked: list[int] = []
    backward: list[int] = []

    def scores(images: Tensor) -> Tensor:
        asked.append(len(images))
        assert images.dtype == torch.float32
        if images.requires_grad:
            backward.append(len(images))
        return inner(images)

    images = interior(3)
    labels = inner(images).argmax(1)
    labels[1] = (labels[1] + 1) % 3
    whole = lbfgs(scores, images, labels, search_steps=3, initial_c=1.0)
    assert set(asked) == {1}
    assert len(asked) == whole.queries.sum()
    assert len(backward) == whole.gradients.sum()
    assert whole.found.all()
    assert (whole.found_queries <= whole.queries).all()
    assert whole.found_at[1] == 0
    assert whole.queries[1] == whole.found_queries[1] == 1
    assert torch.equal(whole.images[1], images[1])
    # One query of the original and one of each of the three minima have no gradient.
    assert (whole.queries - whole.gradients).tolist() == [4, 1, 4]
    alone = lbfgs(scores, images[2:], labels[2:], search_steps=3, initial_c=1.0)
    assert torch.equal(alone.images, whole.images[2:])
    assert torch.equal(alone.queries, whole.queries[2:])


def test_pixels_at_the_ends_of_the_range_stay_within() -> None:
    weight, scores = linear()
    images = (weight[0] > weight[1]).float().view(1, *SHAPE)
    result = lbfgs(scores, images, torch.tensor([0]), search_steps=8)
    assert result.found.all()
    assert result.images.min() >= 0
    assert result.images.max() <= 1


def test_a_success_on_the_way_does_not_pass_for_that_of_the_minimum() -> None:
    """A small c whose first long step overshoots must not close the search from above."""
    weight, scores = linear()
    images = interior(1)
    labels = scores(images).argmax(1)
    steep = lbfgs(lambda x: 50 * scores(x), images, 1 - labels, search_steps=14, targeted=True)
    exact = margin(scores(images), labels) / (weight[1] - weight[0]).norm()
    torch.testing.assert_close(
        lp_norm(steep.images - images, "l2"), exact.double(), rtol=0.01, atol=0
    )


def test_a_model_without_gradients_fails_and_says_so() -> None:
    def flat(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    images = interior(2)
    result = lbfgs(flat, images, torch.zeros(2, dtype=torch.int64))
    assert not result.found.any()
    assert (result.found_queries == -1).all()
    assert result.zero_gradient.all()
    assert torch.equal(result.images, images)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"search_steps": 0}, "search_steps must be above 0; found 0"),
        ({"max_iter": 0}, "max_iter must be above 0; found 0"),
        ({"initial_c": 0.0}, "initial_c must be above 0; found 0.0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    _, scores = linear()
    with pytest.raises(ValueError, match=text):
        lbfgs(scores, interior(2), torch.zeros(2, dtype=torch.int64), **change)
