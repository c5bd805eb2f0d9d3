"""FGSM against the exact worst case of linear models."""

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import lp_norm, margin
from raybench.kernels.attacks.fgsm import fgsm

SHAPE = (1, 8, 8)
WEIGHT = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def linear(images: Tensor) -> Tensor:
    return images.flatten(1).double() @ WEIGHT


def sample(count: int) -> tuple[Tensor, Tensor]:
    images = 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))
    return images, linear(images).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [True, False])
def test_the_margin_falls_by_eps_times_the_dual_norm(norm: str, targeted: bool) -> None:
    images, labels = sample(6)
    wanted = 1 - labels if targeted else labels
    eps = {"linf": 1e-3, "l2": 1e-2}[norm]
    result = fgsm(linear, images, wanted, norm=norm, eps=eps, targeted=targeted)
    slope = WEIGHT[:, 1] - WEIGHT[:, 0]
    fall = eps * (slope.abs().sum() if norm == "linf" else slope.norm())
    change = margin(linear(images), labels) - margin(linear(result.images), labels)
    torch.testing.assert_close(change, fall.expand(6), rtol=1e-4, atol=0)
    assert not result.zero_gradient.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_success_is_exactly_where_the_margin_is_below_the_fall(norm: str) -> None:
    images, labels = sample(40)
    slope = WEIGHT[:, 1] - WEIGHT[:, 0]
    dual = slope.abs().sum() if norm == "linf" else slope.norm()
    distance = margin(linear(images), labels) / dual
    eps = distance.sort().values[19:21].mean().item()
    result = fgsm(linear, images, labels, norm=norm, eps=eps)
    assert torch.equal(result.found, distance < eps)
    assert result.found.sum() == 20
    assert torch.equal(result.found_at, torch.where(result.found, 1, -1))
    assert torch.equal(result.found_queries, torch.where(result.found, 2, -1))
    assert (result.queries == 2).all()
    assert (result.gradients == 1).all()


def test_pixels_without_gradient_stay_to_the_bit_and_the_box_holds() -> None:
    mask = torch.ones(64)
    mask[::3] = 0.0
    images, labels = sample(4)
    images[0], images[1] = 0.0, 1.0
    labels[:2] = linear(images[:2] * mask.view(SHAPE)).argmax(1)
    result = fgsm(lambda x: linear(x * mask.view(SHAPE)), images, labels, eps=0.25)
    moved = (result.images != images).flatten(1)
    assert moved.any()
    assert not moved[:, mask == 0].any()
    assert (result.images.min() >= 0) & (result.images.max() <= 1)
    assert (lp_norm(result.images - images, "linf") <= 0.25 * (1 + 1e-5) + 1e-6).all()


def test_a_zero_gradient_moves_nothing_and_is_flagged_for_that_image_alone() -> None:
    images, labels = sample(3)

    def saturated(given: Tensor) -> Tensor:
        # Image 1 lies on a plateau.
        alive = torch.tensor([1.0, 0.0, 1.0]).view(-1, 1, 1, 1)
        return linear(given * alive + given.detach() * (1 - alive))

    result = fgsm(saturated, images, labels, norm="l2", eps=1e-4)
    assert result.zero_gradient.tolist() == [False, True, False]
    assert torch.equal(result.images[1], images[1])
    assert (result.images[[0, 2]] != images[[0, 2]]).flatten(1).any(1).all()


def test_an_image_already_wrong_is_found_at_once() -> None:
    images, labels = sample(3)
    labels[1] = 1 - labels[1]
    result = fgsm(linear, images, labels, eps=1e-6)
    assert result.found.tolist() == [False, True, False]
    assert torch.equal(result.images[1], images[1])
    assert result.found_at.tolist() == [-1, 0, -1]
    assert result.queries.tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l1"}, "norm must be linf or l2 for FGSM; found 'l1'"),
        ({"eps": 0}, "eps must be above 0; found 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    images, labels = sample(2)
    with pytest.raises(ValueError, match=text):
        fgsm(linear, images, labels, **{"eps": 0.1, **change})
