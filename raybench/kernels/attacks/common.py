"""What the attacks share: their result, their losses, their balls, and the step of a batch.

The contract (spec 00 section 0.4), kept by every attack of this folder:

- It is a function ``attack(scores, images, labels, *, ..., targeted=False) -> AttackResult``, where
  `scores` answers images [B, C, H, W] with logits [B, K]. `labels` [N] int64 are the true classes,
  or the wanted ones where `targeted`. Images are float32 in [0, 1] and not yet misclassified.
- Every image is on its own: steps, random draws (keyed, `kernels.counter`), stopping and the choice
  of the best iterate use nothing of its neighbours. Gradients are of sums over the batch.
- The best iterate is returned: the first success of an attack within a budget, the nearest success
  of one that minimises a norm; without success, the iterate with the best loss (budget) or the
  original image (minimal norm).
- Images that are done leave the batch, so that no pass is spent on them.

Legend: N images, B of them still active, C channels, H height, W width, K classes, D = C*H*W.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from raybench.kernels.counter import normal, uniform

__all__ = [
    "LOSSES",
    "NORMS",
    "AttackResult",
    "Scores",
    "ball_start",
    "check_inputs",
    "dlr",
    "expand",
    "gradient_step",
    "lp_norm",
    "margin",
    "project",
    "succeeded",
    "targeted_dlr",
]

NORMS = ("linf", "l2", "l1")

Scores = Callable[[Tensor], Tensor]
"""Images [B, C, H, W] -> logits [B, K]; differentiable where the attack says it needs gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackResult:
    """What an attack made of N images, on their device.

    Attributes:
        images: [N, C, H, W] float32, the best iterate of each.
        found: [N] bool, whether the attack saw its goal reached at that iterate. The framework
            asks the model anew and believes only that.
        found_at: [N] int64, iteration of the first success, 0 the start; -1 where there was none.
        found_queries: [N] int64, images asked about up to and with the first success; -1 for none.
        queries: [N] int64, images asked about in all (forward passes).
        gradients: [N] int64, gradients taken (backward passes).
        zero_gradient: [N] bool, whether a gradient was zero throughout: a sign of masking.
        losses: [N, T] float64, best loss up to each iteration, or None.
    """

    images: Tensor
    found: Tensor
    found_at: Tensor
    found_queries: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradient: Tensor
    losses: Tensor | None = None


def check_inputs(
    images: Tensor, labels: Tensor, *, norm: str | None = None, **positive: float
) -> None:
    """Raise ValueError unless shapes fit, `norm` is known and each of `positive` is above 0."""
    rules = [
        (norm is None or norm in NORMS, f"norm must be one of {', '.join(NORMS)}; found {norm!r}"),
        (images.ndim == 4, f"images must be [N, C, H, W]; found shape {tuple(images.shape)}"),
        (
            labels.shape == images.shape[:1],
            f"labels must be [{len(images)}]; found shape {tuple(labels.shape)}",
        ),
    ]
    rules += [
        (value > 0, f"{name} must be above 0; found {value}") for name, value in positive.items()
    ]
    for holds, text in rules:
        if not holds:
            raise ValueError(text)


def expand(values: Tensor) -> Tensor:
    """Return values [N] as [N, 1, 1, 1], to go with images."""
    return values.view(-1, 1, 1, 1)


