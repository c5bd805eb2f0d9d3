"""Carlini and Wagner in L2 and L-inf against the nearest points of linear models."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.carlini import carlini_l2, carlini_linf
from raybench.kernels.attacks.common import lp_norm, margin

SHAPE = (1, 4, 4)
ATTACKS = {
    "l2": (carlini_l2, {"steps": 60, "search_steps": 5, "lr": 0.05, "initial_c": 0.1}),
    "linf": (carlini_linf, {"steps": 30, "initial_c": 0.05, "largest_c": 2.0}),
}
BOTH = pytest.mark.parametrize("norm", ["l2", "linf"])


def linear(classes: int = 2, scale: float = 1.0) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Return weights [K, D] and a model that sums in float64, so that batches do not matter."""
    weight = torch.randn(classes, 16, generator=torch.Generator().manual_seed(1))

    def scores(images: Tensor) -> Tensor:
        products = images.flatten(1).to(torch.float64)[:, None] * (scale * weight).to(torch.float64)
        return products.sum(2).to(torch.float32)

    return weight, scores


def interior(count: int) -> Tensor:
    return 0.4 + 0.2 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(2))


def counting(scores: Callable[[Tensor], Tensor]) -> tuple[list[int], Callable[[Tensor], Tensor]]:
    asked: list[int] = []

    def counted(images: Tensor) -> Tensor:
        asked.append(len(images))
        return scores(images)

    return asked, counted


def test_l2_is_the_distance_to_a_plane() -> None:
    weight, scores = linear()
    images = interior(6)
    labels = scores(images).argmax(1)
    result = carlini_l2(scores, images, labels, steps=100, search_steps=6, initial_c=0.1)
    exact = margin(scores(images), labels) / (weight[1] - weight[0]).norm()
    assert result.found.all()
    assert (scores(result.images).argmax(1) != labels).all()
    torch.testing.assert_close(
        lp_norm(result.images - images, "l2"), exact.double(), rtol=0.01, atol=0
    )


def test_linf_is_the_distance_to_a_plane() -> None:
    weight, scores = linear()
    images = interior(6)
    labels = scores(images).argmax(1)
    result = carlini_linf(
        scores, images, labels, steps=60, lr=1e-3, initial_c=0.05, largest_c=1.0, tau_factor=0.98
    )
    exact = margin(scores(images), labels) / (weight[1] - weight[0]).abs().sum()
    assert result.found.all()
    sizes = lp_norm(result.images - images, "linf")
    beyond_grey = exact.clamp_min(1 / 256).double()
    assert (sizes >= exact * 0.999).all()
    assert (sizes <= beyond_grey * 1.02).all()


@BOTH
def test_confidence_is_kept_and_costs_distance(norm: str) -> None:
    _, scores = linear(3)
    images = interior(4)
    labels = scores(images).argmax(1)
    attack, settings = ATTACKS[norm]
    plain = attack(scores, images, labels, **settings)
    sure = attack(scores, images, labels, confidence=0.3, **settings)
    assert sure.found.all()
    assert (margin(scores(sure.images), labels) <= -0.3).all()
    assert (lp_norm(sure.images - images, norm) > lp_norm(plain.images - images, norm)).all()


@BOTH
@pytest.mark.parametrize("targeted", [False, True])
def test_an_image_alone_gets_what_it_gets_in_a_batch(norm: str, targeted: bool) -> None:
    # Margins from tiny to large, so that images abort and end at different times.
    weight, scores = linear(3)
    images = interior(4)
    images[3] = images[3] + 0.3 * weight[1].view(SHAPE).sign()
    labels = scores(images).argmax(1)
    if targeted:
        labels = (labels + 1) % 3
    attack, settings = ATTACKS[norm]
    whole = attack(scores, images, labels, targeted=targeted, **settings)
    assert whole.found.any()
    assert len(whole.queries.unique()) > 1
    for at in range(4):
        one = slice(at, at + 1)
        alone = attack(scores, images[one], labels[one], targeted=targeted, **settings)
        for name in ("images", "found", "found_at", "found_queries", "queries", "gradients"):
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), name


@BOTH
def test_every_image_asked_about_is_counted(norm: str) -> None:
    _, scores = linear(3)
    asked, counted = counting(scores)
    images = interior(4)
    labels = scores(images).argmax(1)
    attack, settings = ATTACKS[norm]
    result = attack(counted, images, labels, **settings)
    assert sum(asked) == result.queries.sum()
    assert torch.equal(result.gradients, result.queries - 1)
    assert (result.found_queries == result.found_at + 1).all()
    assert (result.found_queries <= result.queries).all()


