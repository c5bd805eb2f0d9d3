"""Perturbed copies of an image: segments switched off are replaced by a fill."""

import torch
from torch import Tensor

__all__ = ["compose", "constant_fill", "segment_mean_fill"]


def segment_mean_fill(image: Tensor, segments: Tensor) -> Tensor:
    """Return [C, H, W]: every pixel replaced by its segment's mean colour (lime's default fill).

    Sums are taken in float64, so that the fill does not depend on the order of pixels.
    """
    flat = segments.reshape(-1)
    count = int(flat.max()) + 1
    values = image.reshape(image.shape[0], -1).to(torch.float64)
    sums = values.new_zeros(image.shape[0], count).index_add_(1, flat, values)
    means = sums / torch.bincount(flat, minlength=count)
    return means[:, flat].reshape(image.shape).to(image.dtype)


def constant_fill(image: Tensor, value: float) -> Tensor:
    """Return [C, H, W] of `value`."""
    return torch.full_like(image, value)


def compose(image: Tensor, fill: Tensor, segments: Tensor, masks: Tensor) -> Tensor:
    """Return copies [M, C, H, W] of `image` where mask 0 segments show `fill`.

    Pixels are selected, not blended, so that kept ones are exact to the bit.

    Args:
        image: [C, H, W].
        fill: [C, H, W].
        segments: [H, W] int64 in 0 .. S-1.
        masks: [M, S] bool, True keeps the segment.
    """
    keep = masks.index_select(1, segments.reshape(-1)).reshape(-1, 1, *segments.shape)
    return torch.where(keep, image, fill)
