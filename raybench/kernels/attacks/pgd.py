"""Projected gradient descent (Madry et al. 2018, https://arxiv.org/abs/1706.06083; spec 02 s. 2.3).

    >>> noise = torch.rand(images.shape, generator=keyed) * 2 - 1
    >>> adversarial = pgd(
    ...     model.logits, images, labels, eps=8 / 255, step_size=2 / 255, steps=10, noise=noise
    ... )

Legend: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["NORMS", "pgd"]

NORMS = ("linf",)


def pgd(
    logits_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    norm: str = "linf",
    random_start: bool = True,
    noise: Tensor | None = None,
    targeted: bool = False,
    keep_best: bool = True,
) -> Tensor:
    """Return adversarial images [N, C, H, W] in [0, 1], each within `eps` of its original.

    Every step moves along the sign of the gradient of the cross-entropy *summed* over the batch,
    so that no image's step depends on another image. Of all iterates (the start included) each
    image keeps its first success, or else the one with the best loss.

    Args:
        logits_fn: maps images to logits [N, K], differentiable in the images.
        images: originals, float32 in [0, 1].
        labels: true classes [N] int64; the wanted classes where `targeted`.
        eps: radius in pixel units; at least 0.
        step_size: step in pixel units; above 0.
        steps: number of gradient steps; at least 1.
        norm: one of `NORMS`.
        random_start: begin at ``images + eps * noise``, clipped, instead of at ``images``.
        noise: uniform in [-1, 1], shaped like `images`; the caller draws it (keyed by run seed and
            image), so that a result never depends on batching. Required by `random_start`.
        targeted: descend towards `labels` instead of ascending away from them.
        keep_best: where False, the last iterate is returned. That saves one of ``steps + 1``
            forward passes and suits adversarial training; an evaluation keeps it True, since the
            last iterate can be weaker than an earlier one.

    Raises:
        ValueError: a norm that is not in `NORMS`, a setting out of range, or noise that is
            missing or misshapen.
    """
    _check(images, labels, eps=eps, step_size=step_size, steps=steps, norm=norm)
    if random_start and noise is None:
        raise ValueError("random_start needs noise: pass a tensor uniform in [-1, 1]")
    images = images.detach()
    lower = (images - eps).clamp_min(0)
    upper = (images + eps).clamp_max(1)
    current = images.detach()
    if random_start and noise is not None:
        if noise.shape != images.shape:
            raise ValueError(
                f"noise must have shape {tuple(images.shape)}, is {tuple(noise.shape)}"
            )
        current = torch.clamp(images + eps * noise.detach(), lower, upper)

    sign = -1.0 if targeted else 1.0
    best = current
    best_gain = torch.full(labels.shape, -torch.inf, device=images.device)
    done = torch.zeros_like(labels, dtype=torch.bool)
    for step in range(steps + 1):
        last = step == steps
        if last and not keep_best:
            break
        with torch.set_grad_enabled(not last):
            current.requires_grad_(not last)
            logits = logits_fn(current)
            losses = sign * functional.cross_entropy(logits, labels, reduction="none")
        if keep_best:
            with torch.no_grad():
                predicted = logits.argmax(1)
                success = predicted == labels if targeted else predicted != labels
                better = ~done & (success | (losses.detach() > best_gain))
                best = torch.where(better.view(-1, 1, 1, 1), current.detach(), best)
                best_gain = torch.where(better, losses.detach().to(best_gain.dtype), best_gain)
                done = done | success
        if not last:
            # Ones as weights make it the gradient of the sum, with gradients off outside as well.
            (gradient,) = torch.autograd.grad(losses, current, torch.ones_like(losses))
            moved = current.detach() + step_size * gradient.sign()
            current = torch.clamp(moved, lower, upper)
    return best if keep_best else current


def _check(
    images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int, norm: str
) -> None:
    rules = (
        (norm in NORMS, f"norm must be one of {', '.join(NORMS)}; found {norm!r}"),
        (images.ndim == 4, f"images must be [N, C, H, W]; found shape {tuple(images.shape)}"),
        (
            labels.shape == images.shape[:1],
            f"labels must be [{len(images)}]; found shape {tuple(labels.shape)}",
        ),
        (eps >= 0, f"eps must be at least 0; found {eps}"),
        (step_size > 0, f"step_size must be above 0; found {step_size}"),
        (steps >= 1, f"steps must be at least 1; found {steps}"),
    )
    for holds, text in rules:
        if not holds:
            raise ValueError(text)
