"""HopSkipJump against the nearest points of planes and spheres; its counts and its starts."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import lp_norm
from raybench.kernels.attacks.hopskipjump import hopskipjump

SHAPE = (1, 8, 8)
SIZE = 64


def inside(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.25 + torch.rand(count, *SHAPE, generator=generator) / 2


def weights(classes: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SIZE, classes, generator=generator, dtype=torch.float64)


class Labels:
    """Labels of planes through the middle of [0, 1]; counts what it is asked.

    In float64 and summed pixel by pixel, so that answers do not depend on the batch.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.asked, self.most = matrix, 0, 0
        self.lowest, self.highest = 1.0, 0.0

    def scores(self, images: Tensor) -> Tensor:
        return ((images.double().flatten(1) - 0.5)[:, :, None] * self.matrix).sum(1)

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        self.most = max(self.most, len(images))
        self.lowest = min(self.lowest, float(images.min()))
        self.highest = max(self.highest, float(images.max()))
        return self.scores(images).argmax(1)


def reach(matrix: Tensor, images: Tensor, norm: str) -> Tensor:
    scores = Labels(matrix).scores(images)
    gap, normal = (scores[:, 0] - scores[:, 1]).abs(), matrix[:, 0] - matrix[:, 1]
    return gap / (normal.abs().sum() if norm == "linf" else normal.norm())


@pytest.mark.parametrize(("norm", "excess"), [("l2", 1.05), ("linf", 1.12)])
def test_the_distance_to_a_plane_is_found(norm: str, excess: float) -> None:
    matrix, images = weights(), inside(4)
    model = Labels(matrix)
    labels = model.scores(images).argmax(1)
    result = hopskipjump(model, images, labels, keys=torch.arange(4), norm=norm, queries=5000)
    assert result.found.all()
    assert torch.equal(model.scores(result.images).argmax(1), 1 - labels)
    ratio = lp_norm(result.images.double() - images.double(), norm) / reach(matrix, images, norm)
    assert (ratio >= 1 - 1e-6).all()
    assert (ratio <= excess).all()
    assert model.asked == result.queries.sum()
    assert model.most <= 512
    assert (model.lowest >= 0) & (model.highest <= 1)
    # It ends only where what is left is no longer enough for one more iteration.
    assert (result.queries <= 5000).all()
    assert (result.queries > 5000 - 30).all()


def test_the_nearest_way_out_of_a_sphere_inside_the_box_is_found() -> None:
    centre = torch.full((SIZE,), 0.5, dtype=torch.float64)

    def sphere(images: Tensor) -> Tensor:
        return ((images.double().flatten(1) - centre).square().sum(1) > 0.6**2).long()

    images = torch.full((2, *SHAPE), 0.5)
    images[1, 0, 0, 0] += 0.3
    found = hopskipjump(sphere, images, torch.zeros(2).long(), keys=torch.arange(2), queries=4000)
    away = lp_norm(found.images.double() - images.double(), "l2")
    assert away[0] == pytest.approx(0.6, rel=2e-3)
    # Off the centre by 0.3 in one pixel, which goes no further than to 1: of 0.6 it gives 0.5, the
    # other pixels the rest.
    nearest = ((0.5 - 0.3) ** 2 + 0.6**2 - 0.5**2) ** 0.5
    assert nearest <= away[1] < 1.08 * nearest


def test_more_queries_come_nearer() -> None:
    matrix, images = weights(seed=1), inside(6, seed=1)
    labels = Labels(matrix).scores(images).argmax(1)
    far = []
    for queries in (50, 300, 1500, 5000):
        keys = torch.arange(6)
        result = hopskipjump(Labels(matrix), images, labels, keys=keys, queries=queries)
        assert (result.queries <= queries).all()
        far.append(lp_norm(result.images - images, "l2").mean())
    assert far[0] > far[1] > far[2] > far[3]


@pytest.mark.parametrize("queries", [1, 2, 3, 5, 12, 20, 27, 40, 111])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_queries_are_counted_and_never_more_than_allowed(norm: str, queries: int) -> None:
    matrix, images = weights(), inside(5)
    model = Labels(matrix)
    labels = model.scores(images).argmax(1)
    keys = torch.arange(5)
    result = hopskipjump(model, images, labels, keys=keys, norm=norm, queries=queries, batch=7)
    assert model.asked == result.queries.sum()
    assert model.most <= 7
    assert (result.queries <= queries).all()
    assert torch.equal(model.scores(result.images).argmax(1) != labels, result.found)
    assert torch.equal(result.found_queries > 0, result.found)
    assert (result.gradients == 0).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_results_are_those_of_each_image_alone(norm: str) -> None:
    matrix, images = weights(3), inside(4)
    labels = Labels(matrix).scores(images).argmax(1)
    keys = torch.tensor([9, -4, 2**40, 0])
    whole = hopskipjump(Labels(matrix), images, labels, keys=keys, norm=norm, queries=700)
    for row in range(4):
        one = slice(row, row + 1)
        alone = hopskipjump(
            Labels(matrix),
            images[one],
            labels[one],
            keys=keys[one],
            norm=norm,
            queries=700,
            batch=11,
        )
        for field in ("images", "found", "found_at", "found_queries", "queries"):
            assert torch.equal(getattr(whole, field)[one], getattr(alone, field)), field


