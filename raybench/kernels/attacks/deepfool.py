"""DeepFool: steps to the nearest boundary of the linearised model (spec 02 section 2.6).

    >>> near = deepfool(model.logits, images, labels, norm="l2")
    >>> lp_norm(near.images - images, "l2").median()

Legend: N images, B of them still active, C channels, H height, W width, K classes, J rivals of the
label, D = C*H*W.
"""

import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, Scores, check_inputs, succeeded

__all__ = ["deepfool"]

_NORMS = ("l2", "linf")
_BEYOND = 1e-4  # logits past the linearised boundary


def deepfool(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "l2",
    steps: int = 50,
    overshoot: float = 0.02,
    candidates: int = 10,
) -> AttackResult:
    """Return near successes (https://arxiv.org/abs/1511.04599; spec 02 section 2.6).

    With f_k = z_k - z_label and w_k its gradient, each step goes to the nearest of the hyperplanes
    f_k + w_k r = 0 and 1e-4 logits beyond: r = (|f_k| + 1e-4) / ||w_k||_2 * w_k / ||w_k||_2, in
    linf (|f_k| + 1e-4) / ||w_k||_1 * sign(w_k). The image is x + (1 + overshoot) * sum r, clipped;
    the sum is not. An image within this excess of a boundary and yet unfooled (an exact tie, or
    logits too large to show 1e-4) has its excess doubled, so that it never rests there.

    Untargeted. The first success is returned, an upper bound on the distance; without one, the
    original. An image without a gradient to any rival is left at once.

    Args:
        scores: differentiable; asked once for each step, with a backward pass for each rival.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, the true classes.
        norm: l2 or linf.
        steps: at least 1.
        overshoot: share by which the sum of steps is stretched; at least 0.
        candidates: classes in play, the label among them: the highest logits of the originals; at
            least 2.

    Returns:
        An iteration is a step; found_at 0 is the original image. The gradients count rivals.

    Raises:
        ValueError: a setting out of range or inputs that do not fit.
    """
    if norm not in _NORMS:
        raise ValueError(f"norm must be one of {', '.join(_NORMS)}; found {norm!r}")
    check_inputs(images, labels, steps=steps)
    if not overshoot >= 0:
        raise ValueError(f"overshoot must be at least 0; found {overshoot}")
    if not candidates >= 2:
        raise ValueError(f"candidates must be at least 2; found {candidates}")

    images = images.detach()
    best = images.clone()
    found_at = torch.full_like(labels, -1)
    queries, gradients = torch.zeros_like(labels), torch.zeros_like(labels)
    zero_gradient = torch.zeros_like(labels, dtype=torch.bool)
    active = torch.arange(len(labels), device=labels.device)
    # In float64, so that steps below the resolution of a pixel add up.
    total = torch.zeros_like(images, dtype=torch.float64)
    excess = torch.full(labels.shape, _BEYOND, dtype=torch.float64, device=images.device)
    rivals = labels[:, None]
    shown = images
    for step in range(steps + 1):
        if not len(active):
            break
        last = step == steps
        with torch.set_grad_enabled(not last):
            leaf = shown.clone().requires_grad_(not last)
            answer = scores(leaf)
        queries[active] += 1
        fooled = succeeded(answer.detach(), labels[active])
        found_at[active[fooled]] = step
        best[active[fooled]] = shown[fooled]
        if last or fooled.all():
            break
        if step == 0:
            rivals = _rivals(answer.detach(), labels, candidates)

        # The fooled leave between the passes: no gradient of theirs is asked for.
        stays = ~fooled
        active = active[stays]
        lead, slopes = _linearise(answer, leaf, stays, labels[active], rivals[active])
        gradients[active] += slopes.shape[1]
        zero_gradient[active] |= (slopes == 0).all(2).any(1)
        length = slopes.abs().sum(2) if norm == "linf" else slopes.square().sum(2).sqrt()
        distance, nearest = torch.where(length > 0, lead / length, torch.inf).min(1)
        row = torch.arange(len(active), device=active.device)
        lead, length, slope = (values[row, nearest] for values in (lead, length, slopes))
        excess[active] = torch.where(lead <= excess[active], 2 * excess[active], _BEYOND)
        direction = slope.sign() if norm == "linf" else slope / length[:, None]
        move = ((lead + excess[active]) / length)[:, None] * direction

        slanted = distance.isfinite()
        active = active[slanted]
        total[active] += move[slanted].view_as(total[active])
        shown = (images[active] + (1 + overshoot) * total[active]).clamp(0, 1).to(images.dtype)
    found = found_at >= 0
    return AttackResult(
        images=best,
        found=found,
        found_at=found_at,
        found_queries=torch.where(found, found_at + 1, -1),
        queries=queries,
        gradients=gradients,
        zero_gradient=zero_gradient,
    )


def _rivals(answer: Tensor, labels: Tensor, candidates: int) -> Tensor:
    """Return the classes [N, J] of highest logits, without the label."""
    classes = answer.shape[1]
    if classes < 2:
        raise ValueError(f"scores must be of at least 2 classes; found {classes}")
    others = answer.scatter(1, labels[:, None], -torch.inf)
    return others.topk(min(candidates, classes) - 1, dim=1).indices


def _linearise(
    answer: Tensor, leaf: Tensor, stays: Tensor, labels: Tensor, rivals: Tensor
) -> tuple[Tensor, Tensor]:
    """Return leads z_label - z_k [B, J] and gradients of z_k - z_label [B, J, D], float64.

    One backward pass for each rival, over the whole batch; rows not in `stays` are left out.
    """
    with torch.enable_grad():
        rows = answer[stays]
        rise = rows.gather(1, rivals) - rows.gather(1, labels[:, None])
        slopes = []
        for rival in range(rivals.shape[1]):
            # A model that cuts the graph has a gradient of zero, which is reported.
            slope = torch.zeros_like(leaf)
            if rise.requires_grad:
                (slope,) = torch.autograd.grad(
                    rise[:, rival].sum(),
                    leaf,
                    retain_graph=rival + 1 < rivals.shape[1],
                    allow_unused=True,
                    materialize_grads=True,
                )
            slopes.append(slope[stays].flatten(1).to(torch.float64))
    return -rise.detach().to(torch.float64), torch.stack(slopes, dim=1)
