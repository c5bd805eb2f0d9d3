"""The fused regression gives what the plain kernels give one by one."""

import pytest
import torch
from torch import Tensor

from raybench.kernels.designs import hadamard_masks
from raybench.kernels.draws import bits, stream
from raybench.kernels.lime import bernoulli_masks, proximity
from raybench.kernels.noise import sandwich, split_half
from raybench.kernels.ridge import weighted_ridge
from raybench.kernels.surrogate import SurrogateFit, fit_surrogate


def answers(masks: Tensor, offset: float = 0.0) -> Tensor:
    """Return three responses [M, 3] that no surrogate fits: bent, one with a jump, one constant."""
    z = masks.to(torch.float64)
    slope = torch.linspace(-1, 2, z.shape[1], dtype=torch.float64)
    bent = torch.sigmoid(z @ slope - 1) + offset
    return torch.stack([bent, (z @ slope > 1).double() * 3, torch.full_like(bent, 0.3)], dim=1)


def check(found: SurrogateFit, masks: Tensor, y: Tensor, alpha: float, atol: float) -> None:
    z, pi = masks.to(torch.float64), proximity(masks)
    plain, noise = weighted_ridge(z, y, pi, alpha), sandwich(z, y[:, :2], pi, alpha)
    for name in ("weights", "intercept", "r2"):
        torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=0, atol=atol)
    torch.testing.assert_close(found.variance, noise.variance, rtol=1e-9, atol=1e-20)
    assert found.halves is not None
    halves = split_half(z, y[:, :1], pi, alpha)
    torch.testing.assert_close(found.halves, halves, rtol=0, atol=atol)


@pytest.mark.parametrize(("samples", "segments"), [(1000, 64), (301, 49), (130, 9), (18, 4)])
@pytest.mark.parametrize("alpha", [1.0, 1e-6])
def test_one_pass_equals_the_kernels_one_by_one(samples: int, segments: int, alpha: float) -> None:
    masks = bernoulli_masks(bits(3, "masks", "a", (samples, segments)))
    y = answers(masks)
    found = fit_surrogate(masks, y, proximity(masks), alpha, noisy=2, halved=1)
    check(found, masks, y, alpha, 1e-11 if alpha == 1 else 1e-8)


def test_hadamard_halves_keep_pairs_together() -> None:
    masks = hadamard_masks(stream(0, "hadamard", "a"), 256, 64)
    y = answers(masks)
    check(fit_surrogate(masks, y, proximity(masks), 1.0, noisy=2, halved=1), masks, y, 1.0, 1e-11)


def test_a_large_offset_costs_no_digits() -> None:
    masks = bernoulli_masks(bits(3, "masks", "a", (400, 16)))
    pi = proximity(masks)
    near = fit_surrogate(masks, answers(masks), pi, 1.0, noisy=2, halved=1)
    far = fit_surrogate(masks, answers(masks, offset=1e6), pi, 1.0, noisy=2, halved=1)
    torch.testing.assert_close(far.weights, near.weights, rtol=0, atol=1e-8)


def test_a_constant_response_has_weights_variance_and_halves_of_zero_to_the_bit() -> None:
    masks = bernoulli_masks(bits(3, "masks", "a", (400, 16)))
    y = torch.full((400, 1), 0.1, dtype=torch.float64)
    found = fit_surrogate(masks, y, proximity(masks), 1.0, noisy=1, halved=1)
    assert found.halves is not None
    for value in (found.weights, found.variance, found.halves):
        assert float(value.abs().sum()) == 0.0
    assert float(found.intercept) == 0.1
    assert float(found.r2) == 1.0


def test_no_halves_are_made_where_none_are_asked_for() -> None:
    masks = bernoulli_masks(bits(3, "masks", "a", (40, 16)))
    found = fit_surrogate(masks, answers(masks), proximity(masks), 1.0, noisy=2, halved=0)
    plain = weighted_ridge(masks.double(), answers(masks), proximity(masks), 1.0)
    assert found.halves is None
    torch.testing.assert_close(found.weights, plain.weights, rtol=0, atol=1e-11)


def test_alpha_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        fit_surrogate(torch.eye(4), torch.ones(4, 1), torch.ones(4), 0.0, noisy=1, halved=0)
