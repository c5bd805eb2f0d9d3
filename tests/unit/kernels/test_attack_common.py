import pytest
import torch
from torch import Tensor

from raybench.kernels.attacks.common import (
    ball_start,
    dlr,
    gradient_step,
    lp_norm,
    margin,
    project,
    succeeded,
    targeted_dlr,
)

SCORES = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 5.0, 4.0]])
LABELS = torch.tensor([0, 1])


def test_margins_and_success() -> None:
    assert margin(SCORES, LABELS).tolist() == [2.0, -3.0]
    assert margin(SCORES, LABELS, targeted=True).tolist() == [-2.0, 3.0]
    assert succeeded(SCORES, LABELS).tolist() == [False, True]
    assert succeeded(SCORES, torch.tensor([1, 2]), targeted=True).tolist() == [False, True]


def test_a_margin_survives_logits_of_any_size() -> None:
    assert margin(torch.tensor([[-1e30, -2e30]]), torch.tensor([0])).item() == pytest.approx(1e30)


def test_dlr_losses_by_hand_do_not_change_with_scale() -> None:
    assert dlr(SCORES, LABELS).tolist() == pytest.approx([-2 / 3, 3 / 3])
    wanted = torch.tensor([1, 2])
    by_hand = [-(3 - 1) / (3 - (0 - 1) / 2), -(2 - 5) / (5 - (2 + 0) / 2)]
    assert targeted_dlr(SCORES, LABELS, wanted).tolist() == pytest.approx(by_hand)
    assert torch.allclose(dlr(7 * SCORES, LABELS), dlr(SCORES, LABELS))


def test_dlr_losses_refuse_too_few_classes() -> None:
    with pytest.raises(ValueError, match="at least 3 classes; found 2"):
        dlr(SCORES[:, :2], LABELS)
    with pytest.raises(ValueError, match="at least 4 classes; found 3"):
        targeted_dlr(SCORES[:, :3], LABELS, LABELS)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_start_is_in_the_ball_and_fills_it(norm: str) -> None:
    images = torch.zeros(64, 1, 5, 5)
    start = ball_start(torch.arange(64), 0, images, norm, 0.5)
    sizes = lp_norm(start, norm)
    assert sizes.max() <= 0.5 * (1 + 1e-6)
    # In 25 dimensions almost all of a ball's volume is near its surface.
    assert sizes.mean() > 0.44
    assert torch.equal(start[7:8], ball_start(torch.tensor([7]), 0, images[:1], norm, 0.5))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_projection_is_the_nearest_point_of_the_ball(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(8, 1, 3, 3, generator=generator)
    eps = 0.7
    found = project(delta, norm, eps)
    assert (lp_norm(found, norm) <= eps * (1 + 1e-6)).all()
    inside = project(0.01 * delta, norm, eps)
    assert torch.allclose(inside, 0.01 * delta)
    # The projection makes an obtuse angle with every other point of the ball.
    others = project(torch.randn(500, 1, 3, 3, generator=generator), norm, eps)
    outward = (delta - found).flatten(1)
    for index in range(8):
        inner = (others - found[index]).flatten(1) @ outward[index]
        assert inner.max() <= 1e-5


def test_l0_counts_pixels_not_channels() -> None:
    delta = torch.zeros(1, 3, 2, 2)
    delta[0, :, 0, 1] = 0.1
    delta[0, 1, 1, 1] = -0.1
    assert lp_norm(delta, "l0").item() == 2


def test_a_gradient_is_taken_where_gradients_are_off_and_is_zero_where_there_is_none() -> None:
    matrix = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 1.0], [3.0, 1.0]])
    images = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def linear(x: Tensor) -> Tensor:
        return x.flatten(1) @ matrix

    with torch.inference_mode(False), torch.no_grad():
        scores, losses, gradient = gradient_step(linear, images, lambda z: z[:, 0])
        assert torch.equal(losses, scores[:, 0])
        assert torch.allclose(gradient.flatten(1), matrix[:, 0].expand(3, 4))
        _, _, cut = gradient_step(lambda x: linear(x.detach()), images, lambda z: z[:, 0])
    assert not cut.any()
