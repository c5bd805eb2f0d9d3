"""APGD against closed forms of linear models, in every norm, and against its schedule by hand."""

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.apgd import apgd, apgd_targeted
from raybench.kernels.attacks.apgd_schedule import checkpoints, draw_start, enclose
from raybench.kernels.attacks.common import LOSSES, lp_norm
from raybench.kernels.attacks.pgd import ball, pgd

SHAPE = (1, 8, 8)
FIELDS = (
    "images", "found", "found_at", "found_queries", "queries", "gradients", "zero_gradient",
    "losses",
)  # fmt: skip
EPS = {"linf": 0.01, "l2": 0.1, "l1": 0.3}


def weights(classes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, 64, generator=generator, dtype=torch.float64)


def linear(classes: int):
    return lambda images: images.flatten(1).double() @ weights(classes).T


def rowwise(classes: int = 5):
    """Return a curved model that answers for each image on its own, to the last bit."""
    first, second = 0.3 * weights(8), weights(classes, 1)[:, :8]

    def one(image: Tensor) -> Tensor:
        return second @ (6 * (first @ image.double().flatten())).sin()

    return lambda images: torch.stack([one(image) for image in images])


def interior(count: int) -> Tensor:
    return 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(4))


def keys(count: int) -> Tensor:
    return torch.arange(1000, 1000 + count)


def gain(images: Tensor, slopes: Tensor, norm: str, eps: float) -> Tensor:
    """Return the largest slopes @ delta [N] within ball and box (l2: far from the box).

    linf: every entry as far as it goes. l1: the steepest entries one after another.
    """
    steep = slopes.abs()
    if norm == "l2":
        return eps * steep.norm(dim=1)
    flat = images.double().flatten(1)
    room = torch.where(slopes > 0, 1 - flat, flat)
    if norm == "linf":
        return (steep * room.clamp_max(eps)).sum(1)
    order = steep.argsort(1, descending=True)
    room, steep = room.gather(1, order), steep.gather(1, order)
    left = (eps - (room.cumsum(1) - room)).clamp_min(0)
    return (steep * torch.minimum(room, left)).sum(1)


def shortfall(images: Tensor, labels: Tensor, classes: int, norm: str, eps: float) -> Tensor:
    """Return [N] by how much the logit of the best other class misses that of the label."""
    weight, logits = weights(classes), linear(classes)(images)
    missing = []
    for other in range(classes):
        gaps = logits.gather(1, labels[:, None])[:, 0] - logits[:, other]
        missing.append(gaps - gain(images, weight[other] - weight[labels], norm, eps))
    return torch.stack(missing, 1).scatter(1, labels[:, None], torch.inf).amin(1)


def radius(images: Tensor, labels: Tensor, classes: int, norm: str) -> float:
    """Return a radius within which a third of the images or a few more can be turned."""
    eps = 1e-4
    while (shortfall(images, labels, classes, norm, eps) < 0).sum() < len(images) / 3:
        eps *= 1.05
    return eps


# Steps of l1 stay long, so that it comes near a corner rather than there.
SHARE = {"linf": 0.999, "l2": 0.999, "l1": 0.95}


