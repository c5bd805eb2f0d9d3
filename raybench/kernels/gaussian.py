"""LIME on Gaussian perturbations: real-valued features, so that weights estimate a gradient.

    noise = normals(stream(0, "gaussian", "test/17"), (1000, image.numel()))
    copies = pixel_gaussian(image, noise, sigma=0.05)
    fit = gaussian_fit(copies.features, margin_pred(scores(copies.images), label)[:, None])
    brittleness = noise_corrected(fit.weights, fit.variance).sum(0)

`pixel_gaussian` has one feature for every input value (d = C H W; spec 01 section 1.1, PIX-G),
`coarse_gaussian` one for every grid cell and channel (d = g g C), which a thousand queries can
resolve on colour images where they cannot resolve pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from raybench.kernels.segments import grid_segments

__all__ = [
    "GaussianFit",
    "Perturbed",
    "coarse_gaussian",
    "gaussian_fit",
    "noise_corrected",
    "normals",
    "pixel_gaussian",
]

_BLOCK = 16384  # feature columns taken to float64 at a time: 150,528 of them at 224x224


class Perturbed(NamedTuple):
    """Perturbed copies of an image.

    Attributes:
        images: [M, C, H, W] in [0, 1].
        features: [M, d], what was really added: displacements after clipping.
    """

    images: Tensor
    features: Tensor


class GaussianFit(NamedTuple):
    """A linear surrogate; tensors float64.

    Attributes:
        weights: [d, T], response per unit of feature.
        variance: [d, T], estimated sampling variance of each weight; see `gaussian_fit`.
        intercept: [T], the surrogate's answer at zero displacement.
        recovery: share of a true weight that survives on average, in (0, 1]; about (M - 1) / d
            where M < d (spec 01: the surrogate sees an M-dimensional shadow of the gradient).
    """

    weights: Tensor
    variance: Tensor
    intercept: Tensor
    recovery: float


def normals(draws: np.random.Generator, shape: tuple[int, int]) -> Tensor:
    """Return independent standard normal numbers [rows, columns] float32.

    Box-Muller on raw Philox words, computed in float64: NumPy guarantees the words, but may change
    the stream of its own normal method between releases.

    Args:
        draws: `raybench.kernels.draws.stream` of (seed, sample id).
        shape: (rows, columns).
    """
    count = shape[0] * shape[1]
    words = draws.bit_generator.random_raw((count + 1) // 2)
    first = (words >> np.uint64(32)).astype(np.float64) + 0.5
    second = (words & np.uint64(0xFFFFFFFF)).astype(np.float64)
    radius = np.sqrt(-2 * np.log(first / 2**32))
    angle = second * (2 * np.pi / 2**32)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(pairs.reshape(-1)[:count].astype(np.float32).reshape(shape))


def pixel_gaussian(image: Tensor, noise: Tensor, sigma: float) -> Perturbed:
    """Return clip(image + sigma noise) and the clipped displacement of every input value.

    Rows are independent of each other: pass the noise in parts where all copies do not fit memory.

    Args:
        image: [C, H, W] in [0, 1].
        noise: [M, C H W], standard normal.
        sigma: noise level in pixel units, above 0.

    Raises:
        ValueError: `sigma` is not above 0 or `noise` has the wrong number of columns.
    """
    _check(noise, image.numel(), sigma)
    images = (image + sigma * noise.reshape(-1, *image.shape).to(image.dtype)).clamp(0, 1)
    return Perturbed(images, (images - image).flatten(1))


def coarse_gaussian(image: Tensor, noise: Tensor, sigma: float, cells: int) -> Perturbed:
    """Return clip(image + sigma noise), the noise constant on each grid cell of each channel.

    The feature of a cell is the mean displacement of its pixels after clipping. A weight is then
    the sum of the gradient over the cell, in the same unit as the L1 norm of pixel weights, of
    which the L1 norm of coarse weights is a lower bound.

    Args:
        image: [C, H, W] in [0, 1].
        noise: [M, C cells cells], standard normal; channels first, then cells by rows.
        sigma: noise level in pixel units, above 0.
        cells: g, grid cells along a side.

    Raises:
        ValueError: `sigma`, `cells` or the number of columns of `noise` is out of range.
    """
    channels, height, width = image.shape
    _check(noise, channels * cells * cells, sigma)
    grid = grid_segments(height, width, cells).to(image.device)
    rows, columns = grid[:, 0] // cells, grid[0] % cells
    amplitudes = noise.reshape(-1, channels, cells, cells).to(image.dtype)
    spread = amplitudes.index_select(2, rows).index_select(3, columns)
    images = (image + sigma * spread).clamp(0, 1)
    means = (
        _averages(rows, cells) @ (images - image).to(torch.float64) @ _averages(columns, cells).mT
    )
    return Perturbed(images, means.flatten(1))


def gaussian_fit(features: Tensor, responses: Tensor, *, ridge: float = 1e-3) -> GaussianFit:
    """Return the least-squares surrogate of `responses`, with an unpenalised intercept.

    Minimises ||y - b - u w||^2 + lambda ||w||^2, lambda = `ridge` times the mean diagonal of the
    centred Gram matrix that is solved: the M x M one (dual) where M <= d, else the d x d one.
    `ridge` = 0 is exact: least squares, or the interpolant of smallest norm where M <= d.

    Sampling variance. Leaving row i out changes the weights by A_i r_i: A_i what a unit change of
    response i does to them, r_i the error at row i of the surrogate fitted without it, both known
    in closed form even where the surrogate interpolates. The jackknife sum_i (A_i r_i)^2 is too
    large by 1 / (1 - rank / max(M - 1, d)) for isotropic features, whether the error is nonlinear
    response or, at M < d, the coordinates that the sample does not span; it is multiplied by

        1 - df / max(M - 1, d),   df = the effective number of weights (trace of the hat matrix).

    At M < d this is the variance around recovery * w, not around w.

    Args:
        features: [M, d], displacements.
        responses: [M, T].
        ridge: relative ridge strength, at least 0.

    Raises:
        ValueError: negative `ridge`, or fewer than 3 rows.
        torch.linalg.LinAlgError: `ridge` is 0 and the centred features have rank below
            min(M - 1, d).
    """
    if not ridge >= 0:
        raise ValueError(f"ridge must be at least 0, found {ridge}")
    if len(features) < 3:
        raise ValueError(f"a fit needs at least 3 perturbed copies, found {len(features)}")
    y = responses.to(torch.float64)
    # Measured from the first row, a constant response is zero to the bit, and so is all below.
    origin = y[:1]
    y = y - origin
    y_mean = y.mean(0)
    solve = _dual if len(features) <= features.shape[1] else _primal
    weights, variance, df = solve(features, y - y_mean, ridge)
    feature_mean = features.to(torch.float64).mean(0)
    intercept = origin[0] + y_mean - feature_mean @ weights
    rows, columns = features.shape
    optimism = max(0.0, 1 - df / max(rows - 1, columns))
    return GaussianFit(weights, variance * optimism, intercept, df / columns)


def noise_corrected(weights: Tensor, variance: Tensor) -> Tensor:
    """Return sqrt(max(w^2 - var, 0)), elementwise: |w| with its noise power taken off.

    E[w^2] is the squared true weight plus the variance, so w^2 - var is unbiased for the square;
    the root and the floor at 0 leave a bias (0.34 se at a true 0, where |w| has 0.80 se, and -0.3
    se at a true weight of 1 to 2 se). The expected L1 norm of pure noise is
    `raybench.kernels.noise.noise_floor` of the same variance.
    """
    return (weights.square() - variance).clamp_min(0).sqrt()


def _dual(features: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor, float]:
    """Return weights, jackknife variance and df from the M x M Gram matrix of centred rows."""
    rows, columns = features.shape
    blocks = range(0, columns, _BLOCK)
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=features.device)
    for start in blocks:
        part = _centred(features[:, start : start + _BLOCK])
        gram += part @ part.mT
    scale = gram.diagonal().mean()
    penalty = ridge * scale
    # Centring makes the all-ones vector a null vector of the Gram matrix. Adding `scale` along it
    # makes the matrix invertible without a ridge; taken off again, the inverse is the one on the
    # complement, which gives left-out errors (B y)_i / B_ii (Allen's PRESS in dual form).
    gram.diagonal().add_(penalty)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + scale / rows))
    inverse -= 1 / (rows * (penalty + scale))
    left_out = inverse @ y / inverse.diagonal()[:, None]
    weights = y.new_empty(columns, y.shape[1])
    variance = torch.empty_like(weights)
    for start in blocks:
        influence = _centred(features[:, start : start + _BLOCK]).mT @ inverse
        weights[start : start + _BLOCK] = influence @ y
        variance[start : start + _BLOCK] = influence.square() @ left_out.square()
    return weights, variance, rows - 1 - float(penalty * inverse.trace())


def _primal(features: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor, float]:
    """Return weights, jackknife variance and df from the d x d Gram matrix."""
    centred = _centred(features)
    gram = centred.mT @ centred
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    influence = torch.cholesky_solve(centred.mT, torch.linalg.cholesky(gram))
    weights = influence @ y
    leverage = (influence.mT * centred).sum(1)
    # With as many weights as rows the left-out error is 0 / 0; the floor keeps it finite.
    room = (1 - 1 / len(features) - leverage).clamp_min(1e-12)
    left_out = (y - centred @ weights) / room[:, None]
    return weights, influence.square() @ left_out.square(), float(leverage.sum())


def _centred(features: Tensor) -> Tensor:
    values = features.to(torch.float64)
    return values - values.mean(0)


def _averages(ids: Tensor, count: int) -> Tensor:
    """Return [count, L] float64: row j averages the positions whose id is j."""
    member = (ids == torch.arange(count, device=ids.device)[:, None]).to(torch.float64)
    return member / member.sum(1, keepdim=True)


def _check(noise: Tensor, columns: int, sigma: float) -> None:
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, found {sigma}")
    if noise.ndim != 2 or noise.shape[1] != columns:
        raise ValueError(f"noise must have shape [M, {columns}], found {tuple(noise.shape)}")
