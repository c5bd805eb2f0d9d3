"""Square Attack by what it asks: places, sizes, schedule, counts; and on models of known best."""

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, lp_norm, margin
from raybench.kernels.attacks.square import _shrink, side_of_square, square

NORMS = ("linf", "l2", "l1")
EPS = {"linf": 0.05, "l2": 0.5, "l1": 3.0}
KEYS = torch.arange(100, 116)


class Asked:
    """A model that keeps the images it was asked about."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.images = function, []

    def __call__(self, images: Tensor) -> Tensor:
        self.images.append(images.clone())
        return self.function(images)


def constant(images: Tensor) -> Tensor:
    return torch.tensor([2.0, 1.0, 0.0]).expand(len(images), 3)


def linear(images: Tensor) -> Tensor:
    """Four classes in float64, so that no image's scores depend on its batch."""
    weights = torch.randn(4, images[0].numel(), generator=torch.Generator().manual_seed(9)).double()
    flat = images.flatten(1).double() - 0.5
    return (flat[:, None] * weights).sum(2)


def interior(count: int = 6, shape: tuple[int, int, int] = (3, 8, 8)) -> Tensor:
    return 0.4 + 0.2 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(4))


def test_the_side_follows_the_schedule() -> None:
    images = torch.zeros(1, 3, 32, 32)
    bounds = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    # sqrt(0.8 * 1024 / 2^k) = 28.6, 20.2, 14.3, 10.1, 7.2, 5.06, 3.6, 2.5, 1.8, 1.3
    sides = [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert [side_of_square(0.8, turn, images, "linf") for turn in (0, *bounds)] == [29, *sides[:-1]]
    assert [side_of_square(0.8, turn + 1, images, "linf") for turn in bounds] == sides[1:]
    for norm in ("l2", "l1"):
        odd = [side_of_square(0.8, turn + 1, images, norm) for turn in bounds]
        assert odd == [21, 15, 11, 7, 5, 5, 3, 3, 3]
    assert side_of_square(1.0, 0, torch.zeros(1, 3, 4, 30), "linf") == 4
    assert side_of_square(0.01, 0, torch.zeros(1, 3, 8, 8), "linf") == 1


def test_squares_lie_anywhere_and_differ_from_image_to_image() -> None:
    images = torch.full((16, 1, 8, 8), 0.5)
    model = Asked(constant)
    square(
        model, images, torch.zeros(16, dtype=torch.int64), keys=KEYS, eps=0.1, queries=402, p=0.06
    )
    start = model.images[1]
    # Nothing is accepted, so that all proposals differ from the start by their square alone, whose
    # side is 2 for the first eleven and 1 thereafter.
    changed = torch.stack([points != start for points in model.images[2:]])[:, :, 0]
    assert changed.flatten(2).any(2).all()
    small = changed[11:].flatten(2)
    assert (small.sum(2) == 1).all()
    visits = small.sum((0, 1)).double()
    # 389 * 16 squares over 64 places, of deviation 10: the last row and column like all others.
    assert visits.sum() == 389 * 16
    assert visits.min() > 97.25 - 5 * 9.8
    assert visits.max() < 97.25 + 5 * 9.8
    assert (small[:, 0] != small[:, 1]).any(1).float().mean() > 0.9


def test_linf_proposals_lie_on_the_surface_with_one_sign_a_channel_and_square() -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0, :, :4], images[0, :, 4:] = 0, 1
    model = Asked(constant)
    square(model, images, torch.zeros(4, dtype=torch.int64), keys=KEYS[:4], eps=0.05, queries=150)
    assert torch.equal(model.images[0], images)
    for points in model.images[1:]:
        assert points.min() >= 0
        assert points.max() <= 1
        size = (points.double() - images.double()).abs()
        assert (((size - 0.05).abs() < 1e-7) | (points == 0) | (points == 1)).all()
    start = model.images[1]
    assert torch.equal(
        (start - images).sign()[1:, :, :1].expand(3, 3, 8, 8), (start - images).sign()[1:]
    )
    for points in model.images[2:]:
        assert (points != start).flatten(1).any(1).all()
        for channel in (points - images)[1:][(points != start)[1:].flatten(2).any(2)]:
            assert len(channel.sign().unique()) <= 2


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 3), (1, 9, 6), (2, 2, 7)])
def test_windows_use_the_budget_and_keep_within_it(norm: str, shape: tuple[int, int, int]) -> None:
    images, eps, model = interior(4, shape), 0.1, Asked(constant)
    labels = torch.zeros(4, dtype=torch.int64)
    square(model, images, labels, keys=KEYS[:4], norm=norm, eps=eps, queries=80)
    for points in model.images[1:]:
        size = lp_norm(points.double() - images.double(), norm)
        assert (size <= eps * (1 + 1e-5) + 1e-6).all()
        assert (size >= eps * (1 - 1e-4)).all()
    assert len(model.images) == 80
    assert len({tuple(points[0].flatten().tolist()) for points in model.images}) > 4


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_what_clipping_takes_is_spread_over_the_rest(norm: str) -> None:
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)).round()
    model, eps = Asked(constant), {"l2": 2.0, "l1": 10.0}[norm]
    labels = torch.zeros(8, dtype=torch.int64)
    square(model, images, labels, keys=KEYS[:8], norm=norm, eps=eps, queries=100)
    sizes = torch.stack([lp_norm(points - images, norm) for points in model.images[1:]])
    assert (sizes <= eps * (1 + 1e-5) + 1e-6).all()
    # One scaling alone would leave a half (l1) or 0.7 (l2).
    assert sizes.median() > 0.9 * eps


