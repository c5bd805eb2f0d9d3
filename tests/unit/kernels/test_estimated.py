"""Estimated gradients against closed forms; the attacks on models whose boundary is known."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, lp_norm
from raybench.kernels.attacks.estimated import finite_differences, nes, spsa
from raybench.kernels.attacks.estimators import KINDS, estimate, subkeys

SHAPE = (1, 8, 8)
SIZE = 64
ATTACKS: dict[str, Callable[..., AttackResult]] = {
    "finite_differences": partial(finite_differences, steps=60, step_size=0.02, coordinates=16),
    "nes": partial(nes, queries=1500),
    "spsa": partial(spsa, queries=1500, samples=64),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def inside(count: int, seed: int = 0) -> Tensor:
    return 0.25 + drawn(count, *SHAPE, seed=seed) / 2


def weights(classes: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, classes, generator=generator, dtype=torch.float64)


class Linear:
    """Two or more classes, planes through the middle of [0, 1]; counts what it is asked.

    In float64 and summed pixel by pixel, so that answers do not depend on the batch.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.asked, self.most = matrix, 0, 0
        self.lowest, self.highest = 1.0, 0.0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        self.most = max(self.most, len(images))
        self.lowest = min(self.lowest, float(images.min()))
        self.highest = max(self.highest, float(images.max()))
        return ((images.double().flatten(1) - 0.5)[:, :, None] * self.matrix).sum(1)


def guess(function: Callable[[Tensor], Tensor], images: Tensor, kind: str, **settings: object):
    settings = {"pairs": 16, "spread": 0.01, "step": 0, **settings}
    spread = torch.full((len(images),), settings.pop("spread"))
    return estimate(
        lambda copies, _rows: function(copies.double().flatten(1)),
        images,
        kind,
        keys=torch.arange(len(images)) + 5,
        spread=spread,
        **settings,
    )


@pytest.mark.parametrize("kind", ["gaussian", "signs"])
def test_estimates_of_a_linear_loss_are_unbiased_also_where_copies_are_clipped(kind: str) -> None:
    slope = weights(1)[:, 0]
    # Pixels of 0, of 1, and so near to either that some copies are clipped and others not.
    values = torch.tensor([0.0, 1.0, 0.004, 0.993, 0.5, 0.3, 0.995, 0.01])
    images = values.repeat(2000, 8).view(-1, *SHAPE)
    found = guess(lambda copies: copies @ slope, images, kind, pairs=8, spread=0.01)
    flat = found.gradient.double().flatten(1)
    error = (flat.mean(0) - slope) / (flat.std(0) / len(flat) ** 0.5)
    # The errors of 64 means, in their own standard deviations.
    assert error.abs().max() < 4
    assert 0.6 < error.square().mean() < 1.5


@pytest.mark.parametrize("kind", ["gaussian", "signs"])
@pytest.mark.parametrize("pairs", [16, 100])
def test_the_cosine_with_the_gradient_is_as_derived(kind: str, pairs: int) -> None:
    slope = weights(1)[:, 0]
    found = guess(lambda copies: copies @ slope, inside(60), kind, pairs=pairs)
    cosine = torch.cosine_similarity(found.gradient.double().flatten(1), slope[None])
    assert cosine.mean() == pytest.approx((pairs / (pairs + SIZE)) ** 0.5, rel=0.06)


def test_coordinates_are_exact_for_a_quadratic_and_zero_where_not_chosen() -> None:
    curve = weights(SIZE, seed=3) @ weights(SIZE, seed=3).T
    images = inside(3)
    truth = images.double().flatten(1) @ (2 * curve)

    def quadratic(copies: Tensor) -> Tensor:
        return ((copies @ curve) * copies).sum(1)

    whole = guess(quadratic, images, "coordinates", pairs=SIZE, spread=0.125)
    assert torch.allclose(whole.gradient.double().flatten(1), truth, rtol=1e-5, atol=1e-3)
    some = guess(quadratic, images, "coordinates", pairs=10, spread=0.125).gradient.flatten(1)
    assert ((some != 0).sum(1) == 10).all()
    assert torch.equal(some[some != 0], whole.gradient.flatten(1)[some != 0])
    assert not torch.equal(some[0] != 0, some[1] != 0)


