"""PGD against closed forms of linear and hand-made models, over batch sizes and shapes."""

import pytest
import torch
from torch.nn import functional

from raybench.kernels.attacks.pgd import NORMS, pgd

SHAPES = [(1, 4, 4), (3, 5, 6)]


def linear(shape: tuple[int, int, int], classes: int = 2):
    size = shape[0] * shape[1] * shape[2]
    weight = torch.randn(classes, size, generator=torch.Generator().manual_seed(3))
    return weight, lambda images: images.flatten(1) @ weight.T


def interior(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return 0.3 + 0.4 * torch.rand(count, *shape, generator=generator)


def uniform(like: torch.Tensor) -> torch.Tensor:
    return torch.rand(like.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("keep_best", [True, False])
@pytest.mark.parametrize("random_start", [True, False])
def test_two_class_linear_model_is_pushed_to_the_corner_that_fgsm_names(
    count: int, shape: tuple[int, int, int], keep_best: bool, random_start: bool
) -> None:
    weight, logits = linear(shape)
    images = interior(count, shape)
    labels = torch.zeros(count, dtype=torch.int64)
    eps = 0.01
    corner = images + eps * (weight[1] - weight[0]).sign().view(1, *shape)
    # Class 0 wins even at the corners: none succeeds, so that the best iterate is the strongest.
    lead = (logits(corner) @ torch.tensor([-1.0, 1.0])).max() + 1

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return logits(x) + torch.stack([lead, torch.zeros(())])

    found = pgd(
        shifted,
        images,
        labels,
        eps=eps,
        step_size=eps / 2,
        steps=10,
        random_start=random_start,
        noise=uniform(images) if random_start else None,
        keep_best=keep_best,
    )
    assert (shifted(found).argmax(1) == 0).all()
    torch.testing.assert_close(found, corner)


def test_no_image_depends_on_its_neighbours() -> None:
    shape = (3, 5, 6)
    _, logits = linear(shape, classes=7)
    images = interior(8, shape)
    labels = logits(images).argmax(1)
    noise = uniform(images)
    settings = {"eps": 0.03, "step_size": 0.01, "steps": 6}
    whole = pgd(logits, images, labels, noise=noise, **settings)
    for at in range(8):
        one = slice(at, at + 1)
        alone = pgd(logits, images[one], labels[one], noise=noise[one], **settings)
        torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.5])
def test_result_stays_in_the_box_and_in_the_ball(eps: float) -> None:
    shape = (1, 4, 4)
    _, logits = linear(shape, classes=5)
    images = torch.rand(8, *shape, generator=torch.Generator().manual_seed(6)).round(decimals=1)
    found = pgd(
        logits, images, logits(images).argmax(1), eps=eps, step_size=0.1, steps=7,
        noise=uniform(images), keep_best=False,
    )  # fmt: skip
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found.double() - images.double()).abs().max() <= eps * (1 + 1e-5) + 1e-6
    if eps:
        assert (found != images).any()


def valley(images: torch.Tensor) -> torch.Tensor:
    """Two classes; class 1 wins only where the pixel lies in a narrow band around 0.56."""
    pixel = images.flatten(1)[:, 0]
    other = 1 - 100 * (pixel - 0.56) ** 2 * 10
    return torch.stack([torch.full_like(pixel, 0.9), other], 1)


def test_first_success_is_kept_though_later_iterates_walk_past_it() -> None:
    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    settings = {"eps": 0.2, "step_size": 0.055, "steps": 4, "random_start": False}
    best = pgd(valley, images, labels, **settings)
    assert best.item() == pytest.approx(0.555)
    assert valley(best).argmax(1).item() == 1
    last = pgd(valley, images, labels, keep_best=False, **settings)
    assert last.item() == pytest.approx(0.61)  # it walked to and fro over the band
    assert valley(last).argmax(1).item() == 0


def test_strongest_iterate_is_kept_where_none_succeeds() -> None:
    def hill(images: torch.Tensor) -> torch.Tensor:
        return valley(images) - torch.tensor([0.0, 0.5])

    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    settings = {"eps": 0.2, "step_size": 0.055, "steps": 4, "random_start": False}
    best = pgd(hill, images, labels, **settings)
    last = pgd(hill, images, labels, keep_best=False, **settings)
    assert hill(best).argmax(1).item() == 0
    losses = [functional.cross_entropy(hill(x), labels) for x in (best, last)]
    assert losses[0] > losses[1]


def test_an_image_already_wrong_comes_back_unchanged() -> None:
    _, logits = linear((1, 4, 4))
    images = interior(3, (1, 4, 4))
    wrong = 1 - logits(images).argmax(1)
    found = pgd(logits, images, wrong, eps=0.1, step_size=0.05, steps=3, random_start=False)
    assert torch.equal(found, images)


def test_targeted_descends_to_the_wanted_class() -> None:
    _, logits = linear((1, 4, 4), classes=4)
    images = interior(8, (1, 4, 4))
    wanted = (logits(images).argmax(1) + 1) % 4
    settings = {"eps": 0.4, "step_size": 0.1, "steps": 20, "random_start": False}
    found = pgd(logits, images, wanted, targeted=True, **settings)
    assert (logits(found).argmax(1) == wanted).all()
    assert not (logits(images).argmax(1) == wanted).any()


def test_parameters_and_images_are_left_alone_and_gradients_may_be_off_outside() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    images = interior(2, (1, 4, 4))
    before = images.clone()
    labels = network(images).argmax(1)
    with torch.no_grad():
        found = pgd(network, images, labels, eps=0.1, step_size=0.05, steps=2, random_start=False)
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not found.requires_grad
    assert network[1].weight.grad is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l2"}, f"norm must be one of {', '.join(NORMS)}; found 'l2'"),
        ({"eps": -0.1}, "eps must be at least 0"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"random_start": True}, "needs noise"),
        ({"random_start": True, "noise": torch.zeros(1, 1, 4, 4)}, "noise must have shape"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    _, logits = linear((1, 4, 4))
    settings = {"eps": 0.1, "step_size": 0.1, "steps": 1, "random_start": False, **change}
    with pytest.raises(ValueError, match=text):
        pgd(logits, interior(2, (1, 4, 4)), torch.zeros(2, dtype=torch.int64), **settings)


def test_misshapen_input_is_refused() -> None:
    _, logits = linear((1, 4, 4))
    settings = {"eps": 0.1, "step_size": 0.1, "steps": 1, "random_start": False}
    with pytest.raises(ValueError, match=r"labels must be \[2\]"):
        pgd(logits, interior(2, (1, 4, 4)), torch.zeros(3, dtype=torch.int64), **settings)
    with pytest.raises(ValueError, match="images must be"):
        pgd(logits, torch.rand(2, 16), torch.zeros(2, dtype=torch.int64), **settings)