def test_l1_shrinks_to_the_nearest_point_of_ball_and_box() -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.rand(5, 1, 6, 6, generator=generator)
    delta = torch.randn(5, 1, 6, 6, generator=generator)
    for before, made, start in zip(delta, _shrink(origin, delta, 4.0), origin, strict=True):
        assert made.abs().sum() == pytest.approx(4.0, abs=1e-4)
        assert (made * before >= 0).all()
        assert (start + made).min() >= 0
        assert (start + made).max() <= 1
        # The conditions of optimality, with one multiplier for the ball.
        full = (start + made == 0) | (start + made == 1)
        free = (made != 0) & ~full
        lost = before.abs() - made.abs()
        assert lost[free].max() - lost[free].min() < 1e-5
        assert (before.abs()[made == 0] <= lost[free].max() + 1e-5).all()
        assert (lost[full & (made != 0)] >= lost[free].min() - 1e-5).all()
    small = 0.01 * delta
    inside = (origin + small).clamp(0, 1) - origin
    torch.testing.assert_close(_shrink(origin, small, 4.0), inside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 2])
def test_a_model_that_never_changes_is_asked_all_and_never_broken(norm: str, restarts: int) -> None:
    images, model = interior(), Asked(constant)
    labels = torch.zeros(6, dtype=torch.int64)
    result = square(
        model, images, labels, keys=KEYS[:6], norm=norm, eps=EPS[norm], queries=90,
        restarts=restarts,
    )  # fmt: skip
    assert (result.queries == 90 * restarts).all()
    assert sum(map(len, model.images)) == result.queries.sum()
    assert not result.found.any()
    assert (result.found_at == -1).all()
    assert (result.found_queries == -1).all()
    assert (result.gradients == 0).all()
    assert not result.zero_gradient.any()
    if restarts == 2:
        assert not torch.equal(model.images[91], model.images[2])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_the_best_loss_never_falls_and_is_that_of_the_result(norm: str, loss: str) -> None:
    images = interior()
    labels = linear(images).argmax(1)
    settings = {"norm": norm, "eps": EPS[norm] / 50, "loss": loss, "restarts": 2, "trace": True}
    result = square(linear, images, labels, keys=KEYS[:6], queries=200, **settings)
    assert result.losses is not None
    assert result.losses.shape == (6, 400)
    assert (result.losses.diff(dim=1) >= 0).all()
    hard = ~result.found
    assert hard.any()
    answer = linear(result.images)
    now = -margin(answer, labels) if loss == "margin" else -answer.log_softmax(1)[range(6), labels]
    torch.testing.assert_close(result.losses[hard, -1], now[hard])
    assert (result.losses[:, -1] > result.losses[:, 1]).any()


@pytest.mark.parametrize("norm", NORMS)
def test_counts_agree_with_what_was_asked_and_the_first_success_is_returned(norm: str) -> None:
    images, model = interior(), Asked(linear)
    labels = linear(images).argmax(1)
    result = square(model, images, labels, keys=KEYS[:6], norm=norm, eps=EPS[norm], queries=500)
    assert sum(map(len, model.images)) == result.queries.sum()
    assert result.found.any()
    found = result.found
    assert (linear(result.images).argmax(1) != labels)[found].all()
    assert torch.equal(result.found_queries[found], result.queries[found])
    assert torch.equal(result.found_at[found] + 1, result.queries[found])
    assert (result.queries[~found] == 500).all()
    for at, image in zip(result.found_at[found], result.images[found], strict=True):
        assert any(torch.equal(image, asked) for asked in model.images[int(at)])


