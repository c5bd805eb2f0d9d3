import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from raybench.kernels.ridge import weighted_ridge


@given(
    samples=st.integers(3, 40),
    features=st.integers(1, 12),
    alpha=st.sampled_from([1e-3, 0.5, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_equals_scikit_learn(samples: int, features: int, alpha: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(samples, features))
    y = rng.normal(size=(samples, 2))
    pi = rng.uniform(0.1, 1.0, size=samples)
    fit = weighted_ridge(*map(torch.from_numpy, (z, y, pi)), alpha)
    peer = Ridge(alpha=alpha, solver="cholesky").fit(z, y, sample_weight=pi)
    np.testing.assert_allclose(fit.weights.T, peer.coef_, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fit.intercept, peer.intercept_, rtol=1e-8, atol=1e-9)
    for column in range(2):
        single = Ridge(alpha=alpha).fit(z, y[:, column], sample_weight=pi)
        peer_r2 = single.score(z, y[:, column], sample_weight=pi)
        assert float(fit.r2[column]) == pytest.approx(peer_r2, abs=1e-8)


def test_batch_of_problems_equals_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    z, y = torch.rand(5, 30, 4, generator=generator), torch.rand(5, 30, 3, generator=generator)
    pi = torch.rand(5, 30, generator=generator)
    together = weighted_ridge(z, y, pi, 1.0)
    for index in range(5):
        alone = weighted_ridge(z[index], y[index], pi[index], 1.0)
        for whole, part in zip(together, alone, strict=True):
            torch.testing.assert_close(whole[index], part, rtol=1e-12, atol=1e-12)


def test_no_penalty_recovers_a_linear_function_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    truth = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0, -0.25], dtype=torch.float64)
    fit = weighted_ridge(z, (z @ truth + 7)[:, None], torch.ones(50), 0.0)
    torch.testing.assert_close(fit.weights[:, 0], truth)
    assert float(fit.intercept) == pytest.approx(7)
    assert float(fit.r2) == pytest.approx(1)


def test_constant_response_has_no_weights_and_nothing_unexplained() -> None:
    fit = weighted_ridge(torch.eye(4), torch.full((4, 1), 0.25), torch.ones(4), 1.0)
    assert float(fit.weights.abs().max()) == 0
    assert float(fit.r2) == 1


def test_negative_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be at least 0, found -1"):
        weighted_ridge(torch.eye(3), torch.ones(3, 1), torch.ones(3), -1)
