"""Fills that are neither a constant nor a mean: what a switched-off segment shows.

fill = blur_fill(image, sigma_pixels=4.0)
copies = compose(image, fill, segments, masks)
"""

import math

import torch
from torch import Tensor

__all__ = ["blur_fill"]

_TRUNCATE = 4.0  # standard deviations at which the kernel ends: scipy.ndimage's default


def blur_fill(image: Tensor, sigma_pixels: float) -> Tensor:
    """Return [C, H, W]: `image` under a Gaussian blur, with its edges reflected.

    Reflection is about the outer edge of the border pixels (d c b a | a b c d | d c b a), at any
    width of the blur, so that a blur keeps constants and the mean: scipy.ndimage.gaussian_filter
    with its defaults, on each channel. Computed in float64; values in [0, 1] stay there.

    Args:
        image: [C, H, W].
        sigma_pixels: standard deviation of the Gaussian, in pixels.

    Raises:
        ValueError: `sigma_pixels` is not a positive number.
    """
    if not (sigma_pixels > 0 and math.isfinite(sigma_pixels)):
        raise ValueError(f"sigma_pixels must be a number above 0, found {sigma_pixels}")
    rows = _blur_matrix(image.shape[1], sigma_pixels).to(image.device)
    columns = _blur_matrix(image.shape[2], sigma_pixels).to(image.device)
    return (rows @ image.to(torch.float64) @ columns.mT).to(image.dtype)


def _blur_matrix(length: int, sigma: float) -> Tensor:
    """Return [length, length] float64: row i holds the weights of output i on the inputs."""
    radius = int(_TRUNCATE * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.exp(-0.5 * (offsets.to(torch.float64) / sigma).square())
    taps /= taps.sum()
    # The reflected line has period 2 * length; its second half runs backwards.
    place = (torch.arange(length)[:, None] + offsets[None, :]) % (2 * length)
    place = torch.minimum(place, 2 * length - 1 - place)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    return matrix.scatter_add_(1, place, taps.expand(length, -1))
