"""Gradients estimated from differences of losses: Gaussian, sign and coordinate directions.

    >>> found = estimate(losses, images, "gaussian", keys=keys, step=0, pairs=25, spread=spread)
    >>> found.gradient, found.silent

An estimate asks about antithetic pairs of copies, x + h u and x - h u, of every image. Both are
clipped to [0, 1], since a model behind an interface takes no other images. What clipping leaves of
a direction is known, and the estimate is divided by it: nothing is lost at a pixel of 0 or 1.

Legend: B images, R copies, C channels, H height, W width, D = C*H*W.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raybench.kernels.attacks.common import expand
from raybench.kernels.counter import normal, signs, uniform, words

__all__ = ["KINDS", "WIDEST", "Estimate", "Losses", "estimate", "subkeys"]

KINDS = ("gaussian", "signs", "coordinates")
WIDEST = 0.5  # from anywhere in [0, 1] a step of this size is possible to one side at least

Losses = Callable[[Tensor, Tensor], Tensor]
"""Copies [R, C, H, W], and which image [R] each is a copy of -> losses [R], to ascend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What differences of losses say of the gradients of B images.

    Attributes:
        gradient: [B, C, H, W], of the type of the images.
        silent: [B] bool, all differences were exactly zero.
    """

    gradient: Tensor
    silent: Tensor


def subkeys(keys: Tensor, step: int, count: int) -> Tensor:
    """Return keys [B, count] int64 drawn from `keys` [B], one for each of an image's copies.

    Copies can then be drawn in any grouping; the first of many are those of a few.
    """
    halves = words(keys, step, 2 * count).view(len(keys), count, 2)
    return (halves[..., 0] << 32) | halves[..., 1]


def estimate(
    losses: Losses,
    images: Tensor,
    kind: str,
    *,
    keys: Tensor,
    step: int,
    pairs: int,
    spread: Tensor,
    batch: int = 512,
) -> Estimate:
    """Return estimated gradients from terms (L(x + h u) - L(x - h u)) u / 2h (spec 03 s. 3.1-3.3).

    gaussian (NES, Salimans et al. 2017): their mean over normal u. signs (SPSA, Spall 1992): their
    mean over fair signs. Both are unbiased for a linear loss, and their cosine with its gradient is
    about sqrt(n / (n + D)) for n pairs. coordinates: their sum over different unit vectors, chosen
    at random; zero at the others; exact for a quadratic loss where no copy is clipped.

    Args:
        losses: of copies of `images`.
        images: [B, C, H, W] in [0, 1].
        kind: one of `KINDS`.
        keys: [B] int64, of the images.
        step: names the draw.
        pairs: antithetic pairs for each image; at most D where they are coordinates.
        spread: [B] float32, the h of each image, at most `WIDEST`.
        batch: copies asked about at once, at least 2.
    """
    size = images.shape[1:].numel()
    assert kind in KINDS, kind
    if kind == "coordinates":
        chosen = uniform(keys, step, size).argsort(dim=1)[:, :pairs]
    else:
        seeds = subkeys(keys, step, pairs)

    def directions(row: Tensor, pair: Tensor) -> Tensor:
        if kind == "gaussian":
            return normal(seeds[row, pair], 0, size)
        if kind == "signs":
            return signs(seeds[row, pair], 0, size)
        unit = torch.zeros(len(row), size, device=images.device)
        return unit.scatter_(1, chosen[row, pair][:, None], 1.0)

    # In float64: the order of the summands may differ. index_put_ is fast where index_add_ is not.
    total = torch.zeros(len(images), size, dtype=torch.float64, device=images.device)
    heard = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    everything = torch.arange(len(images) * pairs, device=images.device)
    for start in range(0, len(everything), batch // 2):
        chunk = everything[start : start + batch // 2]
        row, pair = chunk // pairs, chunk % pairs
        direction = directions(row, pair)
        move = expand(spread[row]) * direction.view(-1, *images.shape[1:]).to(images.dtype)
        origin = images[row]
        copies = torch.cat([(origin + move).clamp(0, 1), (origin - move).clamp(0, 1)])
        answer = losses(copies, torch.cat([row, row])).to(torch.float64)
        plus, minus = answer[: len(row)], answer[len(row) :]
        slope = (plus - minus) / (2 * spread[row].to(torch.float64))
        total.index_put_((row,), slope[:, None] * direction.to(torch.float64), accumulate=True)
        heard.index_put_((row,), (plus != minus).to(torch.int64), accumulate=True)
    terms = 1 if kind == "coordinates" else pairs
    gradient = total.view_as(images) / terms / _kept(images, spread, kind)
    return Estimate(gradient=gradient.to(images.dtype), silent=heard == 0)


def _kept(images: Tensor, spread: Tensor, kind: str) -> Tensor:
    """Return E[u v] for each pixel, where h v is half the way from one clipped copy to the other.

    A side on which a pixel may move by c h gives E[|u| min(|u|, c)] / 2: for u of size 1 that is
    min(1, c) / 2, and for normal u, by parts, erf(c / sqrt 2) / 2.
    """
    exact, unit = images.to(torch.float64), expand(spread.to(torch.float64))
    below, above = exact / unit, (1 - exact) / unit
    if kind == "gaussian":
        return (torch.erf(below / 2**0.5) + torch.erf(above / 2**0.5)) / 2
    return (below.clamp_max(1) + above.clamp_max(1)) / 2