def counted(model):
    asked = []
    return asked, lambda images: (asked.append(len(images)), model(images))[1]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_two_linear_classes_fall_exactly_where_the_boundary_is_in_reach(norm: str) -> None:
    images = interior(24)
    labels = linear(2)(images).argmax(1)
    eps = radius(images, labels, 2, norm)
    may = shortfall(images, labels, 2, norm, eps) < 0
    must = shortfall(images, labels, 2, norm, SHARE[norm] * eps) < 0
    result = apgd(linear(2), images, labels, keys=keys(24), norm=norm, eps=eps, steps=40)
    assert (result.found <= may).all()
    assert (result.found >= must).all()
    assert must.sum() >= 3
    assert result.found.sum() < 20
    assert torch.equal(linear(2)(result.images).argmax(1) != labels, result.found)
    assert (lp_norm(result.images.double() - images.double(), norm) <= eps * (1 + 1e-5)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_targeted_attack_finds_the_nearest_of_many_linear_classes(norm: str) -> None:
    images = interior(16)
    labels = linear(6)(images).argmax(1)
    eps = radius(images, labels, 6, norm)
    may = shortfall(images, labels, 6, norm, eps) < 0
    must = shortfall(images, labels, 6, norm, SHARE[norm] * eps) < 0
    result = apgd_targeted(
        linear(6), images, labels, keys=keys(16), norm=norm, eps=eps, steps=30, num_targets=5
    )
    assert (result.found <= may).all()
    assert (result.found >= must).all()
    assert must.sum() >= 3
    assert result.found.sum() < 14
    # One clean question, then every start of every class.
    costs = {"linf": 31, "l2": 31, "l1": 33}[norm]
    assert (result.queries[~result.found] == 1 + 5 * costs).all()
    assert (result.gradients[~result.found] == 5 * 30).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_the_weakest_point_of_ball_and_box_is_reached(norm: str) -> None:
    images = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    images[0], images[1] = 0.0, 1.0
    eps = {"linf": 0.15, "l1": 2.5}[norm]
    slope = weights(2)[1] - weights(2)[0]
    bias = torch.tensor([100.0, 0.0], dtype=torch.float64)
    labels = torch.zeros(6, dtype=torch.int64)
    result = apgd(
        lambda x: linear(2)(x) + bias, images, labels, keys=keys(6), norm=norm, eps=eps, steps=100,
        loss="margin",
    )  # fmt: skip
    assert not result.found.any()
    got = ((result.images.double() - images.double()).flatten(1) * slope).sum(1)
    most = gain(images, slope.expand(6, 64), norm, eps)
    assert (got >= SHARE[norm] * most).all(), got / most
    assert (got <= most * (1 + 1e-5)).all()
    if norm == "l1":
        assert ((result.images != images).flatten(1).sum(1) <= 16).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_shrink_until_a_hidden_peak_is_met(norm: str) -> None:
    images = interior(8)
    eps = {"linf": 0.1, "l2": 0.8}[norm]
    aim = draw_start(keys(8) + 7, 0, ball(images, norm, 0.4 * eps)).double()

    def peak(x: Tensor) -> Tensor:
        index = (x.detach()[:, None] - images[None]).abs().flatten(2).amax(2).argmin(1)
        return torch.stack([(x - aim[index]).square().flatten(1).sum(1), 0 * x[:, 0, 0, 0] - 1], 1)

    labels = torch.zeros(8, dtype=torch.int64)
    settings = {"keys": keys(8), "norm": norm, "eps": eps, "loss": "margin"}
    result = apgd(peak, images, labels, steps=100, **settings)
    fixed = pgd(peak, images, labels, steps=100, step_size=eps / 4, **settings)
    left, left_fixed = (lp_norm(each.images - aim, "l2") for each in (result, fixed))
    assert (left < 0.05 * lp_norm(aim - images, "l2")).all()
    assert (left < 0.5 * left_fixed).all()


def test_checkpoints_are_those_of_the_paper() -> None:
    assert list(checkpoints(100, "linf")) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100, "l2").values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(100, "l1")) == list(range(4, 101, 4))
    assert list(checkpoints(5, "linf")) == [1, 2, 3, 4, 5]
    assert list(checkpoints(1, "l1")) == [1]


def test_an_l1_projection_is_the_nearest_point_of_ball_and_box() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 4, 5, generator=generator)
    images[0], images[1], images[2] = 0.0, 1.0, 0.5
    points = images + 2 * torch.randn(images.shape, generator=generator)
    points[3] = images[3] + 0.001
    shift, centre = (points - images).double().flatten(1), images.double().flatten(1)
    room = torch.where(shift > 0, 1 - centre, centre)
    for eps in (0.1, 0.5, 2.0, 30.0):
        # The threshold by bisection: 100 halvings.
        low, high = torch.zeros(6, 1).double(), shift.abs().amax(1, keepdim=True)
        for _ in range(100):
            middle = (low + high) / 2
            over = torch.minimum((shift.abs() - middle).clamp_min(0), room).sum(1, True) > eps
            low, high = torch.where(over, middle, low), torch.where(over, high, middle)
        expected = shift.sign() * torch.minimum((shift.abs() - high).clamp_min(0), room)
        found = (enclose(points.clone(), ball(images, "l1", eps)) - images).double().flatten(1)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
        assert (found.abs().sum(1) <= eps).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_starts_lie_on_the_ball_and_follow_the_key(norm: str) -> None:
    images = interior(5)
    near = ball(images, norm, EPS[norm])
    start = draw_start(keys(5), 3, near)
    torch.testing.assert_close(
        lp_norm(start.double() - images.double(), norm), torch.full((5,), EPS[norm]).double(),
        rtol=1e-4, atol=0,
    )  # fmt: skip
    assert torch.equal(draw_start(keys(5)[2:3], 3, ball(images[2:3], norm, EPS[norm])), start[2:3])
    assert not torch.equal(draw_start(keys(5), 4, near), start)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["ce", "targeted", "classes"])
