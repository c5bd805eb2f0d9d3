"""SLIC superpixels: compact segments of nearly equal size, for images of 224 pixels and the like.

Same conventions as `raybench.kernels.segments`: [H, W] int64 with values 0 .. S-1, every value
present, a function of the image alone.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["slic_segments"]


def slic_segments(image: Tensor, count: int) -> Tensor:
    """Return about `count` SLIC superpixels [H, W] int64 of `image` [C, H, W] in [0, 1].

    Achanta et al. 2012 (https://doi.org/10.1109/TPAMI.2012.120) as in scikit-image, compactness 10
    in CIELAB, every segment connected. There is no randomness. The number found differs from
    `count` by up to a quarter or so: seeds lie on a regular grid and small parts are merged; 64 to
    100 suit 224 x 224 pixels. Grey images are replicated to three channels.

    Raises:
        ValueError: `count` is below 1 or above the number of pixels.
    """
    # scikit-image is needed for superpixels alone; grids must work on a machine with torch only.
    from skimage.segmentation import slic

    pixels_in_image = image.shape[1] * image.shape[2]
    if not 1 <= count <= pixels_in_image:
        raise ValueError(
            f"count must lie in 1..{pixels_in_image} for {image.shape[1]}x{image.shape[2]} "
            f"images, found {count}"
        )
    pixels = image.detach().cpu().to(torch.float64).permute(1, 2, 0).numpy()
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    labels = slic(pixels, n_segments=count, compactness=10, start_label=0, channel_axis=-1)
    _, dense = np.unique(labels, return_inverse=True)
    return torch.from_numpy(dense.reshape(labels.shape).astype(np.int64))
