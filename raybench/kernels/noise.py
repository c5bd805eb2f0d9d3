"""How much of a LIME score is sampling noise, and the score with that noise taken out.

    fit = sandwich(masks, responses, proximity(masks), alpha=1.0)
    raw = fit.weights.abs().sum(0)
    floor = noise_floor(fit.variance)
    corrected = unfolded_l1(fit.weights, fit.variance)
    jackknife = group_jackknife(masks, responses, proximity(masks), alpha=1.0)

The absolute value folds the noise of a weight upwards, so the L1 norm of noisy weights is too
large, the more so the fewer the samples. The noise meant is that of the random masks: the same
regression on another draw of as many masks. Ridge shrinkage, which pulls the other way, is a part
of the score's definition (spec 01 section 1.1 step 7) and is not corrected.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from raybench.kernels.ridge import weighted_ridge

__all__ = [
    "JackknifeL1",
    "SandwichFit",
    "folded_mean",
    "group_jackknife",
    "noise_floor",
    "row_groups",
    "sandwich",
    "split_half",
    "unfold",
    "unfolded_l1",
]


class SandwichFit(NamedTuple):
    """Weights and their sampling variance, float64.

    Attributes:
        weights: [S, T], those of `weighted_ridge`.
        variance: [S, T], estimated sampling variance of each weight.
        leverage: [M], in [0, 1], each row's pull on its own fitted value.
    """

    weights: Tensor
    variance: Tensor
    leverage: Tensor


class JackknifeL1(NamedTuple):
    """The L1 norm and its delete-a-group jackknife, float64 [T].

    Attributes:
        l1: norm of the weights fitted on all rows.
        debiased: `l1` less the jackknife's estimate of its bias; can be below 0.
        se: jackknife standard error of `l1`.
    """

    l1: Tensor
    debiased: Tensor
    se: Tensor


def sandwich(
    features: Tensor, responses: Tensor, sample_weights: Tensor, alpha: float
) -> SandwichFit:
    """Return the weighted ridge fit with a variance for every weight (HC3, MacKinnon-White 1985).

    With Zc the weighted-centred features and H = Zc' P Zc + alpha I, the weights are A y with
    A = H^-1 Zc' P. Rows are independent, and no noise level is shared between them (what the
    surrogate misses depends on the mask), hence

        var w_j = sum_i A_ji^2 (e_i / (1 - h_i))^2,
        h_i = pi_i (1 / sum(pi) + zc_i' H^-1 zc_i),

    which is the sum of squared changes when one row at a time is left out. For rows that are not
    independent but spread on purpose (`hadamard_masks`) it is an upper bound: it does not see what
    the design saves.

    Args:
        features: [M, S].
        responses: [M, T].
        sample_weights: pi, [M], not negative, with a positive sum.
        alpha: ridge strength, as in `weighted_ridge`.

    Raises:
        ValueError: negative alpha.
        torch.linalg.LinAlgError: alpha is 0 and the features are rank deficient.
    """
    weights, intercept, _ = weighted_ridge(features, responses, sample_weights, alpha)
    z, y = features.to(torch.float64), responses.to(torch.float64)
    pi = sample_weights.to(torch.float64)[:, None]
    zc = z - (pi * z).sum(0) / pi.sum()
    gram = (pi * zc).mT @ zc
    gram.diagonal().add_(alpha)
    solved = torch.cholesky_solve(zc.mT, torch.linalg.cholesky(gram)).mT
    leverage = pi[:, 0] * (1 / pi.sum() + (zc * solved).sum(1))
    residual = y - intercept - z @ weights
    # A row that alone decides its fitted value (h = 1) has no residual to judge it by: 0 / 0.
    left_out = residual / (1 - leverage).clamp_min(1e-12)[:, None]
    # A constant response has weights of exactly 0; rounding in its residuals is not noise.
    left_out = left_out * (y != y[:1]).any(0)
    variance = (pi * solved).square().mT @ left_out.square()
    return SandwichFit(weights, variance, leverage)


def noise_floor(variance: Tensor) -> Tensor:
    """Return the expected L1 norm [T] of pure noise: sum_j sqrt(2 / pi) se_j.

    What weights whose true values are all 0 would score, if each were normal with variance [S, T].
    """
    return math.sqrt(2 / math.pi) * variance.sqrt().sum(0)


def folded_mean(mean: Tensor, variance: Tensor) -> Tensor:
    """Return E|N(mean, variance)|, elementwise, float64 (folded normal; Leone et al. 1961)."""
    mean, sd = mean.to(torch.float64), variance.to(torch.float64).sqrt()
    ratio = mean / sd.clamp_min(1e-300)
    density = math.sqrt(2 / math.pi) * torch.exp(-0.5 * ratio.square())
    return sd * density + mean * torch.erf(ratio / math.sqrt(2))


def unfold(weights: Tensor, variance: Tensor) -> Tensor:
    """Return |w| less its upward bias, elementwise: 2 |w| - E|N(w, se^2)|.

    The bias E|N(w, se^2)| - |w| is taken at the estimated weight. It is largest there where the
    estimate says 0 and the truth is near 0, so single values may be negative (down to -0.8 se):
    they must be, for a sum over many weights to be right. What bias is left is 0.47 se at a true 0
    (0.80 before), and at most 0.1 se either way from a true 0.5 se on; no estimator of |w| is
    unbiased, since |w| has a corner.
    """
    return 2 * weights.abs() - folded_mean(weights, variance)


def unfolded_l1(weights: Tensor, variance: Tensor) -> Tensor:
    """Return the noise-corrected L1 norm [T] of weights [S, T]: the sum of `unfold`, at least 0."""
    return unfold(weights, variance).sum(0).clamp_min(0)


def row_groups(samples: int, groups: int) -> Tensor:
    """Return the group of each row, [M] int64 in 0 .. groups-1.

    Rows 2 i and 2 i + 1 stay together: in `hadamard_masks` they are complements, and half of a pair
    would undo the folding.

    Raises:
        ValueError: fewer than two groups, or more groups than pairs of rows.
    """
    if not 2 <= groups <= samples // 2:
        raise ValueError(
            f"groups must lie in 2..{samples // 2} for {samples} samples, found {groups}"
        )
    return torch.arange(samples) // 2 % groups


def group_jackknife(
    features: Tensor,
    responses: Tensor,
    sample_weights: Tensor,
    alpha: float,
    *,
    groups: int = 10,
) -> JackknifeL1:
    """Return the L1 norm and its delete-a-group jackknife (Quenouille 1956), with standard error.

    debiased = G L1 - (G - 1) mean_g L1(without group g). This removes a bias that falls as 1 / M;
    of weights that are nothing but noise the norm falls as 1 / sqrt(M), and of that about half is
    removed. It assumes nothing about the noise, which is why it stands beside `unfolded_l1`.
    The ridge is scaled by (G - 1) / G in the deleted fits: shrinkage must be the same, or its
    change with M would be taken for bias.

    Args:
        features: [M, S].
        responses: [M, T].
        sample_weights: [M].
        alpha: ridge strength of the full fit.
        groups: G.

    Raises:
        ValueError: `groups` is out of range; see `row_groups`.
        torch.linalg.LinAlgError: alpha is 0 and the features are rank deficient.
    """
    which = row_groups(len(features), groups).to(features.device)
    full = weighted_ridge(features, responses, sample_weights, alpha).weights.abs().sum(0)
    kept = (which != torch.arange(groups, device=which.device)[:, None]) * sample_weights
    deleted = weighted_ridge(
        features.expand(groups, -1, -1),
        responses.expand(groups, -1, -1),
        kept,
        alpha * (groups - 1) / groups,
    ).weights
    norms = deleted.abs().sum(1)
    mean = norms.mean(0)
    spread = (norms - mean).square().sum(0)
    return JackknifeL1(
        full, groups * full - (groups - 1) * mean, ((groups - 1) / groups * spread).sqrt()
    )


def split_half(features: Tensor, responses: Tensor, sample_weights: Tensor, alpha: float) -> Tensor:
    """Return the weights [2, S, T] of two fits on disjoint halves of the rows.

    For split-half reliability. The ridge is halved, so that shrinkage is that of the full fit.

    Args:
        features: [M, S], M at least 4.
        responses: [M, T].
        sample_weights: [M].
        alpha: ridge strength of the full fit.
    """
    which = row_groups(len(features), 2).to(features.device)
    kept = (which == torch.arange(2, device=which.device)[:, None]) * sample_weights
    return weighted_ridge(
        features.expand(2, -1, -1), responses.expand(2, -1, -1), kept, alpha / 2
    ).weights
