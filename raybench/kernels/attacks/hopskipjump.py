"""HopSkipJump: the nearest misclassified image, from labels alone (spec 03 section 3.5).

    >>> result = hopskipjump(model.labels, images, labels, keys=keys, norm="l2", queries=5000)
    >>> lp_norm(result.images - images, "l2")[result.found]

A walk along the decision boundary: a binary search from the original to the image found, a vote of
random directions on where the boundary turns, a step that way as long as it stays misclassified.

Legend: N images, B of them taking part in a phase, R copies, C channels, H height, W width,
K classes, D = C*H*W.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, check_inputs, expand, lp_norm
from raybench.kernels.attacks.estimators import subkeys
from raybench.kernels.counter import normal, uniform

__all__ = ["hopskipjump"]

_NORMS = ("l2", "linf")
_TRIES = 48  # noise images asked about for a start
_FIRST_VOTES = 100  # of the paper; votes grow with the root of the iteration
_MOST_VOTES = 10_000  # of the authors' code
_FEWEST_VOTES = 8  # with less budget than for these an iteration is not begun [D]
_HALVINGS = 24
_FINEST = 2.0**-20  # float32 tells neighbouring images in [0, 1] apart down to about this

# Images [B, C, H, W], and which of the N each belongs to [B] -> whether they reach the goal [B].
_Ask = Callable[[Tensor, Tensor], Tensor]
# Which of the N [B] -> queries they have left [B].
_Left = Callable[[Tensor], Tensor]


def hopskipjump(
    labels_fn: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "l2",
    queries: int = 5000,
    targeted: bool = False,
    start: Tensor | None = None,
    batch: int = 512,
) -> AttackResult:
    """Return near misclassified images (https://arxiv.org/abs/1904.02144; spec 03 section 3.5).

    Every image has its own count of queries, and ends at `queries` of them or a few before, when
    they no longer pay for one more iteration. `found_queries` tells when the start was found, not
    when the returned image was. An image that is misclassified as it is comes back as it is.

    Args:
        labels_fn: images [B, C, H, W] to predicted classes [B] int64.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, the true classes, or the wanted ones where `targeted`.
        keys: [N] int64, of the draws of each image.
        norm: of the distance to make small, l2 or linf.
        queries: images asked about at most, for each image.
        targeted: the goal is the class in `labels`; needs `start`.
        start: [N, C, H, W] in [0, 1], where to begin; those that do not reach the goal themselves
            are not attacked where `targeted`, and replaced by noise where not. None: noise.
        batch: images asked about at once.

    Raises:
        ValueError: a setting out of range, or a targeted attack without `start`.
    """
    _check(images, labels, norm=norm, queries=queries, targeted=targeted, start=start, batch=batch)
    images = images.detach()
    count, device = len(images), images.device
    asked = torch.zeros(count, dtype=torch.int64, device=device)

    def ask(copies: Tensor, index: Tensor) -> Tensor:
        asked.index_put_((index,), torch.ones_like(index), accumulate=True)
        parts = range(0, len(copies), batch)
        with torch.no_grad():
            answer = torch.cat([labels_fn(copies[part : part + batch]) for part in parts])
        return answer == labels[index] if targeted else answer != labels[index]

    def left(index: Tensor) -> Tensor:
        return queries - asked[index]

    starts = _starts(images, keys, start, noise=not targeted)
    edge, found_queries = _first_success(ask, left, images, starts)
    found_at = torch.where(found_queries > 0, 0, -1)
    best, distance = edge.clone(), lp_norm(edge - images, norm)
    active = torch.nonzero(distance > 0)[:, 0]
    searches = _searches(images, norm)
    # What is found first is only searched; every round then votes, steps and searches.
    rounds = 0
    while len(active):
        if rounds:
            votes = min(int(_FIRST_VOTES * math.sqrt(rounds)), _MOST_VOTES)
            allowed = (left(active) - searches - 1).clamp_max(votes)
            active, allowed = active[allowed >= _FEWEST_VOTES], allowed[allowed >= _FEWEST_VOTES]
            here, size = edge[active], lp_norm(edge[active] - images[active], norm)
            seeds = subkeys(keys[active], 2**32 + rounds, votes)
            reach = _reach(size, images, first=rounds == 1)
            way = _vote(ask, here, active, seeds, allowed, reach, norm=norm, batch=batch)
            edge[active] = _step(ask, left, here, active, way, size / math.sqrt(rounds))
        edge[active] = _search(
            ask, left, images[active], edge[active], active, halvings=searches, norm=norm
        )
        size = lp_norm(edge[active] - images[active], norm)
        nearer = size < distance[active]
        best[active[nearer]], distance[active[nearer]] = edge[active[nearer]], size[nearer]
        rounds += 1
    return AttackResult(
        images=best,
        found=found_at == 0,
        found_at=found_at,
        found_queries=found_queries,
        queries=asked,
        gradients=torch.zeros_like(asked),
        zero_gradient=torch.zeros_like(found_at, dtype=torch.bool),
    )


def _starts(images: Tensor, keys: Tensor, start: Tensor | None, *, noise: bool) -> Iterator[Tensor]:
    """Yield what may reach the goal: the images, `start`, then noise in cells of 1, 2, 4, 8 pixels.

    Fine noise alone is one class to many networks, and no start for the images of that class.
    """
    yield images
    if start is not None:
        yield start.detach()
    height, width = images.shape[2:]
    for trial in range(_TRIES if noise else 0):
        cell = 2 ** (trial % 4)
        drawn = uniform(keys, trial, images.shape[1:].numel()).to(images.dtype).view_as(images)
        coarse = drawn[:, :, : math.ceil(height / cell), : math.ceil(width / cell)]
        coarse = coarse.repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)
        yield coarse[:, :, :height, :width]


def _first_success(
    ask: _Ask, left: _Left, images: Tensor, starts: Iterator[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the first of `starts` to reach the goal [N, C, H, W] and its queries [N], else -1."""
    edge = images.clone()
    found_queries = torch.full((len(images),), -1, dtype=torch.int64, device=images.device)
    lacking = torch.arange(len(images), device=images.device)
    for number, candidates in enumerate(starts, 1):
        lacking = lacking[left(lacking) > 0]
        if not len(lacking):
            break
        reached = ask(candidates[lacking], lacking)
        edge[lacking[reached]] = candidates[lacking[reached]]
        found_queries[lacking[reached]] = number
        lacking = lacking[~reached]
    return edge, found_queries


def _searches(images: Tensor, norm: str) -> int:
    """Return the halvings that bring a search to D^-3/2 (l2) or D^-2 (linf) of its distance."""
    precision = images.shape[1:].numel() ** (-1.5 if norm == "l2" else -2.0)
    return math.ceil(-math.log2(max(precision, _FINEST)))


def _reach(distance: Tensor, images: Tensor, *, first: bool) -> Tensor:
    """Return the l2 length [B] of a vote's perturbations: `distance` over D; 0.1 in the `first`."""
    if first:
        return torch.full_like(distance, 0.1)
    size = images.shape[1:].numel()
    return (distance / size).clamp_min(_FINEST * math.sqrt(size))


def _vote(
    ask: _Ask,
    edge: Tensor,
    index: Tensor,
    seeds: Tensor,
    votes: Tensor,
    reach: Tensor,
    *,
    norm: str,
    batch: int,
) -> Tensor:
    """Return the direction [B, C, H, W] in which the goal lies, of unit length in `norm`.

    The mean of random directions, each times 1 where it reaches the goal and -1 where not, less the
    mean of these signs (paper, equation 16). `votes` [B] are cast, drawn from `seeds` [B, V].
    """
    count, size = len(edge), edge.shape[1:].numel()
    # In float64: the order of the summands may differ. index_put_ is fast where index_add_ is not.
    signed = torch.zeros(count, size, dtype=torch.float64, device=edge.device)
    plain, balance = torch.zeros_like(signed), torch.zeros_like(signed[:, 0])
    rows = torch.arange(count, device=edge.device).repeat_interleave(votes)
    numbers = torch.arange(len(rows), device=edge.device) - (votes.cumsum(0) - votes)[rows]
    for begin in range(0, len(rows), batch):
        row, number = rows[begin : begin + batch], numbers[begin : begin + batch]
        drawn = normal(seeds[row, number], 0, size)
        if norm == "linf":  # uniform in the cube, through the normal's own distribution
            drawn = 2 * torch.special.ndtr(drawn) - 1
        drawn = drawn / drawn.square().sum(1, keepdim=True).sqrt()
        move = (reach[row, None] * drawn).to(edge.dtype).view(-1, *edge.shape[1:])
        copies = (edge[row] + move).clamp(0, 1)
        # What is left of the direction after clipping.
        drawn = (copies - edge[row]).flatten(1).to(torch.float64) / reach[row, None]
        sign = torch.where(ask(copies, index[row]), 1.0, -1.0).to(torch.float64)
        signed.index_put_((row,), sign[:, None] * drawn, accumulate=True)
        plain.index_put_((row,), drawn, accumulate=True)
        balance.index_put_((row,), sign, accumulate=True)
    mean = balance / votes
    # A unanimous vote has nothing to subtract: all directions, or their opposites, lead there.
    mean = torch.where(mean.abs() == 1, 0.0, mean)
    way = (signed - mean[:, None] * plain).view_as(edge)
    if norm == "linf":
        return way.sign().to(edge.dtype)
    return (way / expand(lp_norm(way, "l2").clamp_min(1e-300))).to(edge.dtype)


def _step(
    ask: _Ask, left: _Left, edge: Tensor, index: Tensor, way: Tensor, length: Tensor
) -> Tensor:
    """Return `edge` moved by `length` [B] along `way`, halved until the goal is reached there."""
    edge, length = edge.clone(), length.to(edge.dtype)
    pending = torch.arange(len(edge), device=edge.device)
    for _ in range(_HALVINGS):
        pending = pending[left(index[pending]) > 0]
        if not len(pending):
            break
        moved = (edge[pending] + expand(length[pending]) * way[pending]).clamp(0, 1)
        reached = ask(moved, index[pending])
        edge[pending[reached]] = moved[reached]
        pending = pending[~reached]
        length = length / 2
    return edge


def _search(
    ask: _Ask,
    left: _Left,
    images: Tensor,
    edge: Tensor,
    index: Tensor,
    *,
    halvings: int,
    norm: str,
) -> Tensor:
    """Return the nearest that a binary search from `edge` towards `images` saw reach the goal.

    On the segment between the two (l2), or over the boxes around the image that `edge` is clipped
    into (linf).
    """
    delta, nearest = edge - images, edge.clone()
    size = lp_norm(delta, norm).to(edge.dtype)
    low, high = torch.zeros_like(size), torch.ones_like(size)
    pending = torch.arange(len(edge), device=edge.device)
    for _ in range(halvings):
        pending = pending[left(index[pending]) > 0]
        if not len(pending):
            break
        middle = (low[pending] + high[pending]) / 2
        if norm == "l2":
            inner = expand(middle) * delta[pending]
        else:
            bound = expand(middle * size[pending])
            inner = delta[pending].clamp(-bound, bound)
        copies = (images[pending] + inner).clamp(0, 1)
        reached = ask(copies, index[pending])
        nearest[pending[reached]] = copies[reached]
        high[pending] = torch.where(reached, middle, high[pending])
        low[pending] = torch.where(reached, low[pending], middle)
    return nearest


def _check(
    images: Tensor,
    labels: Tensor,
    *,
    norm: str,
    queries: int,
    targeted: bool,
    start: Tensor | None,
    batch: int,
) -> None:
    if norm not in _NORMS:
        raise ValueError(f"norm must be one of {', '.join(_NORMS)}; found {norm!r}")
    check_inputs(images, labels, queries=queries, batch=batch)
    if targeted and start is None:
        raise ValueError("start must be given where targeted: images of the wanted classes")
    if start is not None and start.shape != images.shape:
        raise ValueError(f"start must have shape {tuple(images.shape)}; found {tuple(start.shape)}")
