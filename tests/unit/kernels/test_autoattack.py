"""The cascade: each component sees only what stands, counts add up, and the version decides."""

import pytest
import torch
from torch import Tensor
from toy import linear

from raybench.kernels.attacks.autoattack import VERSIONS, autoattack
from raybench.kernels.attacks.common import lp_norm, succeeded

CLASSES = 5


def material(count: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    labels = linear(classes=CLASSES)(images).argmax(1)
    return images, labels, torch.arange(count)


class Counting:
    def __init__(self, function) -> None:
        self.function, self.asked = function, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.function(images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_just_those_that_a_linear_model_can_lose(norm: str) -> None:
    images, labels, keys = material()
    function = linear(classes=CLASSES)
    scores = function(images)
    # The nearest boundary of a linear model, in the dual norm, where no pixel meets the box.
    matrix = torch.stack([function(row.view(1, 1, 8, 8))[0] for row in torch.eye(64)])
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    distances = []
    for index, label in enumerate(labels):
        gaps = scores[index, label] - scores[index]
        sizes = torch.linalg.vector_norm(matrix - matrix[:, label : label + 1], ord=dual, dim=0)
        ratios = torch.where(torch.arange(CLASSES) == label, torch.inf, gaps / sizes)
        distances.append(float(ratios.min()))
    eps = sorted(distances)[2] * 1.3
    found = autoattack(function, images, labels, keys=keys, norm=norm, eps=eps)
    won = succeeded(function(found.images), labels) & (
        lp_norm(found.images - images, norm) <= eps * (1 + 1e-5) + 1e-6
    )
    assert torch.equal(won, found.found)
    # Below the distance nothing can succeed; the three nearest lie well inside, box aside.
    assert not found.found[torch.tensor(distances) > eps].any()
    assert found.found.sum() >= 2


def test_counts_are_those_that_the_model_saw() -> None:
    images, labels, keys = material()
    model = Counting(linear(classes=CLASSES))
    found = autoattack(model, images, labels, keys=keys, norm="linf", eps=0.02)
    assert model.asked == int(found.queries.sum()) + 1  # the one that told the number of classes
    assert (found.found_queries[found.found] <= found.queries[found.found]).all()
    assert (found.found_at[~found.found] == -1).all()


def test_a_later_component_sees_only_what_stands() -> None:
    images, labels, keys = material()
    found = autoattack(linear(classes=CLASSES), images, labels, keys=keys, norm="linf", eps=0.9)
    assert found.found.all()
    assert (found.found_at == 0).all()
    assert (found.queries <= 101).all()  # APGD alone


def test_a_masked_gradient_falls_to_the_component_without_gradients() -> None:
    images, labels, keys = material(3)
    function = linear(classes=CLASSES)

    def masked(x: Tensor) -> Tensor:
        return function(x.detach())

    found = autoattack(masked, images, labels, keys=keys, norm="linf", eps=0.2)
    assert found.zero_gradient.all()
    assert found.found.all()
    assert (found.found_at == len(VERSIONS["standard"]) - 1).all()


def test_an_image_goes_its_own_way() -> None:
    images, labels, keys = material(2)
    function = linear(classes=CLASSES)
    together = autoattack(function, images, labels, keys=keys, norm="linf", eps=0.03)
    for index in range(2):
        one = slice(index, index + 1)
        alone = autoattack(
            function, images[one], labels[one], keys=keys[one], norm="linf", eps=0.03
        )
        assert bool(alone.found[0]) == bool(together.found[index])
        assert int(alone.found_at[0]) == int(together.found_at[index])


def test_components_that_need_more_classes_are_left_out() -> None:
    images, _, keys = material(3)
    function = linear(classes=2)
    labels = function(images).argmax(1)
    found = autoattack(function, images, labels, keys=keys, norm="linf", eps=0.5)
    assert found.found.all()


def test_an_unknown_version_is_refused() -> None:
    images, labels, keys = material(2)
    with pytest.raises(ValueError, match="version must be one of standard, plus, rand"):
        autoattack(
            linear(classes=CLASSES), images, labels, keys=keys, norm="linf", eps=0.1, version="x"
        )
