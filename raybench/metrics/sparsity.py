"""How concentrated the weights of an explanation are: three-valued masks, areas, Gini, Hoyer.

Shapes: S segments, H height, W width. These are descriptions of one explanation at one threshold;
an absolute threshold widens the zero area of every less confident model (spec 01 section 1.5).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["area_fractions", "gini", "hoyer", "mask_values"]


def _vector(weights: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"weights must be a vector of at least one finite number, found shape {values.shape}"
        )
    return values


def mask_values(
    weights: ArrayLike,
    top: int = 10,
    min_weight: float = 0.01,
    relative: float | None = None,
) -> NDArray[np.int8]:
    """Return the sign of each weight that counts, else 0: [S] in {-1, 0, 1}.

    A weight counts if it is among the `top` largest in magnitude (earlier segments win ties) and
    reaches the threshold: what ``get_image_and_mask(positive_only=False)`` of marcotcr/lime shows.

    Args:
        weights: signed weights [S].
        top: how many segments may count (m of spec 01 section 1.5).
        min_weight: least magnitude that counts.
        relative: if given, the least magnitude is this share of the largest one instead.

    Raises:
        ValueError: weights that are no finite vector, or a `top` below 1.
    """
    values = _vector(weights)
    if top < 1:
        raise ValueError(f"top must be at least 1, found {top}")
    size = np.abs(values)
    least = min_weight if relative is None else relative * size.max()
    kept = np.argsort(-size, kind="stable")[:top]
    mask = np.zeros(values.size, dtype=np.int8)
    mask[kept] = np.where(size[kept] >= least, np.sign(values[kept]), 0)
    return mask


def area_fractions(mask: ArrayLike, segments: ArrayLike) -> tuple[float, float, float]:
    """Return the shares of the image that are negative, zero and positive; they sum to one.

    Args:
        mask: value of each segment [S] in {-1, 0, 1}.
        segments: segment of each pixel [H, W], integers in 0 .. S-1.
    """
    pixels = np.asarray(mask)[np.asarray(segments)]
    return (float((pixels < 0).mean()), float((pixels == 0).mean()), float((pixels > 0).mean()))


def gini(weights: ArrayLike) -> float:
    """Return the Gini index of the magnitudes: 0 if all are equal, (S - 1) / S if one is not zero.

    Weights that are all zero are equal, so the index is 0 (Hurley and Rickard,
    https://arxiv.org/abs/0811.4706).
    """
    size = np.sort(np.abs(_vector(weights)))
    total = size.sum()
    if total == 0:
        return 0.0
    order = np.arange(1, size.size + 1)
    index = ((2 * order - size.size - 1) * size).sum() / (size.size * total)
    return float(max(index, 0.0))  # equal magnitudes may round to just below


def hoyer(weights: ArrayLike) -> float:
    """Return Hoyer's sparseness (sqrt(S) - |w|_1 / |w|_2) / (sqrt(S) - 1): 0 even, 1 one segment.

    Weights that are all zero are even, so the value is 0; a single segment that is not zero gives 1
    (Hoyer 2004, https://www.jmlr.org/papers/v5/hoyer04a.html).
    """
    size = np.abs(_vector(weights))
    largest = size.max()
    if largest == 0:
        return 0.0
    if size.size == 1:
        return 1.0
    size = size / largest  # squares of tiny weights would vanish
    root = np.sqrt(size.size)
    return float(np.clip((root - size.sum() / np.sqrt((size**2).sum())) / (root - 1), 0.0, 1.0))