def test_coordinates_at_the_edge_of_the_pixels_range_are_quotients_of_what_they_moved() -> None:
    slope = weights(1)[:, 0]
    images = torch.tensor([0.0, 1.0, 0.03, 0.5]).repeat(16).view(1, *SHAPE)
    found = guess(lambda copies: copies @ slope, images, "coordinates", pairs=SIZE, spread=0.1)
    assert torch.allclose(found.gradient.double().flatten(), slope, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_does_not_depend_on_chunks_or_neighbours(kind: str) -> None:
    slope = weights(1)[:, 0]

    def loss(copies: Tensor) -> Tensor:
        return ((copies - 0.3) ** 3 * slope).sum(1)

    images = inside(3)
    whole = guess(loss, images, kind)
    assert torch.equal(whole.gradient, guess(loss, images, kind, batch=6).gradient)
    assert torch.equal(whole.gradient[:1], guess(loss, images[:1], kind).gradient)
    assert not torch.equal(whole.gradient, guess(loss, images, kind, step=1).gradient)


def test_subkeys_differ_between_images_steps_and_numbers_and_a_few_begin_the_many() -> None:
    keys = torch.tensor([1, 2, -3])
    many = torch.stack([subkeys(keys, step, 50) for step in range(4)])
    assert len(many.unique()) == many.numel()
    assert torch.equal(subkeys(keys, 2, 7), many[2, :, :7])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_cross_a_plane_they_can_reach_and_no_other(name: str, norm: str) -> None:
    matrix = weights()
    model, images = Linear(matrix), inside(12)
    labels = model(images).argmax(1)
    scores = model(images)
    gap = (scores[:, 0] - scores[:, 1]).abs()
    normal = matrix[:, 0] - matrix[:, 1]
    reach = gap / (normal.abs().sum() if norm == "linf" else normal.norm())
    eps = float(reach.median()) * 1.0001 + 1e-4
    model = Linear(matrix)
    found = ATTACKS[name](model, images, labels, keys=torch.arange(12), norm=norm, eps=eps)
    # Estimates are noisy: what lies well inside the ball is found, what lies outside never.
    assert found.found[reach < 0.7 * eps].all()
    assert (reach < 0.7 * eps).sum() >= 2
    assert not found.found[reach > eps].any()
    assert torch.equal(model(found.images).argmax(1) != labels, found.found)
    delta = found.images.double() - images.double()
    assert (lp_norm(delta, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    assert not found.zero_gradient.any()


@pytest.mark.parametrize("name", ATTACKS)
def test_results_are_those_of_each_image_alone(name: str) -> None:
    matrix, images = weights(3), inside(5)
    labels = Linear(matrix)(images).argmax(1)
    keys = torch.tensor([9, -4, 2**40, 0, 77])
    attack = partial(ATTACKS[name], eps=0.012)
    whole = attack(Linear(matrix), images, labels, keys=keys)
    assert 0 < whole.found.sum() < 5
    for row in range(5):
        one = slice(row, row + 1)
        alone = attack(Linear(matrix), images[one], labels[one], keys=keys[one], batch=10)
        for field in ("images", "found", "found_at", "found_queries", "queries"):
            assert torch.equal(getattr(whole, field)[one], getattr(alone, field)), field


@pytest.mark.parametrize("name", ["nes", "spsa"])
@pytest.mark.parametrize("queries", [1, 2, 3, 4, 66, 67, 130, 200])
def test_queries_are_counted_and_never_more_than_allowed(name: str, queries: int) -> None:
    matrix, images = weights(), inside(6)
    labels = Linear(matrix)(images).argmax(1)
    model = Linear(matrix)
    attack = nes if name == "nes" else spsa
    keys = torch.arange(6)
    result = attack(
        model, images, labels, keys=keys, eps=0.004, queries=queries, samples=64, batch=50
    )
    assert not result.found.all()
    assert model.asked == result.queries.sum()
    # The last estimate takes what is left, in whole pairs, but for a query for its outcome.
    full, rest = divmod(queries - 1, 65)
    used = 1 + 65 * full + (2 * ((rest - 1) // 2) + 1 if rest >= 3 else 0)
    assert (result.queries[~result.found] == used).all()
    assert result.queries.max() <= used
    assert model.most <= 50
    assert model.lowest >= 0
    assert model.highest <= 1


def test_finite_differences_ask_two_copies_of_each_coordinate_and_the_outcome() -> None:
    matrix, images = weights(), inside(4)
    labels = Linear(matrix)(images).argmax(1)
    for coordinates, pairs in ((5, 5), (None, SIZE), (1000, SIZE)):
        model = Linear(matrix)
        result = finite_differences(
            model,
            images,
            labels,
            keys=torch.arange(4),
            eps=1e-4,
            steps=3,
            step_size=1e-4,
            coordinates=coordinates,
        )
        assert not result.found.any()
        assert (result.queries == 1 + 3 * (2 * pairs + 1)).all()
        assert model.asked == result.queries.sum()


def test_all_coordinates_go_to_the_corner_of_a_linear_model() -> None:
    matrix, images = weights(), inside(4)
    labels = Linear(matrix)(images).argmax(1)
    result = finite_differences(
        Linear(matrix),
        images,
        labels,
        keys=torch.arange(4),
        eps=0.003,
        steps=3,
        step_size=0.001,
        coordinates=None,
    )
    away = (matrix[:, 1] - matrix[:, 0])[None] * torch.where(labels == 0, 1, -1)[:, None]
    corner = images + 0.003 * away.sign().float().view_as(images)
    assert not result.found.any()
    assert torch.allclose(result.images, corner, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_targeted_attacks_reach_the_wanted_class(name: str, loss: str) -> None:
    matrix, images = weights(4), inside(8)
    model = Linear(matrix)
    targets = (model(images).argmax(1) + 1) % 4
    result = ATTACKS[name](
        model, images, targets, keys=torch.arange(8), eps=0.25, loss=loss, targeted=True
    )
    assert result.found.all()
    assert torch.equal(model(result.images).argmax(1), targets)
    assert (result.found_queries == result.queries).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_image_already_wrong_is_done_after_one_query(name: str) -> None:
    matrix, images = weights(), inside(3)
    labels = Linear(matrix)(images).argmax(1)
    labels[1] = 1 - labels[1]
    result = ATTACKS[name](Linear(matrix), images, labels, keys=torch.arange(3), eps=0.2)
    assert result.found[1]
    assert (result.found_at[1], result.found_queries[1], result.queries[1]) == (0, 1, 1)
    assert torch.equal(result.images[1], images[1])
    assert (result.found_at[[0, 2]] > 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_constant_model_is_flagged_uses_its_queries_and_leaves_the_image(name: str) -> None:
    images = inside(2)
    model = Linear(torch.zeros(SIZE, 2, dtype=torch.float64))
    labels = torch.zeros(2, dtype=torch.int64)
    result = ATTACKS[name](model, images, labels, keys=torch.arange(2), eps=0.2)
    assert result.zero_gradient.all()
    assert not result.found.any()
    assert torch.equal(result.images, images)
    assert (result.queries > 1000).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_interface_that_rounds_the_image_is_asked_further_apart(name: str) -> None:
    matrix, exact = weights(), inside(6)
    # Every pixel in the middle of its step: copies 1/16 apart and less are all answered alike.
    images = (exact * 8).round() / 8

    def rounded(copies: Tensor) -> Tensor:
        return Linear(matrix)((copies * 8).round() / 8)

    labels = rounded(images).argmax(1)
    result = ATTACKS[name](rounded, images, labels, keys=torch.arange(6), eps=0.3)
    assert result.zero_gradient.all()
    assert result.found.all()
    assert torch.equal(rounded(result.images).argmax(1) != labels, torch.ones(6, dtype=torch.bool))


def test_images_of_zeros_and_ones_are_attacked() -> None:
    matrix = weights()
    images = (drawn(8, *SHAPE) < 0.5).float()
    labels = Linear(matrix)(images).argmax(1)
    away = (matrix[:, 1] - matrix[:, 0])[None] * torch.where(labels == 0, 1, -1)[:, None]
    near, far = (
        Linear(matrix)((images + eps * away.sign().float().view_as(images)).clamp(0, 1)).argmax(1)
        for eps in (0.12, 0.4)
    )
    assert (near != labels).sum() >= 3
    for attack in ATTACKS.values():
        model = Linear(matrix)
        result = attack(model, images, labels, keys=torch.arange(8), eps=0.4)
        assert result.found[near != labels].all()
        assert not result.found[far == labels].any()
        assert (model.lowest, model.highest) == (0.0, 1.0)


def test_the_rate_of_nes_halves_where_losses_stand_still() -> None:
    # On a slope of one pixel no step can be too long; around a peak a constant one hops about it.
    peak = 0.5 + 0.002 * torch.randn(SIZE, generator=torch.Generator().manual_seed(0)).double()

    def bowl(copies: Tensor) -> Tensor:
        distance = (copies.double().flatten(1) - peak).square().sum(1)
        return torch.stack([1 + distance, torch.zeros_like(distance)], dim=1)

    images = torch.full((1, *SHAPE), 0.55)
    result = nes(
        bowl,
        images,
        torch.zeros(1, dtype=torch.int64),
        keys=torch.arange(1),
        eps=0.2,
        queries=10_000,
        samples=100,
    )
    assert not result.found.any()
    # A constant rate of 1e-2 would leave pixels about 5e-3 from the peak.
    away = (result.images.double().flatten(1) - peak).abs().mean(1)
    assert (away < 1e-3).all()


def test_settings_out_of_range_are_refused() -> None:
    images, labels, keys = inside(2), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    model = Linear(weights())
    cases = [
        (nes, {"norm": "l1"}, "norm must be one of linf, l2; found 'l1'"),
        (nes, {"eps": 0.0}, "eps must be above 0; found 0.0"),
        (nes, {"samples": 7}, "samples must be an even number of at least 2; found 7"),
        (nes, {"sigma": 0.0}, "sigma must be above 0 and at most 0.5; found 0.0"),
        (nes, {"momentum": 1.0}, r"momentum must be in \[0, 1\); found 1.0"),
        (nes, {"queries": 0}, "queries must be above 0; found 0"),
        (nes, {"loss": "mse"}, "loss must be one of ce, margin, dlr; found 'mse'"),
        (nes, {"batch": 1}, "batch must be at least 2, a pair; found 1"),
        (spsa, {"delta": 0.6}, "delta must be above 0 and at most 0.5; found 0.6"),
        (spsa, {"lr": -1.0}, "lr must be above 0; found -1.0"),
        (spsa, {"samples": 0}, "samples must be an even number of at least 2; found 0"),
        (ATTACKS["finite_differences"], {"h": 0.7}, "h must be above 0 and at most 0.5; found 0.7"),
        (ATTACKS["finite_differences"], {"steps": 0}, "steps must be above 0; found 0"),
        (ATTACKS["finite_differences"], {"step_size": 0.0}, "step_size must be above 0; found 0.0"),
        (
            ATTACKS["finite_differences"],
            {"coordinates": 0},
            "coordinates must be at least 1, or None; found 0",
        ),
    ]
    for attack, settings, text in cases:
        with pytest.raises(ValueError, match=text):
            attack(model, images, labels, keys=keys, **{"eps": 0.1, **settings})
    assert model.asked == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_no_images_are_no_trouble(name: str) -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    result = ATTACKS[name](Linear(weights()), torch.zeros(0, *SHAPE), nothing, keys=nothing, eps=1)
    assert result.images.shape == (0, *SHAPE)
