"""Random noise as an attack: what any attack worth its name must beat (spec 03 section 3.6).

    >>> keys = torch.from_numpy(sample_keys(seed, "noise", sample_ids))
    >>> result = random_noise(model.logits, images, labels, keys=keys, norm="linf", eps=8 / 255)

Legend: N images, B of them still active, C channels, H height, W width, K classes, D = C*H*W.
"""

import torch
from torch import Tensor

from raybench.kernels.attacks.common import (
    AttackResult,
    Scores,
    ball_start,
    check_inputs,
    expand,
    margin,
    succeeded,
)
from raybench.kernels.counter import signs

__all__ = ["random_noise"]


def random_noise(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    tries: int = 100,
    corners: bool = False,
    targeted: bool = False,
) -> AttackResult:
    """Return the first of `tries` random perturbations that succeeds (spec 03 section 3.6).

    The original is asked about first, as iteration 0. Without success the image comes back with
    the smallest margin seen.

    Args:
        scores: images [B, C, H, W] in [0, 1] -> logits or log-probabilities [B, K].
        images: originals [N, C, H, W] float32 in [0, 1].
        labels: true classes [N] int64; the wanted ones where `targeted`.
        keys: [N] int64, see `counter.sample_keys`.
        norm: linf, l2 or l1.
        eps: radius, above 0.
        tries: perturbations of each image, at least 1.
        corners: fair signs of one size, on the sphere of radius `eps` (the ball's corners in
            linf), instead of draws uniform in the ball. Both are clipped to [0, 1] thereafter.
        targeted: look for the class in `labels` instead of away from it.

    Raises:
        ValueError: a setting out of range, or misshapen input.
    """
    check_inputs(images, labels, norm=norm, eps=eps, tries=tries)
    images = images.detach()
    count = images.shape[1:].numel()
    corner = eps / {"linf": 1.0, "l2": count**0.5, "l1": float(count)}[norm]
    best = images.clone()
    found_at = torch.full(labels.shape, -1, dtype=torch.int64, device=images.device)
    queries = torch.zeros_like(found_at)
    smallest = torch.full(labels.shape, torch.inf, dtype=torch.float64, device=images.device)
    rows = torch.arange(len(images), device=images.device)

    for attempt in range(tries + 1):
        if len(rows) == 0:
            break
        points = images[rows]
        if attempt > 0 and corners:
            noise = corner * signs(keys[rows], attempt, count).view_as(points)
            points = (points + noise).clamp(0, 1)
        elif attempt > 0:
            points = (points + ball_start(keys[rows], attempt, points, norm, eps)).clamp(0, 1)
        with torch.no_grad():
            answer = scores(points)
        queries[rows] += 1
        reached = succeeded(answer, labels[rows], targeted=targeted)
        height = margin(answer, labels[rows], targeted=targeted).to(torch.float64)
        better = reached | (height < smallest[rows])
        best[rows] = torch.where(expand(better), points, best[rows])
        smallest[rows] = torch.where(better, height, smallest[rows])
        found_at[rows[reached]] = attempt
        rows = rows[~reached]

    found = found_at >= 0
    return AttackResult(
        images=best,
        found=found,
        found_at=found_at,
        found_queries=torch.where(found, found_at + 1, -1),
        queries=queries,
        gradients=torch.zeros_like(queries),
        zero_gradient=torch.zeros_like(found),
    )
