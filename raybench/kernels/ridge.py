"""Weighted ridge regression with an unpenalised intercept, batched, by Cholesky in float64."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RidgeFit", "weighted_ridge"]


class RidgeFit(NamedTuple):
    """A batch of fits; every tensor float64.

    Attributes:
        weights: [..., S, T].
        intercept: [..., T].
        r2: weighted coefficient of determination [..., T]; 1 where the response is constant.
    """

    weights: Tensor
    intercept: Tensor
    r2: Tensor


def weighted_ridge(
    features: Tensor, responses: Tensor, sample_weights: Tensor, alpha: float
) -> RidgeFit:
    """Return argmin over (w, b) of sum_j pi_j (y_j - b - z_j.w)^2 + alpha ||w||^2.

    Centring features and responses at their weighted means removes b from the problem (its
    optimum is mean(y) - mean(z).w), which leaves one S x S positive definite system
    (Zc' P Zc + alpha I) w = Zc' P yc for all T responses (spec 01 section 1.1 step 7).

    Args:
        features: [..., M, S].
        responses: [..., M, T].
        sample_weights: pi, [..., M], not negative, with a positive sum.
        alpha: ridge strength, above 0 unless the centred features have full column rank.

    Raises:
        ValueError: negative alpha.
        torch.linalg.LinAlgError: alpha is 0 and the features are rank deficient.
    """
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, found {alpha}")
    z, y = features.to(torch.float64), responses.to(torch.float64)
    pi = sample_weights.to(torch.float64)[..., None]
    total = pi.sum(-2, keepdim=True)
    # Responses are measured from the first one: a constant response is then zero to the bit, and
    # so are its weights, where a weighted mean would leave its rounding error in them.
    origin = y[..., :1, :]
    y = y - origin
    z_mean = (pi * z).sum(-2, keepdim=True) / total
    y_mean = (pi * y).sum(-2, keepdim=True) / total
    zc, yc = z - z_mean, y - y_mean
    weighted = pi * zc
    gram = weighted.mT @ zc
    gram.diagonal(dim1=-2, dim2=-1).add_(alpha)
    weights = torch.cholesky_solve(weighted.mT @ yc, torch.linalg.cholesky(gram))
    intercept = (origin + y_mean - z_mean @ weights).squeeze(-2)
    residual = (pi * (yc - zc @ weights).square()).sum(-2)
    spread = (pi * yc.square()).sum(-2)
    # A response that varies only by rounding has nothing to explain.
    flat = spread <= 1e-24 * total.squeeze(-2)
    r2 = torch.where(flat, torch.ones_like(spread), 1 - residual / spread.clamp_min(1e-300))
    return RidgeFit(weights, intercept, r2)