def test_no_image_depends_on_its_neighbours(norm: str, kind: str) -> None:
    model = rowwise()
    images = interior(8)
    labels = model(images).argmax(1)
    settings = {"norm": norm, "eps": 0.5 * EPS[norm], "steps": 7, "restarts": 2}
    if kind == "classes":
        attack, settings["num_targets"] = apgd_targeted, 2
    else:
        attack, settings["targeted"] = apgd, kind == "targeted"
        labels = (labels + 1) % 5 if settings["targeted"] else labels
    whole = attack(model, images, labels, keys=keys(8), **settings)
    assert 0 < whole.found.sum() < 8
    for at in range(8):
        one = slice(at, at + 1)
        alone = attack(model, images[one], labels[one], keys=keys(8)[one], **settings)
        for name in FIELDS:
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), (name, at)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_restarts_only_add_successes_and_every_question_counts(norm: str) -> None:
    model = rowwise()
    images = interior(24)
    labels = model(images).argmax(1)
    settings = {"norm": norm, "eps": 0.4 * EPS[norm], "steps": 3}
    asked, counting = counted(model)
    single = apgd(model, images, labels, keys=keys(24), **settings)
    several = apgd(counting, images, labels, keys=keys(24), restarts=5, **settings)
    assert sum(asked) == several.queries.sum()
    assert 0 < single.found.sum() <= several.found.sum() < 24
    for name in ("images", "found_at", "found_queries", "queries"):
        ours, theirs = getattr(several, name), getattr(single, name)
        assert torch.equal(ours[single.found], theirs[single.found])
    left = ~several.found
    assert (several.queries[left] == 20).all()
    assert (several.gradients[left] == 15).all()
    assert (several.losses[left, -1] >= single.losses[left, -1]).all()
    lost = LOSSES["ce"](model(several.images), labels).double()
    torch.testing.assert_close(several.losses[left, -1], lost[left])
    assert torch.equal(model(several.images).argmax(1) != labels, several.found)
    sizes = lp_norm(several.images.double() - images.double(), norm)
    assert (sizes <= settings["eps"] * (1 + 1e-5) + 1e-6).all()


def test_in_l1_no_success_outside_the_last_ball_counts() -> None:
    images = interior(8)
    labels = linear(2)(images).argmax(1)
    # Some boundaries lie in the ball of 2 eps, and none in that of eps.
    eps = 0.1
    while (shortfall(images, labels, 2, "l1", 1.1 * eps) > 0).all():
        eps *= 1.05
    asked, model = counted(linear(2))
    result = apgd(model, images, labels, keys=keys(8), norm="l1", eps=eps, steps=20)
    assert (shortfall(images, labels, 2, "l1", 2 * eps) < 0).any()
    assert not result.found.any()
    assert (result.found_at == -1).all()
    assert (result.queries == 23).all()
    assert (result.gradients == 20).all()
    assert sum(asked) == 23 * 8
    wider = apgd(linear(2), images, labels, keys=keys(8), norm="l1", eps=1.3 * eps, steps=20)
    first = wider.found.nonzero()[0, 0]
    # Seven iterates in each of the two wider balls come before.
    assert wider.found_at[first] >= 14
    assert wider.found_queries[first] == wider.found_at[first] + 1
    assert wider.losses[first, 13] == -torch.inf < wider.losses[first, 14]


