"""The attack of Carlini and Wagner in L0: as few pixels as it can (spec 02 section 2.5).

    >>> sparse = carlini_l0(model.logits, images, labels)
    >>> lp_norm(sparse.images - images, "l0")  # pixels changed, all channels of one together

Legend: N images, B of them still active, C channels, H height, W width, K classes, P = H*W pixels.
"""

import torch
from torch import Tensor

from raybench.kernels.attacks.carlini import (
    adam,
    begin,
    bend,
    check_confidence,
    check_largest,
    finish,
    moment_shares,
    note,
    open_images,
    place,
    restart,
    select,
    slope_of_gap,
)
from raybench.kernels.attacks.common import (
    AttackResult,
    Scores,
    check_inputs,
    expand,
    lp_norm,
    succeeded,
)

__all__ = ["carlini_l0"]

# The hinge asks for a little more than the boundary, and a search is solved within the tolerance.
_BEYOND = 0.01
_TOLERANCE = 1e-4
_CHANGED = 1e-4  # a pixel that moved less counts as unchanged in the pace of freezing
_IMPORTANT = 0.01
_PROGRESS = 0.9999


def carlini_l0(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int = 1000,
    lr: float = 1e-2,
    initial_c: float = 1e-3,
    largest_c: float = 2e6,
    confidence: float = 0.0,
    abort_early: bool = True,
    signed_sum: bool = False,
    targeted: bool = False,
) -> AttackResult:
    """Return successes with few changed pixels (https://arxiv.org/abs/1608.04644; spec 02 s. 2.5).

    At first all pixels are free. Adam on w minimises ||delta||_2^2 + c * hinge on the free ones up
    to the first solution, c doubling where `steps` bring none. Each solution freezes, at the
    original, the free pixels of lowest score sum_ch|delta| * sum_ch|dL/dw|: up to and with the
    first of score above 0.01, at most 0.3 * sqrt(pixels changed). The search goes on from there; it
    ends at `largest_c` or with no pixel left.

    Args:
        scores: differentiable; its logits may be of any size.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes, or wanted ones where `targeted`.
        steps: iterations of Adam for each c; at least 1.
        lr: Adam's rate in w.
        initial_c: the first c; it is kept, not reset, when pixels are frozen.
        largest_c: give up at this c; above `initial_c`.
        confidence: how far, in logits, a success must be beyond the boundary; at least 0.
        abort_early: leave a c once a tenth of `steps` brought less than a 10,000th of the loss
            (raybench's; the authors' code takes all steps).
        signed_sum: score by |sum_ch delta|, as the authors' code does, where channels that move
            against each other cancel and a pixel that matters is frozen.
        targeted: seek `labels` instead of leaving them.

    Raises:
        ValueError: a setting out of range or inputs that do not fit.
    """
    check_inputs(images, labels, steps=steps, lr=lr, initial_c=initial_c)
    check_confidence(confidence)
    check_largest(initial_c, largest_c)
    record, gap = begin(scores, images, labels, confidence=confidence, targeted=targeted)
    active, x, y, start, w = open_images(record, images, labels)
    anchor, first, second = start.tanh(), torch.zeros_like(w), torch.zeros_like(w)
    free = torch.ones_like(x[:, :1], dtype=torch.bool)
    c = torch.full_like(gap[active], initial_c)
    previous = torch.full_like(c, torch.inf)
    age = torch.zeros_like(y)
    shares, period = moment_shares(steps, w), -(-steps // 10)
    iteration = 0
    while len(active):
        iteration += 1
        shown = torch.where(free, place(x, w, anchor), x)
        answer, gap, slope = slope_of_gap(scores, shown, y, confidence, targeted)
        delta = shown - x
        done = succeeded(answer, y, targeted=targeted)
        note(record, active, iteration, shown, lp_norm(delta, "l0"), done & (gap <= 0), slope)
        hinge = (gap + _BEYOND).clamp_min(0)
        solved = done & (hinge < _TOLERANCE)
        pull = expand((c * (hinge > 0)).to(w.dtype))
        gradient = (2 * delta + pull * slope) * bend(w) * free

        # A solution stays where it is for one pass: without its frozen pixels it may still hold.
        if solved.any():
            moved = delta.sum(1).abs() if signed_sum else delta.abs().sum(1)
            score = moved * gradient.abs().sum(1)
            free = torch.where(expand(solved), _freeze(free, score, delta), free)
        age += 1
        step = adam(gradient, first, second, shares, age, lr)
        w = torch.where(expand(solved), w, w - step)

        loss = lp_norm(delta, "l2").square() + c * hinge
        due = age % period == 0
        over = ~solved & (age >= steps)
        if abort_early:
            over |= ~solved & due & (loss > _PROGRESS * previous)
        previous = torch.where(due, loss, previous)
        c = torch.where(over, 2 * c, c)
        restart(over | solved, age, first, second)
        previous = torch.where(over | solved, torch.inf, previous)
        keep = free.flatten(1).any(1) & (c < largest_c)
        if not keep.all():
            active, x, y, anchor, w, first, second, free, c, previous, age = select(
                keep, active, x, y, anchor, w, first, second, free, c, previous, age
            )
    return finish(record)


def _freeze(free: Tensor, score: Tensor, delta: Tensor) -> Tensor:
    """Return `free` [B, 1, H, W] without the pixels of lowest score [B, H, W]; at least one goes.

    They go in order of score, up to and with the first that is important or that reaches the pace.
    """
    left = free.flatten(1)
    ordered, order = torch.where(left, score.flatten(1), torch.inf).sort(dim=1, stable=True)
    changed = (delta.abs() >= _CHANGED).any(1).flatten(1).sum(1)
    pace = (0.3 * changed.to(torch.float64).sqrt()).ceil().clamp_min(1)
    important = (ordered <= _IMPORTANT).sum(1) + 1
    rank = torch.arange(left.shape[1], device=left.device)
    goes = rank < torch.minimum(pace, important)[:, None]
    frozen = torch.zeros_like(left).scatter(1, order, goes)
    return (left & ~frozen).view_as(free)
