"""The whole of one image's regression in one pass: weights, their noise, and two half fits.

    fit = fit_surrogate(masks, responses, proximity(masks), 1.0, noisy=2, halved=1)

The same numbers as `weighted_ridge`, `sandwich` and `split_half` give one by one (to rounding; the
tests hold them together), at about a quarter of the time: the normal equations of both halves are
made once and added for the whole, and one factorisation serves weights and noise.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raybench.kernels.noise import row_groups

__all__ = ["SurrogateFit", "fit_surrogate"]


class SurrogateFit(NamedTuple):
    """A surrogate for T responses, float64.

    Attributes:
        weights: [S, T]; `weighted_ridge`.
        intercept: [T].
        r2: weighted coefficient of determination [T]; 1 where the response is constant.
        variance: [S, noisy], sampling variance of the first weights; `sandwich`.
        halves: [2, S, halved], weights from each half of the rows; `split_half`. None for
            ``halved`` 0.
    """

    weights: Tensor
    intercept: Tensor
    r2: Tensor
    variance: Tensor
    halves: Tensor | None


class _Sums(NamedTuple):
    """Sums over rows, weighted by pi: zz' [S, S], zy' [S, T], z [S], y [T], and pi alone []."""

    gram: Tensor
    cross: Tensor
    features: Tensor
    responses: Tensor
    weights: Tensor


def fit_surrogate(
    features: Tensor,
    responses: Tensor,
    sample_weights: Tensor,
    alpha: float,
    *,
    noisy: int,
    halved: int,
) -> SurrogateFit:
    """Return the weighted ridge fit of `responses` with noise and halves (spec 01 section 1.1).

    Args:
        features: [M, S], M at least 4 where halves are asked for.
        responses: [M, T].
        sample_weights: pi, [M], not negative, with a positive sum in each half.
        alpha: ridge strength of the full fit, above 0.
        noisy: how many of the first responses get a variance.
        halved: how many of the first responses are fitted on each half too; 0 for none.

    Raises:
        ValueError: alpha is not above 0.
    """
    if alpha <= 0:
        raise ValueError(f"alpha must be above 0, found {alpha}")
    z, y = features.to(torch.float64), responses.to(torch.float64)
    pi = sample_weights.to(torch.float64)[:, None]
    total = pi.sum()
    # From the first response on, then from the weighted mean: a constant response is zero to the
    # bit, and sums of squares lose nothing to a large mean.
    origin = y[:1]
    y_mean = (pi * (y - origin)).sum(0) / total
    y = y - origin - y_mean
    parts = _normal_equations(z, y, pi, halves=halved > 0)
    gram, cross, sums, _, _ = (sum(terms) for terms in zip(*parts, strict=True))
    z_mean = sums / total
    # Of the whole, the weighted sum of `y` is zero, so that centring leaves `cross` as it is.
    gram = gram - sums[:, None] * z_mean
    gram.diagonal().add_(alpha)
    factor = torch.linalg.cholesky(gram)
    weights = torch.cholesky_solve(cross, factor)
    zc = z - z_mean
    residual = y - zc @ weights
    spread = (pi * y.square()).sum(0)
    # A response that varies only by rounding has nothing to explain.
    flat = spread <= 1e-24 * total
    unexplained = (pi * residual.square()).sum(0) / spread.clamp_min(1e-300)
    return SurrogateFit(
        weights=weights,
        intercept=origin[0] + y_mean - z_mean @ weights,
        r2=torch.where(flat, torch.ones_like(spread), 1 - unexplained),
        variance=_variance(zc, responses[:, :noisy], residual[:, :noisy], pi, total, factor),
        halves=_halves(parts, alpha, halved) if halved else None,
    )


def _normal_equations(z: Tensor, y: Tensor, pi: Tensor, *, halves: bool) -> list[_Sums]:
    """Return the sums over the rows of each half, or over all."""
    parts = [(z, y, pi)]
    if halves:
        which = row_groups(len(z), 2).to(z.device)
        chosen = [(which == half).nonzero()[:, 0] for half in range(2)]
        parts = [(z[rows], y[rows], pi[rows]) for rows in chosen]
    found = []
    for part, answers, weight in parts:
        weighted = weight * part
        found.append(
            _Sums(
                weighted.mT @ part,
                weighted.mT @ answers,
                weighted.sum(0),
                (weight * answers).sum(0),
                weight.sum(),
            )
        )
    return found


def _variance(
    zc: Tensor, responses: Tensor, residual: Tensor, pi: Tensor, total: Tensor, factor: Tensor
) -> Tensor:
    """Return the HC3 variance [S, N] of the weights of `responses` [M, N]; see `sandwich`."""
    solved = zc @ torch.cholesky_inverse(factor)
    leverage = pi[:, 0] * (1 / total + (zc * solved).sum(1))
    # A row that alone decides its fitted value (h = 1) has no residual to judge it by: 0 / 0.
    left_out = residual / (1 - leverage).clamp_min(1e-12)[:, None]
    # A constant response has weights of exactly 0; rounding in its residuals is not noise.
    left_out = left_out * (responses != responses[:1]).any(0)
    return (pi * solved).square().mT @ left_out.square()


def _halves(parts: list[_Sums], alpha: float, count: int) -> Tensor:
    """Return the weights [2, S, count] of each half, its ridge halved as its rows are."""
    fits = []
    for gram, cross, sums, answers, weight in parts:
        centred = gram - sums[:, None] * (sums / weight)
        centred.diagonal().add_(alpha / 2)
        right = cross[:, :count] - sums[:, None] * (answers[:count] / weight)
        fits.append(torch.cholesky_solve(right, torch.linalg.cholesky(centred)))
    return torch.stack(fits)
