"""FAB against programmes solved by SciPy, nearest boundaries of linear models, and counts."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, lsq_linear
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, lp_norm
from raybench.kernels.attacks.fab import fab, fab_targeted
from raybench.kernels.attacks.fab_step import biased_step, boundary_step

SHAPE = (1, 8, 8)
NORMS = ("linf", "l2", "l1")
DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
KEYS = torch.arange(100, 108)


def smallest(point: np.ndarray, weights: np.ndarray, need: float, norm: str) -> float:
    """Return the smallest norm of d with weights . d = need and point + d in the box."""
    size, rooms = len(point), [(-value, 1 - value) for value in point]
    if norm == "l2":
        # The equation as a heavy last row of a least-squares problem.
        rows = np.r_[np.eye(size), 1e4 * weights[None]]
        solved = lsq_linear(rows, np.r_[np.zeros(size), 1e4 * need], np.transpose(rooms), "bvls")
        assert solved.success
        return float(np.linalg.norm(solved.x))
    # Variables d and bounds u of |d|: one for all in linf, one for each in l1.
    each = np.ones((size, 1)) if norm == "linf" else np.eye(size)
    above = np.block([[np.eye(size), -each], [-np.eye(size), -each]])
    costs = np.r_[np.zeros(size), np.ones(each.shape[1])]
    solved = linprog(
        costs, above, np.zeros(2 * size), [np.r_[weights, 0 * costs[size:]]], [need],
        bounds=rooms + [(0, None)] * each.shape[1],
    )  # fmt: skip
    assert solved.status == 0
    return float(solved.fun)


def tensors(point: np.ndarray, weights: np.ndarray, need: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.tensor(point)[None], torch.tensor(weights)[None], torch.tensor([need]).double()


@pytest.mark.parametrize("norm", NORMS)
def test_a_boundary_step_is_the_smallest_that_the_box_allows(norm: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(25):
        point = generator.random(6)
        point[generator.random(6) < 0.2], point[generator.random(6) < 0.2] = 0, 1
        weights = generator.normal(size=6)
        weights[generator.random(6) < 0.1] = 0
        ends = np.sort([weights * -point, weights * (1 - point)], axis=0).sum(1)
        need = generator.uniform(0.98 * ends[0], 0.98 * ends[1])
        step = boundary_step(*tensors(point, weights, need), norm)
        assert (step[0].numpy() @ weights) == pytest.approx(need, abs=1e-6)
        moved = step[0].numpy() + point
        assert moved.min() >= -1e-12
        assert moved.max() <= 1 + 1e-12
        best = smallest(point, weights, need, norm)
        assert lp_norm(step, norm).item() == pytest.approx(best, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_beyond_the_box_leads_to_the_nearest_corner(norm: str) -> None:
    point = torch.tensor([[0.2, 0.7, 0.0, 0.5]])
    weights = torch.tensor([[1.0, -2.0, -3.0, 0.0]])
    for need, corner in ((9.0, [1.0, 0.0, 0.0, 0.5]), (-9.0, [0.0, 1.0, 1.0, 0.5])):
        step = boundary_step(point, weights, torch.tensor([need]), norm)
        torch.testing.assert_close(point + step, torch.tensor([corner]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_boundary_step_does_not_depend_on_units_or_neighbours(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(6, 40, generator=generator)
    weights = torch.randn(6, 40, generator=generator)
    needs = torch.randn(6, generator=generator)
    together = boundary_step(points, weights, needs, norm)
    for row in range(6):
        alone = boundary_step(points[row, None], weights[row, None], needs[row, None], norm)
        assert torch.equal(alone[0], together[row])
    # Squares of such weights are zero in float32.
    for unit in (2.0**-90, 2.0**60):
        assert torch.equal(boundary_step(points, unit * weights, unit * needs, norm), together)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_gradient_that_is_not_finite_or_zero_moves_nothing(norm: str, bad: float) -> None:
    points = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    slopes = torch.ones_like(points)
    slopes[0, 0, 0, 0], slopes[1] = bad, 0.0
    moved = biased_step(points, points, torch.tensor([-1.0, -1.0, bad]), slopes, norm)
    assert torch.allclose(moved, points)


class Asked:
    """A linear model in float64 that counts the images it is asked about."""

    def __init__(self, classes: int = 4, offset: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(3)
        self.weights = torch.randn(classes, 64, generator=generator).double()
        # Class 0 leads by `offset` where the linear parts are equal.
        self.bias = torch.zeros(classes).double()
        self.bias[0] = offset
        self.count = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.count += len(images)
        flat = images.flatten(1).double() - 0.5
        return (flat[:, None] * self.weights).sum(2) + self.bias

    def distance(self, images: Tensor, labels: Tensor, norm: str) -> Tensor:
        """Return [N]: the distance of the nearest boundary, where the box is out of reach."""
        answer = self(images)
        ways = self.weights[None] - self.weights[labels][:, None]
        gaps = answer.gather(1, labels[:, None]) - answer
        sizes = torch.stack([lp_norm(way, DUAL[norm]) for way in ways])
        return torch.where(sizes > 0, gaps / sizes, torch.inf).amin(1)


def interior(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return 0.45 + 0.1 * torch.rand(count, *SHAPE, generator=generator)


ATTACKS = {
    "all classes": fab,
    "targets in turn": lambda *args, **more: fab_targeted(*args, num_targets=3, **more),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_linear_model_is_left_at_its_nearest_boundary(attack: str, norm: str) -> None:
    model, images = Asked(), interior()
    labels = model(images).argmax(1)
    nearest = model.distance(images, labels, norm)
    model.count = 0
    result = ATTACKS[attack](
        model, images, labels, keys=KEYS[:6], norm=norm, eps=float(nearest.min()), steps=10
    )
    assert model.count == result.queries.sum()
    assert result.found.all()
    assert (model(result.images).argmax(1) != labels).all()
    sizes = lp_norm(result.images - images, norm)
    assert (sizes >= nearest * (1 - 1e-6)).all()
    assert (sizes <= nearest * 1.01).all()
    assert (result.found_at == 1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_is_part_of_the_nearest_boundary(norm: str) -> None:
    model = Asked(classes=2)
    images = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(5)).round()
    images[2, :, :4] = 0.5
    model.bias[0] = model.weights.abs().sum() / 8
    labels = torch.zeros(3, dtype=torch.int64)
    assert (model(images).argmax(1) == 0).all()
    found = fab(model, images, labels, keys=KEYS[:3], norm=norm, eps=0.1, steps=15)
    assert found.found.all()
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    way, gaps = (model.weights[1] - model.weights[0]).numpy(), model(images)
    for image, answer, made in zip(images, gaps, found.images, strict=True):
        flat = image.flatten().double().numpy()
        best = smallest(flat, way, (answer[0] - answer[1]).item(), norm)
        size = lp_norm((made - image)[None], norm).item()
        assert best * (1 - 1e-5) <= size <= best * 1.02


def test_a_curved_boundary_is_approached() -> None:
    """Class 1 lies outside the ball of radius 1 about the grey image: l2 distance 1 - |x - c|."""

    def ball(images: Tensor) -> Tensor:
        away = (images - 0.5).flatten(1).square().sum(1)
        return torch.stack([1 - away, away - 1], 1)

    images = interior(4)
    result = fab(ball, images, torch.zeros(4, dtype=torch.int64), keys=KEYS[:4], norm="l2", eps=0.5)
    distance = 1 - lp_norm(images - 0.5, "l2")
    sizes = lp_norm(result.images - images, "l2")
    assert (sizes >= distance * (1 - 1e-6)).all()
    assert (sizes <= distance * 1.005).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_wanted_class_is_reached_near_its_boundary(norm: str) -> None:
    model, images = Asked(), interior()
    wanted = (model(images).argmax(1) + 1) % 4
    model.count = 0
    result = fab(model, images, wanted, keys=KEYS[:6], norm=norm, eps=0.1, steps=40, targeted=True)
    assert model.count == result.queries.sum()
    # One a step; a search may end before its time, where a step leads back to its own start.
    assert (result.gradients <= 40).all()
    assert result.gradients.median() == 40
    assert result.found.all()
    answer = model(images)
    assert (model(result.images).argmax(1) == wanted).all()
    # The wanted class must pass each of the others; the furthest of these is a lower bound.
    gaps = answer - answer.gather(1, wanted[:, None])
    ways = model.weights[None] - model.weights[wanted][:, None]
    sizes = torch.stack([lp_norm(way, DUAL[norm]) for way in ways])
    bound = torch.where(sizes > 0, gaps / sizes, 0).amax(1)
    made = lp_norm(result.images - images, norm)
    assert (made >= bound * (1 - 1e-6)).all()
    assert (made <= bound * 1.5).all()


def test_with_two_classes_both_versions_are_one() -> None:
    model, images = Asked(classes=2, offset=30.0), interior()
    labels = torch.zeros(6, dtype=torch.int64)
    settings = {"keys": KEYS[:6], "norm": "linf", "eps": 0.2, "steps": 8, "restarts": 2}
    first = fab(model, images, labels, **settings)
    second = fab_targeted(model, images, labels, num_targets=1, **settings)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.queries + 1, second.queries)
    assert torch.equal(first.gradients, second.gradients)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("within", [True, False])
def test_no_image_depends_on_its_neighbours(attack: str, norm: str, within: bool) -> None:
    model, images = wavy, interior()
    labels = model(images).argmax(1)
    settings = {"norm": norm, "steps": 6, "restarts": 2, "within": within}
    settings["eps"] = {"linf": 0.03, "l2": 0.15, "l1": 0.6}[norm]
    whole = ATTACKS[attack](model, images, labels, keys=KEYS[:6], **settings)
    assert whole.found.any()
    for at in range(6):
        one = slice(at, at + 1)
        alone = ATTACKS[attack](model, images[one], labels[one], keys=KEYS[:6][one], **settings)
        for field in fields(AttackResult):
            if field.name != "losses":
                assert torch.equal(getattr(alone, field.name)[0], getattr(whole, field.name)[at])


def wavy(images: Tensor) -> Tensor:
    """Four classes with curved boundaries, in float64 and so the same in any batch."""
    flat = 4 * (images.flatten(1).double() - 0.5)
    weights = torch.randn(4, 64, generator=torch.Generator().manual_seed(9)).double()
    return (torch.sin(2 * flat[:, None] * weights) * weights.flip(1)).sum(2)


@pytest.mark.parametrize("attack", ATTACKS)
def test_within_a_budget_the_first_success_ends_the_search(attack: str) -> None:
    model, images = Asked(), interior()
    labels = model(images).argmax(1)
    nearest = model.distance(images, labels, "l2")
    eps = float(nearest.sort().values[2:4].mean())
    settings = {"keys": KEYS[:6], "norm": "l2", "eps": eps, "steps": 12}
    free = ATTACKS[attack](model, images, labels, **settings)
    model.count = 0
    held = ATTACKS[attack](model, images, labels, within=True, **settings)
    assert model.count == held.queries.sum()
    # 6 of 6 are found in all, 3 within the budget.
    assert free.found.all()
    assert torch.equal(held.found, nearest < eps)
    sizes = lp_norm(held.images - images, "l2")
    assert (sizes[held.found] <= eps).all()
    assert torch.equal(held.images[~held.found], images[~held.found])
    assert (held.found_at[~held.found] == -1).all()
    assert (held.queries[held.found] < free.queries[held.found]).all()
    assert torch.equal(held.found_queries[held.found], held.queries[held.found])
    assert torch.equal(held.gradients[~held.found], free.gradients[~held.found])


def test_passes_are_counted() -> None:
    model, images = Asked(), interior()
    labels = model(images).argmax(1)
    all_classes = fab(model, images, labels, keys=KEYS[:6], eps=0.1, steps=7)
    # Two forward passes a step, and five of the final search; a backward pass for each other class.
    assert (all_classes.queries == 7 * 2 + 5).all()
    assert (all_classes.gradients == 7 * 3).all()
    assert (all_classes.found_queries == 2).all()
    targets = fab_targeted(model, images, labels, keys=KEYS[:6], eps=0.1, steps=7, num_targets=2)
    assert (targets.queries == 1 + 2 * 7 * 2 + 5).all()
    assert (targets.gradients == 2 * 7).all()


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_image_already_wrong_comes_back_at_once(attack: str) -> None:
    model, images = Asked(), interior()
    labels = model(images).argmax(1)
    labels[2] = (labels[2] + 1) % 4
    result = ATTACKS[attack](model, images, labels, keys=KEYS[:6], eps=0.1, steps=5)
    assert torch.equal(result.images[2], images[2])
    assert result.found_at.tolist() == [1, 1, 0, 1, 1, 1]
    assert result.queries[2] == result.found_queries[2] == 1
    assert not torch.equal(result.images[1], images[1])


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("cut", [True, False])
def test_without_a_gradient_nothing_is_found_and_little_is_spent(attack: str, cut: bool) -> None:
    fixed = torch.tensor([3.0, 2.0, 1.0, 0.0])

    def flat(images: Tensor) -> Tensor:
        return fixed.expand(len(images), 4) + (0 if cut else 0 * images.sum((1, 2, 3))[:, None])

    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).round()
    labels = torch.zeros(2, dtype=torch.int64)
    result = ATTACKS[attack](flat, images, labels, keys=KEYS[:2], eps=0.1, steps=50)
    assert torch.equal(result.images, images)
    assert not result.found.any()
    assert result.zero_gradient.all()
    assert (result.found_at == -1).all()
    assert (result.found_queries == -1).all()
    assert (result.queries < 10).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_restart_leaves_a_plateau_by_the_key_of_its_image(norm: str) -> None:
    """Class 1 grows with |pixel - 0.5| beyond 0.001: the gradient at grey is zero."""

    def plateau(images: Tensor) -> Tensor:
        rise = ((images - 0.5).abs() - 0.001).clamp_min(0).flatten(1).sum(1)
        return torch.stack([torch.full_like(rise, 8), 20 * rise], 1)

    images, labels = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    eps = {"linf": 0.02, "l2": 0.1, "l1": 0.6}[norm]
    settings = {"norm": norm, "eps": eps, "steps": 30}
    stuck = fab(plateau, images, labels, keys=KEYS[:2], **settings)
    assert not stuck.found.any()
    assert stuck.zero_gradient.all()
    freed = fab(plateau, images, labels, keys=KEYS[:2], restarts=2, **settings)
    assert freed.found.all()
    assert (freed.found_at > 30).all()
    assert not torch.equal(freed.images[0], freed.images[1])
    again = fab(plateau, images, labels, keys=KEYS[:1].repeat(2), restarts=2, **settings)
    assert torch.equal(again.images[0], freed.images[0])
    assert torch.equal(again.images[1], freed.images[0])


def test_it_works_where_gradients_are_off_and_leaves_its_input_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    images = interior(3)
    before = images.clone()
    with torch.no_grad():
        labels = network(images).argmax(1)
        for attack in ATTACKS.values():
            result = attack(network, images, labels, keys=KEYS[:3], eps=0.1, steps=5)
            assert result.found.all()
            assert not result.images.requires_grad
    assert torch.equal(images, before)
    assert network[1].weight.grad is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l0"}, "norm must be one of linf, l2, l1; found 'l0'"),
        ({"eps": 0.0}, "eps must be above 0; found 0"),
        ({"steps": 0}, "steps must be above 0; found 0"),
        ({"restarts": 0}, "restarts must be above 0; found 0"),
    ],
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_impossible_settings_are_refused(attack: str, change: dict, text: str) -> None:
    settings = {"keys": KEYS[:6], "eps": 0.1, **change}
    with pytest.raises(ValueError, match=text):
        ATTACKS[attack](Asked(), interior(), torch.zeros(6, dtype=torch.int64), **settings)


@pytest.mark.parametrize(
    ("num_targets", "text"),
    [(0, "num_targets must be above 0"), (4, "num_targets must be at most")],
)
def test_targets_are_other_classes(num_targets: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fab_targeted(
            Asked(), interior(), torch.zeros(6, dtype=torch.int64), keys=KEYS[:6], eps=0.1,
            num_targets=num_targets,
        )  # fmt: skip
