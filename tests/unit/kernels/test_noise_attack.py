"""Random noise as an attack: sizes of what it asks, counts, and what it finds."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, lp_norm
from raybench.kernels.attacks.noise import random_noise

NORMS = ("linf", "l2", "l1")
KEYS = torch.arange(50, 66)
SHAPE = (1, 8, 8)


class Asked:
    """A model that keeps the images it was asked about."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.images = function, []

    def __call__(self, images: Tensor) -> Tensor:
        self.images.append(images.clone())
        return self.function(images)


def constant(images: Tensor) -> Tensor:
    return torch.tensor([2.0, 1.0, 0.0]).expand(len(images), 3)


def bright(images: Tensor) -> Tensor:
    """Class 1 where the mean is above 0.5; in float64, the same in any batch."""
    rise = images.flatten(1).double().mean(1) - 0.5
    return torch.stack([-rise, rise], 1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("corners", [True, False])
def test_noise_has_its_size_and_every_try_is_asked(norm: str, corners: bool) -> None:
    images, model, eps = torch.full((4, *SHAPE), 0.5), Asked(constant), 0.3
    result = random_noise(
        model, images, torch.zeros(4, dtype=torch.int64), keys=KEYS[:4], norm=norm, eps=eps,
        tries=40, corners=corners,
    )  # fmt: skip
    assert sum(map(len, model.images)) == result.queries.sum() == 4 * 41
    assert not result.found.any()
    assert (result.gradients == 0).all()
    noise = torch.stack(model.images[1:]) - 0.5
    sizes = lp_norm(noise.flatten(0, 1), norm)
    assert (sizes <= eps * (1 + 1e-5) + 1e-6).all()
    if corners:
        assert (sizes >= eps * (1 - 1e-5)).all()
        assert (noise.abs() - noise.abs().max()).abs().max() < 1e-6
        assert abs(noise.sign().mean()) < 0.05
    else:
        # Of a uniform draw in a ball of 64 dimensions: E size = 64 / 65 eps.
        assert sizes.mean().item() == pytest.approx(64 / 65 * eps, rel=0.01)
        assert (sizes < eps).all()
    assert not torch.equal(noise[0, 0], noise[1, 0])
    assert not torch.equal(noise[0, 0], noise[0, 1])


@pytest.mark.parametrize("corners", [True, False])
def test_the_first_success_is_returned_and_ends_the_tries(corners: bool) -> None:
    images, labels = torch.full((16, *SHAPE), 0.497), torch.zeros(16, dtype=torch.int64)
    model = Asked(bright)
    result = random_noise(model, images, labels, keys=KEYS, eps=0.02, tries=30, corners=corners)
    assert sum(map(len, model.images)) == result.queries.sum()
    assert result.found.any()
    found = result.found
    assert torch.equal(bright(result.images).argmax(1) == 1, found)
    assert torch.equal(result.found_queries[found], result.queries[found])
    assert torch.equal(result.found_at[found] + 1, result.queries[found])
    for at, image in zip(result.found_at[found], result.images[found], strict=True):
        assert any(torch.equal(image, asked) for asked in model.images[int(at)])
    assert len(result.queries.unique()) > 3


def test_without_success_the_smallest_margin_is_returned() -> None:
    images, labels = torch.full((3, *SHAPE), 0.3), torch.zeros(3, dtype=torch.int64)
    model = Asked(bright)
    result = random_noise(model, images, labels, keys=KEYS[:3], eps=0.02, tries=20)
    assert not result.found.any()
    assert (result.found_at == -1).all()
    assert (result.found_queries == -1).all()
    best = torch.stack(model.images).flatten(2).double().mean(2).amax(0)
    assert torch.equal(result.images.flatten(1).double().mean(1), best)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("corners", [True, False])
def test_no_image_depends_on_its_neighbours(norm: str, corners: bool) -> None:
    images = torch.full((8, *SHAPE), 0.4999)
    labels = torch.zeros(8, dtype=torch.int64)
    settings = {"norm": norm, "eps": 0.02, "tries": 4, "corners": corners}
    whole = random_noise(bright, images, labels, keys=KEYS[:8], **settings)
    for at in range(8):
        one = slice(at, at + 1)
        alone = random_noise(bright, images[one], labels[one], keys=KEYS[:8][one], **settings)
        for field in fields(AttackResult):
            if field.name != "losses":
                assert torch.equal(getattr(alone, field.name)[0], getattr(whole, field.name)[at])


def test_targeted_looks_for_the_wanted_class_and_the_box_holds() -> None:
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)).round()
    wanted = 1 - bright(images).argmax(1)
    model = Asked(bright)
    result = random_noise(model, images, wanted, keys=KEYS[:6], eps=1.0, tries=200, targeted=True)
    assert torch.equal(bright(result.images).argmax(1) == wanted, result.found)
    assert result.found.any()
    for points in model.images:
        assert points.min() >= 0
        assert points.max() <= 1


def test_an_image_already_wrong_comes_back_after_one_query() -> None:
    images = torch.full((2, *SHAPE), 0.7)
    result = random_noise(bright, images, torch.tensor([0, 1]), keys=KEYS[:2], eps=0.01, tries=5)
    assert torch.equal(result.images[0], images[0])
    assert result.found_at.tolist() == [0, -1]
    assert result.queries.tolist() == [1, 6]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l0"}, "norm must be one of linf, l2, l1; found 'l0'"),
        ({"eps": 0.0}, "eps must be above 0; found 0"),
        ({"tries": 0}, "tries must be above 0; found 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    settings = {"keys": KEYS[:2], "eps": 0.1, **change}
    with pytest.raises(ValueError, match=text):
        random_noise(bright, torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64), **settings)
