"""Segmentations: which interpretable feature each pixel of an image belongs to.

A segmentation is [H, W] int64 with values 0 .. S-1, every value present. It depends on the image
alone (never on a model), so that all models compared see the same features.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["grid_segments", "quickshift_segments"]


def grid_segments(height: int, width: int, cells: int) -> Tensor:
    """Return a `cells` x `cells` grid over the image, [H, W] int64, rows first.

    Sides that `cells` does not divide get cells of two sizes that differ by one pixel.

    Raises:
        ValueError: fewer than one cell, or more cells than pixels along a side.
    """
    if not 1 <= cells <= min(height, width):
        raise ValueError(
            f"cells must lie in 1..{min(height, width)} for {height}x{width} images, found {cells}"
        )
    rows = torch.arange(height) * cells // height
    columns = torch.arange(width) * cells // width
    return rows[:, None] * cells + columns[None, :]


def quickshift_segments(image: Tensor, kernel_size: float, rng: int) -> Tensor:
    """Return quickshift superpixels [H, W] int64 of `image` [C, H, W] in [0, 1].

    The settings other than `kernel_size` are those of marcotcr/lime (max_dist 200, ratio 0.2; spec
    01 section 1.1 step 1). Grey images are replicated to three channels. `rng` seeds the tie
    breaking noise; lime's own ``random_seed`` no longer reaches scikit-image, this one does.
    """
    # scikit-image is needed for superpixels alone; grids must work on a machine with torch only.
    from skimage.segmentation import quickshift

    pixels = image.detach().cpu().to(torch.float64).permute(1, 2, 0).numpy()
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    labels = quickshift(pixels, kernel_size=kernel_size, max_dist=200, ratio=0.2, rng=rng)
    _, dense = np.unique(labels, return_inverse=True)
    return torch.from_numpy(dense.reshape(labels.shape).astype(np.int64))
