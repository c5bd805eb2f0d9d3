"""How APGD steps and when it changes its steps, of every image on its own (spec 02 section 2.8).

    >>> walk = begin(start, near)
    >>> walk = see(walk, losses, gradient)
    >>> walk, zero = move(check(walk, near, taken=22), near, momentum=True)

linf and l2 take long steps with momentum and halve them where the loss no longer rises (Croce and
Hein 2020, https://arxiv.org/abs/2003.01690). l1 takes sparse steps, whose number of entries follows
that of the best point (Croce and Hein 2021, https://arxiv.org/abs/2103.01208).

Legend: B images, C channels, H height, W width, D = C*H*W.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from raybench.kernels.attacks.pgd import Ball, choose, confine, uphill
from raybench.kernels.counter import normal, uniform

__all__ = ["Walk", "begin", "check", "checkpoints", "draw_start", "enclose", "move", "see", "stay"]

_MOMENTUM = 0.25  # 1 - a of the spec, the weight of the last step
_RISING = 0.75
_SPARSER = 0.95
_SHORTEN = 1.5
_SHORTEST = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Where the walks of B images stand, a row of each tensor for each image.

    Attributes:
        index: which image of the run it is.
        points: [B, C, H, W], the iterate.
        previous: the iterate before.
        gradient: the gradient at `points`.
        best: the point with the highest loss so far.
        best_gradient: the gradient there.
        loss: [B] float64, at the last iterate seen.
        top: the highest loss so far.
        length: float32, length of a step.
        rises: int64, steps since the last check that raised the loss.
        checked: `top` at the last check.
        changed: bool, whether the last check shortened the steps.
        entries: int64, values of `best` that differed from the image at the last check (l1).
    """

    index: Tensor
    points: Tensor
    previous: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    loss: Tensor
    top: Tensor
    length: Tensor
    rises: Tensor
    checked: Tensor
    changed: Tensor
    entries: Tensor


def begin(start: Tensor, near: Ball) -> Walk:
    """Return walks that stand at `start` [B, C, H, W], which nobody has looked at yet."""
    index = torch.arange(len(start), device=start.device)
    level = torch.full(index.shape, torch.inf, dtype=torch.float64, device=start.device)
    # The first step may cross the whole ball; an l1 step of eps already reaches its far corners.
    longest = near.eps if near.norm == "l1" else 2 * near.eps
    return Walk(
        index=index,
        points=start,
        previous=start,
        gradient=start,
        best=start,
        best_gradient=start,
        loss=level,  # above any, so that the start is no rise
        top=-level,
        length=torch.full(index.shape, longest, device=start.device),
        rises=torch.zeros_like(index),
        checked=-level,
        changed=torch.ones_like(index, dtype=torch.bool),
        entries=_entries(start, near),
    )


def stay(walk: Walk, mask: Tensor) -> Walk:
    """Return the walks of `mask` [B] alone."""
    return Walk(**{field.name: getattr(walk, field.name)[mask] for field in fields(walk)})


def see(walk: Walk, losses: Tensor, gradient: Tensor | None) -> Walk:
    """Return the walks with the losses [B] and the gradient at their points written down."""
    gradient = walk.gradient if gradient is None else gradient
    better = losses > walk.top
    return replace(
        walk,
        gradient=gradient,
        best=choose(better, walk.points, walk.best),
        best_gradient=choose(better, gradient, walk.best_gradient),
        rises=walk.rises + (losses > walk.loss),
        loss=losses,
        top=torch.maximum(losses, walk.top),
    )