def test_a_target_is_reached_from_its_start_and_from_no_other() -> None:
    matrix = weights(3)
    model, images = Labels(matrix), inside(4)
    own = model.scores(images).argmax(1)
    targets = (own + 1) % 3
    start = torch.zeros_like(images)
    for row, wanted in enumerate(targets):
        pool = inside(60, seed=5)
        hits = model.scores(pool).argmax(1) == wanted
        start[row] = pool[hits][0]
    # One start is of the wrong class, and such an image is not attacked.
    start[2] = images[2]
    result = hopskipjump(
        model, images, targets, keys=torch.arange(4), queries=2000, targeted=True, start=start
    )
    assert result.found.tolist() == [True, True, False, True]
    assert (int(result.queries[2]), int(result.found_at[2])) == (2, -1)
    assert torch.equal(result.images[2], images[2])
    reached = result.found
    assert torch.equal(model.scores(result.images).argmax(1)[reached], targets[reached])
    before = lp_norm(start - images, "l2")[reached]
    assert (lp_norm(result.images - images, "l2")[reached] < before / 2).all()
    assert (result.found_queries[reached] == 2).all()


def test_a_start_saves_the_search_for_one_and_a_bad_one_is_replaced() -> None:
    matrix = weights()
    images = inside(2)
    labels = Labels(matrix).scores(images).argmax(1)
    start = images.clone()
    side = (matrix[:, 0] - matrix[:, 1]).sign().float().view(SHAPE)
    start[0] = 0.5 - 0.5 * side if labels[0] == 0 else 0.5 + 0.5 * side
    result = hopskipjump(
        Labels(matrix), images, labels, keys=torch.arange(2), queries=500, start=start
    )
    assert result.found.all()
    assert result.found_queries[0] == 2
    assert result.found_queries[1] > 2


def test_fine_noise_that_is_of_the_images_own_class_is_not_the_end() -> None:
    def contrast(images: Tensor) -> Tensor:
        # Class 0 is what all fine noise is: of mean near a half.
        return ((images.mean((1, 2, 3)) - 0.5).abs() > 0.2).long()

    images = torch.full((6, *SHAPE), 0.5)
    result = hopskipjump(contrast, images, torch.zeros(6).long(), keys=torch.arange(6), queries=900)
    assert result.found.all()
    away = lp_norm(result.images.double() - images.double(), "l2")
    assert (away >= 0.2 * 8 - 1e-5).all()
    assert (away < 0.2 * 8 * 1.3).all()


def test_without_a_start_the_image_comes_back() -> None:
    images = inside(2)
    result = hopskipjump(
        lambda copies: torch.zeros(len(copies)).long(),
        images,
        torch.zeros(2).long(),
        keys=torch.arange(2),
        queries=1000,
    )
    assert not result.found.any()
    assert (result.found_at == -1).all()
    assert (result.found_queries == -1).all()
    assert torch.equal(result.images, images)
    assert (result.queries == 49).all()


def test_an_image_already_wrong_is_done_after_one_query() -> None:
    matrix, images = weights(), inside(3)
    labels = Labels(matrix).scores(images).argmax(1)
    labels[1] = 1 - labels[1]
    result = hopskipjump(Labels(matrix), images, labels, keys=torch.arange(3), queries=200)
    assert result.found.all()
    assert (int(result.found_at[1]), int(result.found_queries[1]), int(result.queries[1])) == (
        0,
        1,
        1,
    )
    assert torch.equal(result.images[1], images[1])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_images_of_zeros_and_ones_are_attacked_inside_the_box(norm: str) -> None:
    matrix = weights()
    images = (inside(6) < 0.5).float()
    model = Labels(matrix)
    labels = model.scores(images).argmax(1)
    result = hopskipjump(model, images, labels, keys=torch.arange(6), norm=norm, queries=3000)
    assert result.found.all()
    assert (model.lowest, model.highest) == (0.0, 1.0)
    if norm == "linf":
        # Inwards the plane is reached where every pixel moves by the same amount, or not at all.
        low, high = torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
        toward = (matrix[:, 1] - matrix[:, 0])[None] * torch.where(labels == 0, 1, -1)[:, None]
        for _ in range(40):
            middle = (low + high) / 2
            moved = (images.double().flatten(1) + middle[:, None] * toward.sign()).clamp(0, 1)
            across = Labels(matrix).scores(moved).argmax(1) != labels
            low, high = torch.where(across, low, middle), torch.where(across, middle, high)
        ratio = lp_norm(result.images.double() - images.double(), "linf") / high
        assert (ratio >= 1 - 1e-6).all()
        assert (ratio < 1.25).all()


def test_settings_out_of_range_are_refused() -> None:
    matrix = weights()
    model: Callable[[Tensor], Tensor] = Labels(matrix)
    images, labels, keys = inside(2), torch.zeros(2).long(), torch.arange(2)
    cases = [
        ({"norm": "l1"}, "norm must be one of l2, linf; found 'l1'"),
        ({"queries": 0}, "queries must be above 0; found 0"),
        ({"batch": 0}, "batch must be above 0; found 0"),
        ({"targeted": True}, "start must be given where targeted"),
        ({"start": images[:1]}, r"start must have shape \(2, 1, 8, 8\); found \(1, 1, 8, 8\)"),
    ]
    for settings, text in cases:
        with pytest.raises(ValueError, match=text):
            hopskipjump(model, images, labels, keys=keys, **settings)
    nothing = hopskipjump(model, images[:0], labels[:0], keys=keys[:0])
    assert nothing.images.shape == (0, *SHAPE)