def test_noise_is_averaged_over_eot_passes() -> None:
    images = interior(3)
    labels = linear(3)(images).argmax(1)
    calls = []

    def noisy(x: Tensor) -> Tensor:
        # Every other answer is far off; the mean is that of the linear model.
        calls.append(len(x))
        off = 1e6 if len(calls) % 2 else -1e6
        return linear(3)(x) + off * (torch.arange(3) == 0)

    settings = {"keys": keys(3), "norm": "linf", "eps": 1e-4, "steps": 6, "loss": "margin"}
    calm = apgd(linear(3), images, labels, **settings)
    result = apgd(noisy, images, labels, eot=2, **settings)
    assert not calm.found.any()
    assert not result.found.any()
    assert (result.queries == 14).all()
    assert (result.gradients == 12).all()
    assert sum(calls) == 42
    assert apgd(noisy, images, labels, **settings).found.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_gradient_of_zero_is_flagged(norm: str) -> None:
    images = interior(2)
    labels = linear(4)(images).argmax(1)
    for attack, more in ((apgd, {"loss": "dlr"}), (apgd_targeted, {"num_targets": 1})):
        result = attack(
            lambda x: linear(4)(x.detach()), images, labels, keys=keys(2), norm=norm, eps=1e-4,
            steps=4, **more,
        )  # fmt: skip
        assert result.zero_gradient.all()
        assert not result.found.any()
        assert result.images.isfinite().all()
        good = attack(linear(4), images, labels, keys=keys(2), norm=norm, eps=1e-4, steps=4, **more)
        assert not good.zero_gradient.any()


def test_an_image_wrong_from_the_outset_is_found_by_one_question() -> None:
    images = interior(3)
    labels = linear(4)(images).argmax(1)
    labels[1] = (labels[1] + 1) % 4
    settings = {"keys": keys(3), "norm": "linf", "eps": 1e-5, "steps": 3}
    result = apgd_targeted(linear(4), images, labels, num_targets=3, **settings)
    assert result.found.tolist() == [False, True, False]
    assert (result.found_at[1], result.queries[1], result.gradients[1]) == (0, 1, 0)
    assert torch.equal(result.images[1], images[1])
    assert apgd(linear(4), images, labels, **settings).found_at.tolist() == [-1, 0, -1]


def test_classes_are_tried_in_the_order_of_the_clean_logits() -> None:
    # Ranks from the clean image: 0, 3, 1, 2, 4. Only class 1 can rise above class 0, and the
    # losses towards 3 and 2 do not move towards it.
    base = torch.tensor([5.0, 3.0, 2.0, 4.0, 1.0])

    def model(x: Tensor) -> Tensor:
        rise = torch.zeros(len(x), 5)
        rise[:, 1] = 25 * (x[:, 0, 0, 0] - 0.5)
        rise[:, 3] = x[:, 0, 0, 1] - 0.5
        rise[:, 2] = x[:, 0, 0, 2] - 0.5
        return base + rise

    images, labels = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    settings = {"keys": keys(2), "norm": "l2", "eps": 0.1, "steps": 20}
    one = apgd_targeted(model, images, labels, num_targets=1, **settings)
    assert not one.found.any()
    two = apgd_targeted(model, images, labels, num_targets=2, **settings)
    assert two.found.all()
    assert (model(two.images).argmax(1) == 1).all()
    assert ((two.found_at >= 21) & (two.found_at < 42)).all()


@pytest.mark.parametrize(
    ("attack", "change", "text"),
    [
        (apgd, {"norm": "l0"}, "norm must be one of linf, l2, l1; found 'l0'"),
        (apgd, {"eps": -1.0}, "eps must be above 0; found -1.0"),
        (apgd, {"steps": 0}, "steps must be at least 1; found 0"),
        (apgd, {"restarts": 0}, "restarts must be at least 1; found 0"),
        (apgd, {"eot": 0}, "eot must be at least 1; found 0"),
        (apgd, {"loss": "hinge"}, "loss must be one of ce, margin, dlr; found 'hinge'"),
        (apgd, {"loss": "dlr", "targeted": True}, "loss must be ce or margin where targeted"),
        (apgd, {"classes": 2, "loss": "dlr"}, "at least 3 classes; found 2"),
        (apgd_targeted, {"num_targets": 0}, "num_targets must be at least 1; found 0"),
        (apgd_targeted, {"classes": 3, "num_targets": 1}, "at least 4 classes; found 3"),
        (apgd_targeted, {}, "num_targets must be at most 4 for 5 classes; found 9"),
    ],
)
def test_impossible_settings_are_refused(attack, change: dict, text: str) -> None:
    settings = {"keys": keys(2), "norm": "linf", "eps": 0.1, **change}
    model = linear(settings.pop("classes", 5))
    with pytest.raises(ValueError, match=text):
        attack(model, interior(2), torch.zeros(2, dtype=torch.int64), **settings)
