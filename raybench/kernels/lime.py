"""LIME for images: which parts of an image move a black-box model's answer.

Ribeiro, Singh, Guestrin, "Why Should I Trust You?" (KDD 2016); the reading is that of the
marcotcr/lime package (spec 01 section 1.1), whose weights this reproduces on equal masks.

    masks = bernoulli_masks(draws, samples)
    scores = perturbed_scores(model.logits, image, fill, segments, masks, batch=250)
    fit = explain(masks, prob_pred(scores, label)[:, None])
    brittleness = fit.weights.abs().sum() / segments.max().add(1)
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raybench.kernels.batches import in_batches
from raybench.kernels.compose import compose, equal_rows
from raybench.kernels.ridge import RidgeFit, weighted_ridge

__all__ = ["KERNEL_WIDTH", "bernoulli_masks", "explain", "perturbed_scores", "proximity"]

KERNEL_WIDTH = 0.25  # marcotcr/lime's default for images


def bernoulli_masks(tosses: np.ndarray) -> Tensor:
    """Return masks [M, S] bool: fair independent `tosses`, with row 0 the original image."""
    masks = torch.from_numpy(tosses.copy())
    masks[0] = True
    return masks


def proximity(masks: Tensor) -> Tensor:
    """Return the weight of each mask [M] float64, in (0, 1].

    pi = sqrt(exp(-D^2 / 0.25^2)), D = 1 - sqrt(m / S) the cosine distance to the all-ones mask and
    m the number of ones; an all-zero mask has D = 1 (spec 01 section 1.1 steps 5 and 6).
    """
    share = masks.to(torch.float64).mean(1)
    distance = 1 - share.sqrt()
    return torch.exp(-distance.square() / (2 * KERNEL_WIDTH**2))


def perturbed_scores(
    scores: Callable[[Tensor], Tensor],
    image: Tensor,
    fill: Tensor,
    segments: Tensor,
    masks: Tensor,
    *,
    batch: int,
) -> Tensor:
    """Return the model's scores of every masked copy, [M, K] float64.

    Copies are made and asked `batch` at a time. Batches never span images, so that what one image
    gets cannot depend on its neighbours, its shard or its worker. A batch that does not fit the
    device's memory is halved (`in_batches`), for this image only.

    Args:
        scores: images [B, C, H, W] -> logits or log-probabilities [B, K].
        image: [C, H, W].
        fill: [C, H, W], shown where a mask is 0.
        segments: [H, W] int64.
        masks: [M, S] bool.
        batch: largest number of copies in one call.
    """
    run = equal_rows(segments)

    def ask(part: slice) -> Tensor:
        copies = compose(image, fill, segments, masks[part], run=run)
        return scores(copies).detach().to(torch.float64)

    return torch.cat(in_batches(len(masks), batch, ask))


def explain(masks: Tensor, responses: Tensor, *, alpha: float = 1.0) -> RidgeFit:
    """Return the local surrogate of `responses` [M, T]: weights [S, T], intercept and R2 [T].

    Weighted ridge on the mask bits with lime's proximity weights; `alpha` = 1 is lime's default.
    """
    return weighted_ridge(masks.to(torch.float64), responses, proximity(masks), alpha)
