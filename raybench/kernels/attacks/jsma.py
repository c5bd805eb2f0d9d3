"""JSMA: saliency of pairs of features under the model's Jacobian (spec 02 section 2.7).

    >>> sparse = jsma(model.logits, images, targets, theta=1.0, gamma=0.1)
    >>> sparse.found.double().mean()

Legend: N images, B of them still active, C channels, H height, W width, K classes, D = C*H*W
features (a channel of a pixel each), M of them searched in pairs.
"""

import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, Scores, check_inputs, succeeded

__all__ = ["jsma"]

_EXACT = 1024  # features up to which every pair is looked at
_RESTRICTED = 256
_PAIRS_AT_ONCE = 2**22  # M^2 values for each image of a chunk: 32 MB a tensor


def jsma(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    theta: float = 1.0,
    gamma: float = 0.1,
    targeted: bool = True,
    use_softmax: bool = False,
    candidates: int | None = None,
) -> AttackResult:
    """Return successes with few features raised (https://arxiv.org/abs/1511.07528; spec 02 s. 2.7).

    With a_i = dz_target/dx_i and b_i the sum of the other classes' dz/dx_i, each iteration raises
    by `theta` the pair p, q that maximises -(a_p + a_q) * (b_p + b_q), among those where the first
    sum is above 0 and the second below. A feature is raised once, and never from 1. It ends at
    success, after floor(gamma * D / 2) pairs, or where no pair is admissible. Without success the
    original is returned.

    Args:
        scores: differentiable.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, the wanted classes.
        theta: rise in pixel units; above 0.
        gamma: share of the features that may change; above 0, at most 1.
        targeted: True; saliency is defined for a wanted class only.
        use_softmax: derivatives of probabilities, not of logits. They vanish where the model is
            certain.
        candidates: features whose pairs are searched, those of highest a_i / max a - b_i / max(-b);
            at least 2. None: all up to 1024, else 256.

    Returns:
        An iteration is a pair; found_at 0 is the original image. An iteration takes two gradients
        (one with `use_softmax`).

    Raises:
        ValueError: a setting out of range, `targeted` False, or inputs that do not fit.
    """
    check_inputs(images, labels, theta=theta, gamma=gamma)
    if not gamma <= 1:
        raise ValueError(f"gamma must be at most 1; found {gamma}")
    if not targeted:
        raise ValueError("targeted must be True: JSMA needs a wanted class; found False")
    if candidates is not None and not candidates >= 2:
        raise ValueError(f"candidates must be at least 2; found {candidates}")

    images = images.detach()
    best = images.clone()
    found_at = torch.full_like(labels, -1)
    queries, gradients = torch.zeros_like(labels), torch.zeros_like(labels)
    zero_gradient = torch.zeros_like(labels, dtype=torch.bool)
    active = torch.arange(len(labels), device=labels.device)
    features = images[0].numel() if len(images) else 0
    searched = candidates or (features if features <= _EXACT else _RESTRICTED)
    pairs = int(gamma * features / 2)
    shown = images
    free = images.flatten(1) < 1
    for pair in range(pairs + 1):
        if not len(active):
            break
        last = pair == pairs
        with torch.set_grad_enabled(not last):
            leaf = shown.clone().requires_grad_(not last)
            answer = scores(leaf)
        queries[active] += 1
        reached = succeeded(answer.detach(), labels[active], targeted=True)
        found_at[active[reached]] = pair
        best[active[reached]] = shown[reached]
        if last or reached.all():
            break

        # Those that are there leave between the passes: no gradient of theirs is asked for.
        stays = ~reached
        active = active[stays]
        toward, away = _saliency(answer, leaf, stays, labels[active], use_softmax)
        gradients[active] += 1 if use_softmax else 2
        zero_gradient[active] |= ((toward == 0) & (away == 0)).all(1)
        chosen, admissible = _best_pairs(toward, away, free[active], searched)

        active, chosen = active[admissible], chosen[admissible]
        free[active] = free[active].scatter(1, chosen, False)
        flat = shown[stays][admissible].flatten(1)
        raised = (flat.gather(1, chosen) + theta).clamp_max(1)
        shown = flat.scatter(1, chosen, raised).view(-1, *images.shape[1:])
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


def _saliency(
    answer: Tensor, leaf: Tensor, stays: Tensor, labels: Tensor, use_softmax: bool
) -> tuple[Tensor, Tensor]:
    """Return derivatives [B, D] of the wanted class and of the sum of the others."""
    with torch.enable_grad():
        rows = answer[stays].to(torch.float64)
        values = rows.softmax(1) if use_softmax else rows
        wanted = values.gather(1, labels[:, None]).sum()
        toward = _gradient(wanted, leaf, keep=not use_softmax)[stays].flatten(1)
        # Probabilities sum to 1, so that the others' derivative is the negative.
        if use_softmax:
            return toward, -toward
        others = values.scatter(1, labels[:, None], 0.0).sum()
        return toward, _gradient(others, leaf, keep=False)[stays].flatten(1)


def _gradient(value: Tensor, leaf: Tensor, *, keep: bool) -> Tensor:
    """Return the gradient of a sum; zero, to be reported, where the model cuts the graph."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(
        value, leaf, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return gradient


def _best_pairs(toward: Tensor, away: Tensor, free: Tensor, searched: int) -> tuple[Tensor, Tensor]:
    """Return the best pair [B, 2] of `free` features of each image, and whether there is one."""
    gain, loss = (
        torch.where(free, values.to(torch.float64), -torch.inf) for values in (toward, -away)
    )
    count = min(searched, gain.shape[1])
    if count < gain.shape[1]:
        # To first order a feature adds gain / (best gain) + loss / (best loss) to a pair's product.
        best_gain, best_loss = (v.amax(1, keepdim=True).clamp_min(1e-30) for v in (gain, loss))
        score = gain / best_gain + loss / best_loss
        places = score.topk(count, dim=1).indices.sort(1).values
    else:
        places = torch.arange(count, device=gain.device).expand(len(gain), -1)
    gain, loss = gain.gather(1, places), loss.gather(1, places)
    before = torch.ones(count, count, dtype=torch.bool, device=gain.device).tril()
    chosen, admissible = [], []
    size = max(1, _PAIRS_AT_ONCE // count**2)
    for at in range(0, len(gain), size):
        some_gain, some_loss = gain[at : at + size], loss[at : at + size]
        gains = (some_gain[:, :, None] + some_gain[:, None]).clamp_min(0)
        products = gains.mul_((some_loss[:, :, None] + some_loss[:, None]).clamp_min(0))
        products.masked_fill_(before, 0)
        value, place = products.flatten(1).max(1)
        chosen.append(torch.stack([place // count, place % count], dim=1))
        admissible.append(value > 0)
    return places.gather(1, torch.cat(chosen)), torch.cat(admissible)