def succeeded(scores: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Return [N] bool: the predicted class is the wanted one, or is no longer the true one."""
    predicted = scores.argmax(1)
    return predicted == labels if targeted else predicted != labels


def margin(scores: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Return [N]: how far the goal is, negative where it is reached.

    The score of the true class less the largest other; where `targeted`, the largest other less the
    wanted. Others are masked with -inf, since scores may be of any size.
    """
    own = scores.gather(1, labels[:, None])[:, 0]
    other = scores.scatter(1, labels[:, None], -torch.inf).amax(1)
    return other - own if targeted else own - other


def cross_entropy(scores: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Return [N]: the cross-entropy, to ascend; where `targeted`, its negative."""
    loss = functional.cross_entropy(scores, labels, reduction="none")
    return -loss if targeted else loss


def negative_margin(scores: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Return [N]: the negative of `margin`, to ascend."""
    return -margin(scores, labels, targeted=targeted)


def dlr(scores: Tensor, labels: Tensor, *, targeted: bool = False) -> Tensor:
    """Return [N]: the difference of logits ratio, to ascend (Croce and Hein 2020, spec 02 s. 2.8).

    Raises:
        ValueError: fewer than three classes, or `targeted`, which is `targeted_dlr`.
    """
    if targeted:
        raise ValueError("a targeted DLR loss needs both classes: use targeted_dlr")
    if scores.shape[1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes; found {scores.shape[1]}")
    ordered = scores.sort(1, descending=True).values
    return -margin(scores, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def targeted_dlr(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return [N]: the targeted DLR loss of true `labels` and wanted `targets`, to ascend.

    Raises:
        ValueError: fewer than four classes.
    """
    if scores.shape[1] < 4:
        raise ValueError(f"the targeted DLR loss needs at least 4 classes; found {scores.shape[1]}")
    ordered = scores.sort(1, descending=True).values
    own = scores.gather(1, labels[:, None])[:, 0]
    wanted = scores.gather(1, targets[:, None])[:, 0]
    scale = ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12
    return -(own - wanted) / scale


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ce": cross_entropy,
    "margin": negative_margin,
    "dlr": dlr,
}
"""Losses by name: ``loss(scores, labels, targeted=...) -> [N]``, each to ascend."""


def gradient_step(
    scores: Scores, images: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [N, K], losses [N] and the gradient of the sum of losses at `images`.

    One forward and one backward pass; works where gradients are switched off outside.
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        answer = scores(leaf)
        values = loss(answer)
        # A model that cuts the graph has a gradient of zero, which is for the caller to report.
        if not values.requires_grad:
            return answer.detach(), values.detach(), torch.zeros_like(images)
        (gradient,) = torch.autograd.grad(
            values.sum(), leaf, allow_unused=True, materialize_grads=True
        )
    return answer.detach(), values.detach(), gradient


def lp_norm(delta: Tensor, norm: str) -> Tensor:
    """Return the norm [N] float64 of perturbations [N, ...]: linf, l2, l1, or l0.

    l0 counts pixels (positions), all channels together.
    """
    flat = delta.flatten(1).to(torch.float64)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        return flat.square().sum(1).sqrt()
    if norm == "l1":
        return flat.abs().sum(1)
    assert norm == "l0", norm
    return (delta != 0).flatten(2).any(1).sum(1).to(torch.float64)


def project(delta: Tensor, norm: str, eps: float) -> Tensor:
    """Return the nearest perturbations [N, C, H, W] of at most `eps` in `norm` (l1: Duchi 2008)."""
    if norm == "linf":
        return delta.clamp(-eps, eps)
    flat = delta.flatten(1)
    if norm == "l2":
        size = flat.square().sum(1).sqrt()
        return delta * expand((eps / size.clamp_min(1e-12)).clamp_max(1.0))
    assert norm == "l1", norm
    magnitude = flat.abs()
    ordered = magnitude.sort(1, descending=True).values
    excess = (ordered.cumsum(1) - eps) / torch.arange(
        1, flat.shape[1] + 1, device=delta.device, dtype=delta.dtype
    )
    kept = (ordered > excess).sum(1).clamp_min(1)
    threshold = excess.gather(1, kept[:, None] - 1).clamp_min(0)
    inside = magnitude.sum(1, keepdim=True) <= eps
    shrunk = flat.sign() * (magnitude - threshold).clamp_min(0)
    return torch.where(inside, flat, shrunk).view_as(delta)


def ball_start(keys: Tensor, step: int, images: Tensor, norm: str, eps: float) -> Tensor:
    """Return perturbations shaped like `images`, uniform in the ball (spec 02 section 2.3).

    linf: every value uniform. l2: a Gaussian direction times eps * u^(1/D). l1: exponential
    magnitudes with fair signs, over their sum and one more exponential draw.
    """
    count = images.shape[1:].numel()
    if norm == "linf":
        drawn = uniform(keys, step, count).mul_(2).sub_(1).mul_(eps)
    elif norm == "l2":
        raw = normal(keys, step, count + 1)
        direction = raw[:, :count] / raw[:, :count].square().sum(1, keepdim=True).sqrt()
        # The last normal, through its own distribution, is one more uniform draw.
        share = torch.special.ndtr(raw[:, count:])
        drawn = eps * share ** (1 / count) * direction
    else:
        assert norm == "l1", norm
        raw = uniform(keys, step, 2 * count + 1)
        sizes = -raw[:, : count + 1].log()
        fair = torch.where(raw[:, count + 1 :] < 0.5, -1.0, 1.0)
        drawn = eps * fair * sizes[:, :count] / sizes.sum(1, keepdim=True)
    return drawn.to(images.dtype).view_as(images)