def checkpoints(steps: int, norm: str) -> dict[int, int]:
    """Return the iterations with a check, and the steps since the one before.

    linf, l2: first after 22 % of the steps, then after 3 % less each time, at least 6 %. l1: every
    4 %.
    """
    gap = max(steps * 4 // 100 if norm == "l1" else steps * 22 // 100, 1)
    less = 0 if norm == "l1" else max(steps * 3 // 100, 1)
    least = gap if norm == "l1" else max(steps * 6 // 100, 1)
    found, at = {}, gap
    while at <= steps:
        found[at] = gap
        gap = max(gap - less, least)
        at += gap
    return found


def check(walk: Walk, near: Ball, taken: int) -> Walk:
    """Return the walks as a checkpoint leaves them, `taken` steps after the last one."""
    if near.norm == "l1":
        entries = _entries(walk.best, near)
        again = entries < _SPARSER * walk.entries
        shorter = (walk.length / _SHORTEN).clamp_min(near.eps / _SHORTEST)
        length = torch.where(again, near.eps, shorter)
    else:
        entries = walk.entries
        few = walk.rises < _RISING * taken
        again = few | (~walk.changed & (walk.top <= walk.checked))
        length = torch.where(again, walk.length / 2, walk.length)
    return replace(
        walk,
        points=choose(again, walk.best, walk.points),
        gradient=choose(again, walk.best_gradient, walk.gradient),
        length=length,
        rises=torch.zeros_like(walk.rises),
        checked=walk.top,
        changed=again,
        entries=entries,
    )


def move(walk: Walk, near: Ball, *, momentum: bool) -> tuple[Walk, Tensor]:
    """Return the walks one step on, and where [B] the gradient was zero throughout."""
    if near.norm == "l1":
        moved, zero = _sparse_step(walk, near)
        return replace(walk, points=enclose(moved, near), previous=walk.points), zero
    moved, zero = uphill(walk.points, walk.gradient, near.norm, walk.length)
    moved = confine(moved, near)
    if momentum:
        # As differences, which are zero to the last bit where a walk stands still in a corner.
        torch.lerp(moved, walk.points, _MOMENTUM, out=moved)
        moved = confine(moved.add_(walk.points - walk.previous, alpha=_MOMENTUM), near)
    return replace(walk, points=moved, previous=walk.points), zero


def draw_start(keys: Tensor, step: int, near: Ball) -> Tensor:
    """Return points [B, C, H, W] on the surface of the balls, in a random direction.

    linf: uniform values over the largest. l2: Gaussian. l1: Gaussian values, brought into the ball.
    """
    count = near.centre.shape[1:].numel()
    if near.norm == "linf":
        drawn = 2 * uniform(keys, step, count) - 1
        drawn = drawn * (near.eps / drawn.abs().amax(1, keepdim=True))
    else:
        drawn = normal(keys, step, count)
        if near.norm == "l2":
            drawn = drawn * (near.eps / drawn.square().sum(1, keepdim=True).sqrt())
    return enclose(near.centre + drawn.to(near.centre.dtype).view_as(near.centre), near)


def enclose(points: Tensor, near: Ball) -> Tensor:
    """Return `points` [B, C, H, W] brought into their balls, which may overwrite them.

    l1: the nearest point of ball and [0, 1] together. It is ``sign(u) * clamp(|u| - t, 0, room)``
    for a displacement u with `room` up to the box, at the t >= 0 that makes the norm eps. The norm
    falls linearly in t between the points where an entry leaves the box (|u| - room) and where it
    reaches zero (|u|), so that sorting these gives t.
    """
    if near.norm != "l1":
        return confine(points, near)
    delta = (points - near.centre).flatten(1).to(torch.float64)
    centre = near.centre.flatten(1).to(torch.float64)
    # Rounding to float32 may lengthen every entry by half a unit in the last place.
    eps = near.eps - min(delta.shape[1] * 2.0**-25, 1e-3 * near.eps)
    size, room = delta.abs(), torch.where(delta > 0, 1 - centre, centre)
    norm = torch.minimum(size, room).sum(1, keepdim=True)
    at, order = torch.cat([(size - room).clamp_min(0), size], 1).sort(1)
    falling = torch.where(order < delta.shape[1], 1.0, -1.0).to(torch.float64).cumsum(1)
    lost = ((at[:, 1:] - at[:, :-1]) * falling[:, :-1]).cumsum(1)
    left = torch.cat([norm, norm - lost], 1)
    last = ((left > eps).sum(1, keepdim=True) - 1).clamp_min(0)
    slope = falling.gather(1, last).clamp_min(1)
    cut = at.gather(1, last) + (left.gather(1, last) - eps) / slope
    cut = torch.where(norm > eps, cut, 0.0)
    kept = delta.sign() * torch.minimum((size - cut).clamp_min(0), room)
    inside = near.centre + kept.to(points.dtype).view_as(points)
    return inside.clamp_(0, 1)


def _sparse_step(walk: Walk, near: Ball) -> tuple[Tensor, Tensor]:
    """Return points a sparse step on, to be enclosed, and where [B] the gradient was zero.

    The step is for the steepest entries, two thirds as many as the best point has changed. Values
    of the image at an end of [0, 1] that are drawn beyond it take no place of another [D]: on
    black images they are half of all, and a small step might be for nothing else.
    """
    gradient, points = walk.gradient.flatten(1).nan_to_num(nan=0.0), walk.points.flatten(1)
    sign, steep = gradient.sign(), gradient.abs()
    beyond = torch.where(sign > 0, points >= 1, points <= 0) & (points == near.centre.flatten(1))
    free = steep.masked_fill(beyond, 0.0)
    kept = ((2 * walk.entries + 2) // 3).clamp_min(1)
    least = free.sort(1, descending=True).values.gather(1, kept[:, None] - 1)
    sign = torch.where((free >= least) & ~beyond, sign, 0.0)
    share = walk.length / sign.abs().sum(1).clamp_min(1)
    return torch.addcmul(points, sign, share[:, None]).view_as(walk.points), ~steep.any(1)


def _entries(points: Tensor, near: Ball) -> Tensor:
    return (points != near.centre).flatten(1).sum(1)