@pytest.mark.parametrize("norm", NORMS)
def test_no_image_depends_on_its_neighbours(norm: str) -> None:
    images = interior()
    labels = linear(images).argmax(1)
    # Two draws of 64 and two restarts, with images that leave at different times.
    settings = {"norm": norm, "eps": EPS[norm] / 5, "queries": 80, "restarts": 2, "trace": True}
    whole = square(linear, images, labels, keys=KEYS[:6], **settings)
    assert len(whole.queries.unique()) > 2
    for at in range(6):
        one = slice(at, at + 1)
        alone = square(linear, images[one], labels[one], keys=KEYS[:6][one], **settings)
        for field in fields(AttackResult):
            assert torch.equal(getattr(alone, field.name)[0], getattr(whole, field.name)[at])


def test_log_probabilities_without_gradients_serve_as_logits_do() -> None:
    images = interior()
    labels = linear(images).argmax(1)
    settings = {"keys": KEYS[:6], "eps": 0.01, "queries": 150}
    with torch.inference_mode():
        first = square(linear, images, labels, **settings)
        second = square(lambda x: linear(x).log_softmax(1), images, labels, **settings)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.queries, second.queries)


def test_the_best_corner_of_a_smooth_model_is_found() -> None:
    """The lead of class 0 is least where channels 0 and 2 rise and channel 1 falls."""
    signs = torch.tensor([1.0, -1.0, 1.0])

    def smooth(images: Tensor) -> Tensor:
        rise = ((images - 0.5) * signs.view(3, 1, 1)).mean((1, 2, 3))
        return torch.stack([torch.full_like(rise, 0.5), rise], 1)

    images, labels = torch.full((4, 3, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    result = square(smooth, images, labels, keys=KEYS[:4], eps=0.1, queries=2500)
    best = (images + 0.1 * signs.view(3, 1, 1)).clamp(0, 1)
    torch.testing.assert_close(result.images, best)


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_takes_the_cross_entropy_to_the_wanted_class(norm: str) -> None:
    images = interior()
    wanted = (linear(images).argmax(1) + 1) % 4
    settings = {"keys": KEYS[:6], "norm": norm, "eps": 2 * EPS[norm], "queries": 400}
    result = square(linear, images, wanted, targeted=True, **settings)
    assert result.found.any()
    assert torch.equal(linear(result.images).argmax(1) == wanted, result.found)
    same = square(linear, images, wanted, targeted=True, loss="ce", **settings)
    assert torch.equal(same.images, result.images)
    other = square(linear, images, wanted, targeted=True, loss="margin", **settings)
    assert not torch.equal(other.images, result.images)


def test_an_image_already_wrong_comes_back_after_one_query() -> None:
    images = interior()
    labels = linear(images).argmax(1)
    labels[3] = (labels[3] + 1) % 4
    result = square(linear, images, labels, keys=KEYS[:6], eps=0.001, queries=20)
    assert torch.equal(result.images[3], images[3])
    assert result.found_at[3] == 0
    assert result.queries[3] == result.found_queries[3] == 1


def test_rescaled_the_schedule_ends_with_the_queries() -> None:
    images, labels = torch.full((4, 1, 16, 16), 0.5), torch.zeros(4, dtype=torch.int64)
    largest = {}
    for rescale in (True, False):
        model = Asked(constant)
        square(model, images, labels, keys=KEYS[:4], eps=0.1, queries=100, rescale=rescale)
        changed = torch.stack([points != model.images[1] for points in model.images[90:]])
        largest[rescale] = int(changed.flatten(2).sum(2).max())
    # Of the last squares: side round(sqrt(0.8 * 256 / 512)) = 1, or round(sqrt(0.8 * 256 / 4)) = 7.
    assert largest[True] == 1
    assert 9 < largest[False] <= 49


def test_scores_that_are_not_numbers_are_never_an_improvement() -> None:
    def broken(images: Tensor) -> Tensor:
        answer = constant(images).clone()
        answer[(images != 0.5).flatten(1).any(1), 0] = torch.nan
        return answer

    images, labels = torch.full((2, 1, 8, 8), 0.5), torch.zeros(2, dtype=torch.int64)
    result = square(broken, images, labels, keys=KEYS[:2], eps=0.1, queries=10)
    assert torch.equal(result.images, images)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l0"}, "norm must be one of linf, l2, l1; found 'l0'"),
        ({"eps": 0.0}, "eps must be above 0; found 0"),
        ({"queries": 1}, "queries must be at least 2; found 1"),
        ({"p": 0.0}, "p must be above 0; found 0"),
        ({"p": 1.5}, "p must be at most 1; found 1.5"),
        ({"restarts": 0}, "restarts must be above 0; found 0"),
        ({"loss": "hinge"}, "loss must be one of ce, margin, dlr; found 'hinge'"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    settings = {"keys": KEYS[:6], "eps": 0.1, "queries": 10, **change}
    with pytest.raises(ValueError, match=text):
        square(linear, interior(), torch.zeros(6, dtype=torch.int64), **settings)
