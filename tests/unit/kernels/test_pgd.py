"""PGD and BIM against closed forms of linear and hand-made models, and the loop of training."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from raybench.kernels.attacks.common import lp_norm
from raybench.kernels.attacks.fgsm import fgsm
from raybench.kernels.attacks.pgd import inner_maximisation, pgd

SHAPE = (3, 5, 6)
SIZE = 90


def weights(classes: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(classes, SIZE, generator=torch.Generator().manual_seed(3))


def linear(classes: int = 2, scale: float = 1.0, bias: Tensor | float = 0.0):
    weight = weights(classes, scale)
    return lambda images: images.flatten(1) @ weight.T + bias


def rowwise(classes: int = 4):
    """Return a curved model that answers for each image on its own, to the last bit."""
    first, second = weights(8, 0.3), torch.randn(classes, 8, generator=torch.manual_seed(8))

    def one(image: Tensor) -> Tensor:
        return second @ (6 * (first @ image.flatten())).sin()

    return lambda images: torch.stack([one(image) for image in images])


class Counting:
    """A model that counts the images it is asked about, and those whose gradient is taken."""

    def __init__(self, model) -> None:
        self.model, self.asked, self.graded = model, 0, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        if images.requires_grad:
            images.register_hook(lambda gradient: self._grade(len(gradient)))
        return self.model(images)

    def _grade(self, count: int) -> None:
        self.graded += count


def interior(count: int) -> Tensor:
    return 0.3 + 0.4 * torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(4))


def keys(count: int) -> Tensor:
    return torch.arange(1000, 1000 + count)


def settled(count: int, model) -> tuple[Tensor, Tensor]:
    images = interior(count)
    return images, model(images).argmax(1)


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_is_pushed_to_its_weakest_point_of_the_ball(
    norm: str, loss: str, random_start: bool
) -> None:
    slope = (weights(2)[1] - weights(2)[0]).view(1, *SHAPE)
    eps = {"linf": 0.01, "l2": 0.1}[norm]
    direction = slope.sign() if norm == "linf" else slope / slope.norm()
    images = interior(5)
    weakest = images + eps * direction
    # Class 0 wins even there: none succeeds, so that the best iterate is the strongest.
    lead = (linear()(weakest) @ torch.tensor([-1.0, 1.0])).max() + 1
    model = linear(bias=torch.stack([lead, torch.zeros(())]))
    result = pgd(
        model, images, torch.zeros(5, dtype=torch.int64), keys=keys(5), norm=norm, eps=eps,
        steps=60, step_size=eps, random_start=random_start, loss=loss,
    )  # fmt: skip
    assert not result.found.any()
    torch.testing.assert_close(result.images, weakest, atol=5e-5, rtol=0)
    assert (result.queries == 61).all()
    assert (result.gradients == 60).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_of_bim_is_fgsm_to_the_last_bit(norm: str) -> None:
    model = linear(5)
    images, labels = settled(6, model)
    images[0], images[1, :, :2], images[2, 0] = images[0].round(), 0.0, 1.0
    for eps in (0.001, 0.3):
        step = fgsm(model, images, labels, norm=norm, eps=eps)
        bim = pgd(
            model, images, labels, keys=keys(6), norm=norm, eps=eps, steps=1, step_size=eps,
            random_start=False,
        )  # fmt: skip
        for name in ("images", "found", "found_at", "found_queries", "queries", "losses"):
            assert torch.equal(getattr(step, name), getattr(bim, name)), name


def valley(images: Tensor) -> Tensor:
    """Two classes; class 1 wins only where the pixel lies in a narrow band around 0.56."""
    pixel = images.flatten(1)[:, 0]
    return torch.stack([torch.full_like(pixel, 0.9), 1 - 1000 * (pixel - 0.56) ** 2], 1)


def test_first_success_is_kept_though_the_path_leads_past_it() -> None:
    # The step from 0.5 lands in the band; the next would leave it.
    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    for shrink in (True, False):
        result = pgd(
            valley, images, labels, keys=keys(1), norm="linf", eps=0.2, steps=4, step_size=0.055,
            random_start=False, shrink=shrink,
        )  # fmt: skip
        assert result.images.item() == pytest.approx(0.555)
        assert valley(result.images).argmax(1).item() == 1
        assert (result.found_at.item(), result.found_queries.item()) == (1, 2)
        assert result.queries.item() == (2 if shrink else 5)


def test_strongest_iterate_is_kept_where_the_last_one_is_weaker() -> None:
    def hill(images: Tensor) -> Tensor:
        return valley(images) - torch.tensor([0.0, 0.5])

    images, labels = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1, dtype=torch.int64)
    result = pgd(
        hill, images, labels, keys=keys(1), norm="linf", eps=0.2, steps=4, step_size=0.055,
        random_start=False,
    )  # fmt: skip
    # The path is 0.5, 0.555, 0.61, 0.555, 0.61 (up to rounding).
    assert not result.found.item()
    assert result.images.item() == pytest.approx(0.555)
    path = result.losses[0]
    assert (path.diff() >= 0).all()
    assert path[-1] == functional.cross_entropy(hill(result.images), labels).double()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [True, False])
def test_no_image_depends_on_its_neighbours_or_on_who_stays(norm: str, targeted: bool) -> None:
    model = rowwise()
    images, labels = settled(12, model)
    labels = (labels + 1) % 4 if targeted else labels
    settings = {
        "norm": norm, "eps": {"linf": 0.006, "l2": 0.04}[norm], "steps": 4, "restarts": 3,
        "step_size": {"linf": 0.003, "l2": 0.02}[norm], "targeted": targeted,
    }  # fmt: skip
    whole = pgd(model, images, labels, keys=keys(12), **settings)
    assert 0 < whole.found.sum() < 12
    everyone = pgd(model, images, labels, keys=keys(12), shrink=False, **settings)
    fields = ["images", "found", "found_at", "found_queries", "zero_gradient"]
    for name in fields:
        assert torch.equal(getattr(whole, name), getattr(everyone, name)), name
    assert (everyone.queries == 15).all()
    fields += ["queries", "gradients", "losses"]
    for at in range(12):
        one = slice(at, at + 1)
        alone = pgd(model, images[one], labels[one], keys=keys(12)[one], **settings)
        for name in fields:
            assert torch.equal(getattr(alone, name), getattr(whole, name)[one]), (name, at)


def test_restarts_only_add_successes_and_what_is_found_does_not_change() -> None:
    model = rowwise()
    images, labels = settled(24, model)
    settings = {"norm": "linf", "eps": 0.004, "steps": 3, "step_size": 0.0016}
    single = pgd(model, images, labels, keys=keys(24), **settings)
    several = pgd(model, images, labels, keys=keys(24), restarts=5, **settings)
    assert single.found.sum() < several.found.sum()
    assert torch.equal(several.images[single.found], single.images[single.found])
    assert torch.equal(several.found_at[single.found], single.found_at[single.found])
    later = several.found & ~single.found
    assert (several.found_at[later] >= 4).all()
    assert (several.found_queries == several.queries)[several.found].all()
    assert (several.losses[:, 3] == single.losses[:, 3])[~single.found].all()
    left = ~several.found
    assert (several.queries[left] == 20).all()
    lost = functional.cross_entropy(model(several.images), labels, reduction="none").double()
    torch.testing.assert_close(several.losses[left, -1], lost[left])
    assert (several.losses[left, -1] >= single.losses[left, -1]).all()
    assert (model(several.images).argmax(1) != labels).equal(several.found)


@pytest.mark.parametrize("shrink", [True, False])
def test_every_pass_is_counted_and_none_is_wasted(shrink: bool) -> None:
    model = Counting(rowwise())
    images, labels = settled(12, model.model)
    result = pgd(
        model, images, labels, keys=keys(12), norm="linf", eps=0.006, steps=4, step_size=0.003,
        restarts=2, shrink=shrink,
    )  # fmt: skip
    assert model.asked == result.queries.sum()
    assert model.graded == result.gradients.sum()
    assert (result.queries <= 10).all()
    found = result.found & (result.found_at < 5)
    assert (result.found_queries == result.found_at + 1)[found].all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_result_stays_in_the_box_and_in_the_ball(norm: str) -> None:
    model = linear(5)
    images = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(6)).round(decimals=1)
    images[0], images[1] = 0.0, 1.0
    labels = model(images).argmax(1)
    for eps in (1 / 255, 0.3, 4.0):
        found = pgd(
            model, images, labels, keys=keys(8), norm=norm, eps=eps, steps=5, step_size=eps / 2,
            targeted=True, restarts=2,
        ).images  # fmt: skip
        assert found.dtype == torch.float32
        assert (found.min() >= 0) & (found.max() <= 1)
        sizes = lp_norm(found.double() - images.double(), norm)
        assert (sizes <= eps * (1 + 1e-5) + 1e-6).all()


def test_an_image_already_wrong_comes_back_unchanged() -> None:
    model = linear(2, 0.1)
    images = interior(3)
    labels = 1 - model(images).argmax(1)
    result = pgd(
        model, images, labels, keys=keys(3), norm="linf", eps=0.1, steps=3, step_size=0.05,
        random_start=False,
    )  # fmt: skip
    assert torch.equal(result.images, images)
    assert result.found.all()
    for values, expected in [
        (result.found_at, 0), (result.found_queries, 1), (result.queries, 1), (result.gradients, 1)
    ]:  # fmt: skip
        assert (values == expected).all()


def test_targeted_ascends_to_the_wanted_class() -> None:
    model = linear(4)
    images, labels = settled(8, model)
    wanted = (labels + 1) % 4
    result = pgd(
        model, images, wanted, keys=keys(8), norm="linf", eps=0.4, steps=20, step_size=0.1,
        targeted=True, loss="margin",
    )  # fmt: skip
    assert (model(result.images).argmax(1) == wanted).all()
    assert result.found.all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_gradient_of_zero_is_flagged_and_moves_nothing(norm: str, cut: bool) -> None:
    def masked(images: Tensor) -> Tensor:
        quantised = images.detach() if cut else 0 * images
        return linear(3)(quantised)

    images, labels = settled(3, masked)
    result = pgd(
        masked, images, labels, keys=keys(3), norm=norm, eps=0.01, steps=3, step_size=0.01,
        random_start=False,
    )  # fmt: skip
    assert result.zero_gradient.all()
    assert torch.equal(result.images, images)
    assert not result.found.any()


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-14, 1.0, 1e25])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_step_is_as_long_for_a_faint_gradient_as_for_a_strong_one(norm: str, size: float) -> None:
    slope = weights(1).sign().view(1, *SHAPE)

    class Faint(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return torch.tensor([[2.0, 1.0]]).repeat(len(images), 1)

        @staticmethod
        def backward(ctx, gradient):
            return size * slope.repeat(len(gradient), 1, 1, 1)

    images = interior(2)
    result = pgd(
        Faint.apply, images, torch.zeros(2, dtype=torch.int64), keys=keys(2), norm=norm, eps=0.1,
        steps=1, step_size=0.1, random_start=False, shrink=False,
    )  # fmt: skip
    assert not result.zero_gradient.any()
    # The loss stays as it was, so that the start is kept; the second question shows the step.
    seen = []
    pgd(
        lambda x: [seen.append(x.detach()), Faint.apply(x)][1], images,
        torch.zeros(2, dtype=torch.int64), keys=keys(2), norm=norm, eps=0.1, steps=1,
        step_size=0.1, random_start=False,
    )  # fmt: skip
    torch.testing.assert_close(lp_norm(seen[1] - images, norm), torch.full((2,), 0.1).double())


def test_nan_is_no_success_and_spoils_only_what_it_touches() -> None:
    def holed(images: Tensor) -> Tensor:
        # The gradient of the root of 0 times 0 is nan for the first pixel of black images.
        logits = linear(2, 0.1)(images)
        return logits + (0 * images[:, 0, 0, 0].sqrt())[:, None]

    images, labels = settled(2, holed)
    images[:, 0, 0, 0] = 0.0
    settings = {"norm": "l2", "eps": 0.01, "steps": 3, "step_size": 0.01, "random_start": False}
    result = pgd(holed, images, labels, keys=keys(2), **settings)
    assert result.images.isfinite().all()
    assert (result.losses[:, -1] > result.losses[:, 0]).all()

    lost = pgd(lambda x: holed(x) * torch.nan, images, labels, keys=keys(2), **settings)
    assert not lost.found.any()
    assert torch.equal(lost.images, images)


def test_parameters_inputs_and_global_draws_are_left_alone() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(SIZE, 3))
    images, labels = settled(2, network)
    before, state = images.clone(), torch.get_rng_state()
    with torch.no_grad():
        result = pgd(
            network, images, labels, keys=keys(2), norm="l2", eps=0.1, steps=2, step_size=0.05
        )
    assert (result.losses[:, -1] > result.losses[:, 0]).all()
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not result.images.requires_grad
    assert network[1].weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_no_images_are_no_question() -> None:
    model = Counting(linear())
    result = pgd(
        model, torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64), keys=keys(0), norm="l2",
        eps=1.0, steps=3, step_size=1.0, restarts=2,
    )  # fmt: skip
    assert result.losses.shape == (0, 8)
    assert model.asked == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"norm": "l1"}, "norm must be linf or l2 for PGD; found 'l1', which apgd"),
        ({"norm": "l0"}, "norm must be one of linf, l2, l1; found 'l0'"),
        ({"eps": 0.0}, "eps must be above 0; found 0.0"),
        ({"step_size": -1.0}, "step_size must be above 0; found -1.0"),
        ({"steps": 0}, "steps must be at least 1; found 0"),
        ({"restarts": 0}, "restarts must be at least 1; found 0"),
        ({"restarts": 2, "random_start": False}, "restarts must be 1 without a random start"),
        ({"loss": "mse"}, "loss must be one of ce, margin, dlr; found 'mse'"),
        ({"loss": "dlr", "targeted": True}, "loss must be ce or margin where targeted"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be \[2\]"),
        ({"images": torch.rand(2, SIZE)}, "images must be"),
    ],
)
def test_impossible_settings_are_refused(change: dict, text: str) -> None:
    settings = {
        "images": interior(2), "labels": torch.zeros(2, dtype=torch.int64), "keys": keys(2),
        "norm": "linf", "eps": 0.1, "step_size": 0.1, "steps": 1, **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=text):
        pgd(linear(), **settings)


def test_the_loop_of_training_is_plain_pgd_to_the_last_bit() -> None:
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(SIZE, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )
    images = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    images[0] = images[0].round()
    labels = torch.tensor([0, 1, 2, 0])
    noise = 2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(2)) - 1
    eps, step = 0.1, 0.025
    low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
    plain = torch.clamp(images + eps * noise, low, high)
    for _ in range(6):
        plain = plain.detach().requires_grad_(True)
        losses = functional.cross_entropy(network(plain), labels, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), plain)
        plain = torch.clamp(plain.detach() + step * gradient.sign(), low, high)
    with torch.no_grad():
        found = inner_maximisation(
            network, images, labels, eps=eps, step_size=step, steps=6, noise=noise
        )
    assert torch.equal(found, plain)
    assert network[1].weight.grad is None