@BOTH
def test_pixels_at_the_ends_of_the_range_move(norm: str) -> None:
    """Where atanh is infinite (torchattacks), the gradient of such pixels is lost for good."""
    weight = torch.zeros(2, 16)
    weight[0, :8], weight[0, 8:] = 1.0, -1.0

    def scores(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T - torch.tensor([6.0, 0.0])

    images = torch.cat([torch.ones(8), torch.zeros(8)]).view(1, *SHAPE)
    labels = torch.tensor([0])
    settings = {
        "l2": {"steps": 300, "lr": 0.1, "search_steps": 3, "initial_c": 1.0},
        "linf": {"steps": 100, "lr": 0.05, "initial_c": 0.1, "largest_c": 2.0},
    }
    result = ATTACKS[norm][0](scores, images, labels, **settings[norm])
    assert result.found.all()
    size = lp_norm(result.images - images, norm).item()
    assert size == pytest.approx(2 / 16 if norm == "linf" else 2 / 4, rel=0.12)
    assert result.images.min() >= 0
    assert result.images.max() <= 1


@BOTH
def test_logits_of_a_million_keep_the_other_classes_apart(norm: str) -> None:
    """A mask of -10,000 for the own class would make it its own rival: all logits are below it."""
    _, scores = linear(3)
    images = interior(3)
    labels = scores(images).argmax(1)

    def huge(shown: Tensor) -> Tensor:
        return 1e3 * scores(shown) - 1e6

    attack, settings = ATTACKS[norm]
    result = attack(huge, images, labels, **settings)
    assert result.found.all()
    assert (huge(result.images).argmax(1) != labels).all()


@BOTH
def test_an_image_already_there_is_returned_as_it_is(norm: str) -> None:
    _, scores = linear(3)
    images = interior(3)
    labels = scores(images).argmax(1)
    labels[1] = (labels[1] + 1) % 3
    attack, settings = ATTACKS[norm]
    result = attack(scores, images, labels, **settings)
    assert result.found_at[1] == 0
    assert result.found_queries[1] == result.queries[1] == 1
    assert torch.equal(result.images[1], images[1])
    assert (result.found_at[[0, 2]] > 0).all()


@BOTH
def test_a_model_without_gradients_fails_and_says_so(norm: str) -> None:
    def flat(images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).repeat(len(images), 1)

    images = interior(2)
    attack, _ = ATTACKS[norm]
    result = attack(flat, images, torch.zeros(2, dtype=torch.int64), steps=20)
    assert not result.found.any()
    assert (result.found_at == -1).all()
    assert (result.found_queries == -1).all()
    assert result.zero_gradient.all()
    assert torch.equal(result.images, images)


def test_abort_early_saves_passes_where_c_is_too_small() -> None:
    _, scores = linear()
    images = interior(2)
    labels = scores(images).argmax(1)
    settings = {"steps": 100, "search_steps": 3, "initial_c": 1e-9}
    early = carlini_l2(scores, images, labels, **settings)
    full = carlini_l2(scores, images, labels, abort_early=False, **settings)
    assert (full.gradients == 300).all()
    assert (early.gradients <= 60).all()


def test_the_search_for_c_is_ten_times_then_bisection() -> None:
    """The minimum of d^2 + c * (0.2 - d) is d = c / 2, up to the boundary at 0.2: it shows c."""
    seen: list[float] = []

    def scores(images: Tensor) -> Tensor:
        pixel = images.flatten(1)[:, 0]
        return torch.stack([torch.full_like(pixel, 0.2), pixel - 0.5], 1)

    def watched(images: Tensor) -> Tensor:
        seen.append(images.detach().flatten()[0].item() - 0.5)
        return scores(images)

    images = torch.full((1, *SHAPE), 0.5)
    steps = 200
    result = carlini_l2(
        watched,
        images,
        torch.tensor([0]),
        steps=steps,
        search_steps=4,
        lr=0.02,
        initial_c=0.1,
        abort_early=False,
    )
    # c is 0.1, 1 (the first success), 0.55 (a success as well) and 0.325.
    ends = [seen[steps * at] for at in range(1, 5)]
    assert ends == pytest.approx([0.05, 0.2, 0.2, 0.1625], abs=0.01)
    assert result.images.flatten()[0].item() - 0.5 == pytest.approx(0.2, abs=0.002)


def test_no_images_is_no_work() -> None:
    _, scores = linear()
    for attack, settings in ATTACKS.values():
        empty = torch.zeros(0, dtype=torch.int64)
        result = attack(scores, torch.zeros(0, *SHAPE), empty, **settings)
        assert result.images.shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("norm", "change", "text"),
    [
        ("l2", {"steps": 0}, "steps must be above 0; found 0"),
        ("l2", {"search_steps": 0}, "search_steps must be above 0; found 0"),
        ("l2", {"lr": 0.0}, "lr must be above 0"),
        ("l2", {"initial_c": -1.0}, "initial_c must be above 0; found -1.0"),
        ("l2", {"confidence": -0.5}, "confidence must be at least 0; found -0.5"),
        ("linf", {"confidence": -0.5}, "confidence must be at least 0; found -0.5"),
        ("linf", {"tau_factor": 1.0}, "tau_factor must be above 0 and below 1; found 1.0"),
        ("linf", {"smallest_tau": 0.0}, "smallest_tau must be above 0; found 0.0"),
        ("linf", {"largest_c": 1e-6}, "largest_c must be above initial_c, which is 1e-05"),
    ],
)
def test_impossible_settings_are_refused(norm: str, change: dict, text: str) -> None:
    _, scores = linear()
    with pytest.raises(ValueError, match=text):
        ATTACKS[norm][0](scores, interior(2), torch.zeros(2, dtype=torch.int64), **change)
