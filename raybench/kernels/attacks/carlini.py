"""The attacks of Carlini and Wagner in L2 and L-infinity (spec 02 section 2.5; L0: `carlini_l0`).

    >>> near = carlini_l2(model.logits, images, labels, steps=1000, search_steps=9)
    >>> near.images[near.found].shape
    torch.Size([93, 3, 32, 32])
    >>> flat = carlini_linf(model.logits, images, labels)

An image is moved as x' = x + (tanh(w) - tanh(w0)) / 2 from w0 = atanh((2x - 1) * 0.999999): in the
box by construction, exactly x at the start, and a pixel of 0 or 1 has a w of finite size, so that
it can move. Every image has its own constants, Adam moments and clock: what one image does at its
n-th iteration is the same whichever images stand beside it.

Legend: N images, B of them still active, C channels, H height, W width, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raybench.kernels.attacks.common import (
    AttackResult,
    Scores,
    check_inputs,
    expand,
    gradient_step,
    lp_norm,
    margin,
    succeeded,
)

__all__ = ["carlini_l2", "carlini_linf"]

_LARGEST_C = 1e10
_BOUNDED = 1e9  # an upper end of the search below this was set by a success
_PROGRESS = 0.9999


def carlini_l2(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 10_000,
    search_steps: int = 9,
    lr: float = 1e-2,
    initial_c: float = 1e-3,
    confidence: float = 0.0,
    abort_early: bool = True,
    targeted: bool = False,
) -> AttackResult:
    """Return the nearest successes in L2 (https://arxiv.org/abs/1608.04644; spec 02 section 2.5).

    Adam on w minimises ||x' - x||_2^2 + c * max(margin + confidence, 0) for `search_steps` values
    of c: ten times the last until one succeeds, then bisection.

    Args:
        scores: differentiable; its logits may be of any size.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes, or wanted ones where `targeted`.
        steps: iterations of Adam for each c; at least 1.
        search_steps: values of c tried; at least 1.
        lr: Adam's rate in w.
        initial_c: the first c.
        confidence: how far, in logits, a success must be beyond the boundary; at least 0.
        abort_early: leave a c once a tenth of `steps` brought less than a 10,000th of the loss.
        targeted: seek `labels` instead of leaving them.

    Returns:
        An iteration is one pass forward and back; found_at 0 is the original image.

    Raises:
        ValueError: a setting out of range or inputs that do not fit.
    """
    check_inputs(images, labels, steps=steps, search_steps=search_steps, lr=lr, initial_c=initial_c)
    check_confidence(confidence)
    record, gap = begin(scores, images, labels, confidence=confidence, targeted=targeted)
    active, x, y, start, w = open_images(record, images, labels)
    anchor, first, second = start.tanh(), torch.zeros_like(w), torch.zeros_like(w)
    opening = gap[active]
    c = torch.full_like(opening, initial_c)
    lower, upper = torch.zeros_like(c), torch.full_like(c, _LARGEST_C)
    age, searched = torch.zeros_like(y), torch.zeros_like(y)
    hit = torch.zeros_like(y, dtype=torch.bool)
    previous = c * opening
    shares, period = moment_shares(steps, w), -(-steps // 10)
    iteration = 0
    while len(active):
        iteration += 1
        shown = place(x, w, anchor)
        answer, gap, slope = slope_of_gap(scores, shown, y, confidence, targeted)
        size = lp_norm(shown - x, "l2")
        reached = succeeded(answer, y, targeted=targeted) & (gap <= 0)
        note(record, active, iteration, shown, size, reached, slope)
        hit |= reached
        pull = expand((c * (gap > 0)).to(w.dtype))
        age += 1
        w = w - adam((2 * (shown - x) + pull * slope) * bend(w), first, second, shares, age, lr)

        loss = size.square() + c * gap.clamp_min(0)
        due = age % period == 0
        over = age == steps
        if abort_early:
            over |= due & (loss > _PROGRESS * previous)
        previous = torch.where(due, loss, previous)
        if not over.any():
            continue
        upper = torch.where(over & hit, torch.minimum(upper, c), upper)
        lower = torch.where(over & ~hit, torch.maximum(lower, c), lower)
        c = torch.where(over, torch.where(upper < _BOUNDED, (lower + upper) / 2, 10 * c), c)
        w = torch.where(expand(over), start, w)
        restart(over, age, first, second)
        previous = torch.where(over, c * opening, previous)
        hit &= ~over
        searched += over
        keep = searched < search_steps
        if not keep.all():
            active, x, y, start, anchor, w, first, second = select(
                keep, active, x, y, start, anchor, w, first, second
            )
            c, lower, upper, age, searched, hit, previous, opening = select(
                keep, c, lower, upper, age, searched, hit, previous, opening
            )
    return finish(record)


def carlini_linf(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 1000,
    lr: float = 5e-3,
    initial_c: float = 1e-5,
    largest_c: float = 20.0,
    tau_factor: float = 0.9,
    smallest_tau: float = 1 / 256,
    confidence: float = 0.0,
    abort_early: bool = True,
    targeted: bool = False,
) -> AttackResult:
    """Return the nearest successes in L-inf (https://arxiv.org/abs/1608.04644; spec 02 s. 2.5).

    Adam on w minimises c * max(margin + confidence, 0) + sum_i max(0, |delta_i| - tau). A solution
    lowers tau to `tau_factor` times its own size, and the next search starts from it; where `steps`
    bring none, c doubles. An image is done at `smallest_tau` or `largest_c`. The norm is therefore
    known to about 1 - `tau_factor` of itself.

    Args:
        scores: differentiable; its logits may be of any size.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes, or wanted ones where `targeted`.
        steps: iterations of Adam for each c; at least 1. A pixel of 0 or 1 is some 7 / `lr` of them
            away from where it answers: with 200 steps MNIST's norms are twice those of 1000.
        lr: Adam's rate in w.
        initial_c: the first c; it is kept, not reset, when tau falls.
        largest_c: give up at this c; above `initial_c`.
        tau_factor: in (0, 1).
        smallest_tau: in pixel units; a nearer success is of no interest.
        confidence: how far, in logits, a success must be beyond the boundary; at least 0.
        abort_early: leave a c once a tenth of `steps` brought less than a 10,000th of the loss
            (raybench's; the authors' code takes all steps).
        targeted: seek `labels` instead of leaving them.

    Raises:
        ValueError: a setting out of range or inputs that do not fit.
    """
    check_inputs(images, labels, steps=steps, lr=lr, initial_c=initial_c, smallest_tau=smallest_tau)
    check_confidence(confidence)
    check_largest(initial_c, largest_c)
    if not 0 < tau_factor < 1:
        raise ValueError(f"tau_factor must be above 0 and below 1; found {tau_factor}")
    record, gap = begin(scores, images, labels, confidence=confidence, targeted=targeted)
    active, x, y, start, w = open_images(record, images, labels)
    anchor, first, second = start.tanh(), torch.zeros_like(w), torch.zeros_like(w)
    c = torch.full_like(gap[active], initial_c)
    tau, previous = torch.ones_like(c), torch.full_like(c, torch.inf)
    age = torch.zeros_like(y)
    shares, period = moment_shares(steps, w), -(-steps // 10)
    iteration = 0
    while len(active):
        iteration += 1
        shown = place(x, w, anchor)
        answer, gap, slope = slope_of_gap(scores, shown, y, confidence, targeted)
        delta = shown - x
        reached = succeeded(answer, y, targeted=targeted) & (gap <= 0)
        note(record, active, iteration, shown, lp_norm(delta, "linf"), reached, slope)
        excess = (delta.abs().to(torch.float64) - expand(tau)).clamp_min(0).flatten(1).sum(1)
        solved = reached & (excess < 1e-4 * c)

        # A solved search goes on at once under its lower tau, with this pass's gradient.
        tau = torch.where(solved, tau_factor * torch.minimum(tau, record.size[active]), tau)
        restart(solved, age, first, second)
        previous = torch.where(solved, torch.inf, previous)
        outward = delta.sign() * (delta.abs() > expand(tau).to(w.dtype))
        pull = expand((c * (gap > 0)).to(w.dtype))
        age += 1
        w = w - adam((outward + pull * slope) * bend(w), first, second, shares, age, lr)

        loss = c * gap.clamp_min(0) + excess
        due = ~solved & (age % period == 0)
        over = ~solved & (age >= steps)
        if abort_early:
            over |= due & (loss > _PROGRESS * previous)
        previous = torch.where(due, loss, previous)
        c = torch.where(over, 2 * c, c)
        restart(over, age, first, second)
        previous = torch.where(over, torch.inf, previous)
        keep = (tau > smallest_tau) & (c < largest_c)
        if not keep.all():
            active, x, y, anchor, w, first, second, c, tau, previous, age = select(
                keep, active, x, y, anchor, w, first, second, c, tau, previous, age
            )
    return finish(record)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of each of N images; the tensors are written in place.

    Attributes:
        images: [N, C, H, W], the nearest success so far, else the original.
        size: [N] float64, its norm; inf where there was no success.
        found_at: [N] int64, iteration of the first success, or -1.
        queries: [N] int64.
        gradients: [N] int64.
        zero_gradient: [N] bool.
    """

    images: Tensor
    size: Tensor
    found_at: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradient: Tensor


def begin(
    scores: Scores, images: Tensor, labels: Tensor, *, confidence: float, targeted: bool
) -> tuple[Record, Tensor]:
    """Return the record after one query of the originals, and their gap [N] float64."""
    with torch.no_grad():
        answer = scores(images.detach()) if len(images) else images.new_zeros(0, 1)
    gap = margin(answer, labels, targeted=targeted).to(torch.float64) + confidence
    there = succeeded(answer, labels, targeted=targeted) & (gap <= 0)
    record = Record(
        images=images.detach().clone(),
        size=torch.where(there, 0.0, torch.inf).to(torch.float64),
        found_at=torch.where(there, 0, -1),
        queries=torch.ones_like(labels),
        gradients=torch.zeros_like(labels),
        zero_gradient=torch.zeros_like(there),
    )
    return record, gap


def open_images(
    record: Record, images: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return indices [B] of the images not there yet, their x, labels, w0, and a w to move."""
    active = (record.found_at < 0).nonzero()[:, 0]
    x = images.detach()[active]
    # In float64: in float32 the last bit of atanh depends on the place within the batch.
    start = ((2 * x.to(torch.float64) - 1) * 0.999999).atanh().to(x.dtype)
    return active, x, labels[active], start, start.clone()


def place(x: Tensor, w: Tensor, anchor: Tensor) -> Tensor:
    """Return the images [B, C, H, W] in [0, 1] at w; `anchor` is tanh(w0)."""
    return (x + (w.tanh() - anchor) / 2).clamp(0, 1)


def bend(w: Tensor) -> Tensor:
    """Return dx'/dw. By cosh, since 1 - tanh^2 loses all digits where the pixel is near 0 or 1."""
    return 0.5 / w.cosh().square()


def slope_of_gap(
    scores: Scores, shown: Tensor, labels: Tensor, confidence: float, targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [B, K], margin + confidence [B] float64 and the margin's gradient."""
    answer, lead, slope = gradient_step(
        scores, shown, lambda answer: margin(answer, labels, targeted=targeted)
    )
    return answer, lead.to(torch.float64) + confidence, slope


def note(
    record: Record,
    active: Tensor,
    iteration: int,
    shown: Tensor,
    size: Tensor,
    reached: Tensor,
    slope: Tensor,
) -> None:
    """Write one pass over the `active` images to the record."""
    record.queries[active] += 1
    record.gradients[active] += 1
    record.zero_gradient[active] |= (slope == 0).flatten(1).all(1)
    nearer = reached & (size < record.size[active])
    if nearer.any():
        which = active[nearer]
        record.images[which] = shown[nearer]
        record.size[which] = size[nearer]
        record.found_at[which] = torch.where(
            record.found_at[which] < 0, iteration, record.found_at[which]
        )


def finish(record: Record) -> AttackResult:
    """Return the result; one query of the original came before iteration 1."""
    found = record.found_at >= 0
    return AttackResult(
        images=record.images,
        found=found,
        found_at=record.found_at,
        found_queries=torch.where(found, record.found_at + 1, -1),
        queries=record.queries,
        gradients=record.gradients,
        zero_gradient=record.zero_gradient,
    )


def adam(
    gradient: Tensor, first: Tensor, second: Tensor, shares: Tensor, age: Tensor, lr: float
) -> Tensor:
    """Return Adam's move (https://arxiv.org/abs/1412.6980) and update the moments in place.

    `age` [B] is each image's own number of the step, from 1; `shares` is of `moment_shares`.
    """
    first.lerp_(gradient, 0.1)
    second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    first_share, second_share = shares[:, age]
    spread = (second / expand(second_share)).sqrt_().add_(1e-8)
    return (first / expand(first_share)).div_(spread).mul_(lr)


def moment_shares(steps: int, like: Tensor) -> Tensor:
    """Return [2, steps + 1]: how much of each moment the gradients up to an age make up.

    A table, since the powers of a batch depend, in their last bit, on the place within the batch.
    """
    ages = range(steps + 1)
    table = [[1 - decay**age for age in ages] for decay in (0.9, 0.999)]
    return torch.tensor(table, dtype=like.dtype, device=like.device)


def restart(which: Tensor, age: Tensor, *moments: Tensor) -> None:
    """Forget, in place, the age and the moments of the images `which` [B] bool."""
    for values in (age, *moments):
        values[which] = 0


def select(keep: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Return the rows `keep` [B] bool of each tensor."""
    return [values[keep] for values in tensors]


def check_confidence(confidence: float) -> None:
    """Raise ValueError unless `confidence` is at least 0."""
    if not confidence >= 0:
        raise ValueError(f"confidence must be at least 0; found {confidence}")


def check_largest(initial_c: float, largest_c: float) -> None:
    """Raise ValueError unless the search for c has somewhere to go."""
    if not largest_c > initial_c:
        raise ValueError(
            f"largest_c must be above initial_c, which is {initial_c}; found {largest_c}"
        )
