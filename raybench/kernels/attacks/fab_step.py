"""The step of FAB: to the nearest point of a linear boundary within the box [0, 1]^D.

    >>> moved = biased_step(points, originals, gaps, slopes, "linf")

Croce and Hein 2020, https://arxiv.org/abs/1907.02044, sections 3.1 and 3.2; `fab` takes the steps.

Legend: B images, C channels, H height, W width, D = C*H*W.
"""

import torch
from torch import Tensor

from raybench.kernels.attacks.common import lp_norm

__all__ = ["biased_step", "boundary_step"]

ALPHA_MAX = 0.1  # largest share of the step that starts at the original
_CACHED = 2**16  # values of the points that are moved at once on a CPU
ETA = 1.05  # overshoot, so that a step ends beyond the boundary it aims at


def biased_step(points: Tensor, origin: Tensor, gaps: Tensor, slopes: Tensor, norm: str) -> Tensor:
    """Return the next points [B, C, H, W]: `boundary_step` from here and from the original, mixed.

    Args:
        points: [B, C, H, W] in [0, 1].
        origin: the originals, [B, C, H, W] in [0, 1].
        gaps: f [B] at `points`; the boundary is where f is 0.
        slopes: the gradient [B, C, H, W] of f. Points whose f or gradient is not finite stay.
        norm: linf, l2 or l1.
    """
    most = max(1, _CACHED // max(1, points[0:1].numel()))
    if points.device.type != "cpu" or len(points) <= most:
        return _biased(points, origin, gaps, slopes, norm)
    # A few images at a time stay in the cache through the many passes over them.
    parts = zip(*(torch.split(each, most) for each in (points, origin, gaps, slopes)), strict=True)
    return torch.cat([_biased(x, base, f, w, norm) for x, base, f, w in parts])


def _biased(points: Tensor, origin: Tensor, gaps: Tensor, slopes: Tensor, norm: str) -> Tensor:
    here, there, weights = points.flatten(1), origin.flatten(1), slopes.flatten(1)
    gaps = gaps.to(points.dtype)
    # f at the original, by the linear model: f(x) + <gradient, original - x>.
    gaps_there = gaps + (weights * (there - here)).sum(1)
    usable = gaps.isfinite() & gaps_there.isfinite() & weights.isfinite().all(1)
    needs = -torch.where(usable, torch.stack([gaps, gaps_there]), 0).flatten()
    weights = torch.where(usable[:, None], weights, 0).repeat(2, 1)
    both = boundary_step(torch.cat([here, there]), weights, needs, norm)
    near, far = lp_norm(both, norm).clamp_min(1e-8).chunk(2)
    share = (near / (near + far)).clamp_max(ALPHA_MAX)[:, None].to(points.dtype)
    step, biased = both.chunk(2)
    moved = (1 - share) * (here + ETA * step) + share * (there + ETA * biased)
    return moved.clamp(0, 1).view_as(points)


def boundary_step(points: Tensor, weights: Tensor, needs: Tensor, norm: str) -> Tensor:
    """Return the smallest d [B, D] with weights . d = needs and points + d in [0, 1].

    Exact but for rounding. Where the plane does not meet the box, d leads to the box's corner
    nearest to it.

    With a = |weights|, every coordinate moves towards the plane, by m_i of its room r_i, and
    sum(a_i m_i) = |needs|. l1 fills the rooms in the order of a. For linf and l2 a multiplier t
    gives m_i = min(r_i, t u_i), u = 1 or a. The sum is concave and piecewise linear in t, so that
    Newton's steps from t = 0 never pass the root and end on its piece: mostly in 3 to 8 steps, each
    cheaper than a sort. At a root a step changes nothing, so that rows do not depend on others.

    Args:
        points: [B, D] in [0, 1].
        weights: [B, D], finite.
        needs: [B], finite.
        norm: linf, l2 or l1.
    """
    heading = weights.sign() * torch.where(needs < 0, -1, 1)[:, None]
    room = torch.where(heading > 0, 1 - points, points).clamp_min(0) * heading.abs()
    # In units of the largest weight, so that squares of small gradients do not vanish.
    scale = weights.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    slopes = weights.abs() / scale
    gains = slopes * room
    need = torch.minimum(needs.abs()[:, None] / scale, gains.sum(1, keepdim=True))
    if norm == "l1":
        order = slopes.argsort(dim=1, descending=True, stable=True)
        steep, free, gains = (values.gather(1, order) for values in (slopes, room, gains))
        left = (need - (gains.cumsum(1) - gains)).clamp_min(0)
        filled = torch.where(free > 0, torch.minimum(left / steep, free), 0)
        return heading * torch.zeros_like(room).scatter(1, order, filled)
    pace = slopes if norm == "l2" else torch.ones_like(slopes)
    rates = slopes * pace
    multiplier = torch.zeros_like(need)
    while True:
        full = multiplier * pace >= room
        rate = torch.where(full, 0, rates).sum(1, keepdim=True)
        missing = need - torch.where(full, gains, 0).sum(1, keepdim=True)
        larger = torch.where(rate > 0, torch.maximum(multiplier, missing / rate), multiplier)
        if not (larger > multiplier).any():
            return heading * torch.minimum(multiplier * pace, room)
        multiplier = larger
