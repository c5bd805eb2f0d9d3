"""Square Attack (Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049; spec 03 s. 3.4).

    >>> keys = torch.from_numpy(sample_keys(seed, "square", sample_ids))
    >>> result = square(
    ...     model.logits, images, labels, keys=keys, norm="linf", eps=8 / 255, queries=5000
    ... )

A random search by scores alone: a square of changed values is kept where the loss improves. Every
image has squares of its own, at any place, the last row and column included.

Legend: N images, B of them still active, C channels, H height, W width, K classes, s side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raybench.kernels.attacks.common import (
    LOSSES,
    AttackResult,
    Scores,
    check_inputs,
    expand,
    lp_norm,
    succeeded,
)
from raybench.kernels.counter import signs, uniform

__all__ = ["side_of_square", "square"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # p halves after so many squares
_TILES = 5  # the start in l2 and l1 has about 5 x 5 windows
_DRAWN_AT_ONCE = 64  # squares for which one draw serves
_RUN = 2**32  # draws of restart r have steps from r * 2^32


def square(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    queries: int = 5000,
    p: float = 0.8,
    loss: str | None = None,
    targeted: bool = False,
    restarts: int = 1,
    rescale: bool = False,
    trace: bool = False,
) -> AttackResult:
    """Return the first success of Square, or the best loss (arXiv 1912.00049; spec 03 s. 3.4).

    Query 1 asks about the original (iteration 0 of the result), query 2 about the start: stripes
    in linf, windows in l2 and l1. The others ask about one square each.

    Args:
        scores: images [B, C, H, W] in [0, 1] -> logits or log-probabilities [B, K].
        images: originals [N, C, H, W] float32 in [0, 1].
        labels: true classes [N] int64; the wanted ones where `targeted`.
        keys: [N] int64, see `counter.sample_keys`.
        norm: linf, l2 or l1. In l2 and l1 what clipping takes away is spread over the rest.
        eps: radius, above 0.
        queries: images asked about in each restart, at least 2.
        p: share of the image that the first squares cover, in (0, 1].
        loss: "margin", "ce" or "dlr"; None: the margin, or the cross-entropy where `targeted`.
        targeted: look for the class in `labels` instead of away from it.
        restarts: at least 1; the later ones see images without success.
        rescale: let `p` fall as within 10 000 queries, whatever `queries` is.
        trace: fill ``losses`` [N, restarts * queries], to ascend as `common.LOSSES`.

    Raises:
        ValueError: a setting out of range, or misshapen input.
    """
    loss = loss or ("ce" if targeted else "margin")
    _check(images, labels, norm, loss, eps=eps, queries=queries, p=p, restarts=restarts)
    images = images.detach()
    best = images.clone()
    found_at = torch.full(labels.shape, -1, dtype=torch.int64, device=images.device)
    asked = torch.zeros_like(found_at)
    gains = torch.full(labels.shape, -torch.inf, dtype=torch.float64, device=images.device)
    path = gains[:, None].repeat(1, restarts * queries) if trace else None

    @torch.no_grad()
    def ask(points: Tensor, rows: Tensor, at: int) -> tuple[Tensor, Tensor]:
        answer = scores(points)
        asked[rows] += 1
        reached = succeeded(answer, labels[rows], targeted=targeted)
        gain = LOSSES[loss](answer, labels[rows], targeted=targeted).to(torch.float64)
        gain = gain.nan_to_num(-torch.inf, torch.inf, -torch.inf)
        better = (reached | (gain > gains[rows])).nonzero()[:, 0]
        best[rows[better]] = points[better]
        gains[rows[better]] = gain[better]
        found_at[rows[reached]] = at
        if path is not None:
            path[rows, at] = gain
        return reached, gain

    if len(images):
        ask(images, torch.arange(len(images), device=images.device), 0)
    for restart in range(restarts):
        rows = (found_at < 0).nonzero()[:, 0]
        origin, start = images[rows], max(1, restart * queries)
        # Written to in place, a square at a time: copies of whole images cost more than queries of
        # a small network.
        current = _start(keys[rows], restart * _RUN, origin, norm, eps)
        drawn = _draws(keys[rows], restart, 0, images)
        gain = gains[rows]
        for at in range(start, (restart + 1) * queries):
            if len(rows) == 0:
                break
            points, turn, patch = current, at - start - 1, None
            if turn >= 0:
                block, place = divmod(turn, _DRAWN_AT_ONCE)
                if place == 0 and block > 0:
                    drawn = _draws(keys[rows], restart, block, images)
                side = side_of_square(
                    p, turn * 10_000 // queries if rescale else turn, images, norm
                )
                if norm == "linf":
                    patch = _values(origin, current, drawn[:, place], side, eps)
                    patch.write(current)
                else:
                    points = _windows(origin, current, drawn[:, place], side, norm, eps)
            reached, fresh = ask(points, rows, at)
            # The start is taken whatever its loss.
            improved = reached | (fresh > gain) | (turn < 0)
            if patch is None:
                current = torch.where(expand(improved), points, current)
            else:
                patch.undo(current, ~improved)
            gain = torch.where(improved, fresh, gain)
            if reached.any():
                left = ~reached
                rows, origin, current = rows[left], origin[left], current[left]
                gain, drawn = gain[left], drawn[left]

    found = found_at >= 0
    return AttackResult(
        images=best,
        found=found,
        found_at=found_at,
        found_queries=torch.where(found, asked, -1),
        queries=asked,
        gradients=torch.zeros_like(asked),
        zero_gradient=torch.zeros_like(found),
        losses=None if path is None else path.cummax(1).values,
    )


def side_of_square(p: float, turn: int, images: Tensor, norm: str) -> int:
    """Return the side of square number `turn` (from 0), after the schedule of spec 03 s. 3.4."""
    height, width = int(images.shape[2]), int(images.shape[3])
    share: float = p / 2 ** sum(turn > bound for bound in _HALVINGS)
    side = max(round((share * height * width) ** 0.5), 1 if norm == "linf" else 3)
    # Windows of l2 and l1 have a middle, and so an odd side.
    if norm != "linf" and side % 2 == 0:
        side += 1
    return int(min(side, height, width))


def _check(
    images: Tensor, labels: Tensor, norm: str, loss: str, *, p: float, queries: int, **more: float
) -> None:
    check_inputs(images, labels, norm=norm, p=p, queries=queries, **more)
    rules = (
        (loss in LOSSES, f"loss must be one of {', '.join(LOSSES)}; found {loss!r}"),
        (p <= 1, f"p must be at most 1; found {p}"),
        (queries >= 2, f"queries must be at least 2; found {queries}"),
    )
    for holds, text in rules:
        if not holds:
            raise ValueError(text)


def _draws(keys: Tensor, restart: int, block: int, images: Tensor) -> Tensor:
    """Return [B, 64, 5 + C] in (0, 1): two corners, a turn of the window, a sign a channel."""
    width = 5 + images.shape[1]
    drawn = uniform(keys, restart * _RUN + 1 + block, _DRAWN_AT_ONCE * width)
    return drawn.view(len(keys), _DRAWN_AT_ONCE, width)


def _start(keys: Tensor, step: int, origin: Tensor, norm: str, eps: float) -> Tensor:
    """Return the first points: vertical stripes of +-eps in linf, a grid of windows otherwise."""
    count, channels, height, width = origin.shape
    if norm == "linf":
        stripes = signs(keys, step, channels * width).view(count, channels, 1, width)
        return (origin + eps * stripes).clamp(0, 1)
    side = max(1, min(height, width) // _TILES)
    down, right = height // side, width // side
    fair = signs(keys, step, (channels + 1) * down * right).view(count, channels + 1, down, right)
    window = _window(side, norm, origin)
    tile = torch.where(
        (fair[:, -1] > 0)[:, None, :, None, :, None],
        window[:, None, :],
        window.T[:, None, :],
    )
    grid = (fair[:, :-1, :, None, :, None] * tile).reshape(
        count, channels, down * side, right * side
    )
    top, left = (height - down * side) // 2, (width - right * side) // 2
    delta = torch.zeros_like(origin)
    delta[:, :, top : top + down * side, left : left + right * side] = grid
    return _spread(origin, delta, norm, eps)


def _place(draws: Tensor, side: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a square for each draw [B, 2]: whether inside [B, 1, H, W], the row and the column.

    Rows [B, H, 1] and columns [B, 1, W] count from the square's corner. All (H-s+1) * (W-s+1)
    places are equally likely.
    """
    sizes = torch.tensor(images.shape[2:], device=images.device)
    corner = (draws * (sizes - side + 1)).to(torch.int64)
    row = torch.arange(images.shape[2], device=images.device)[None, :, None] - corner[:, :1, None]
    column = torch.arange(images.shape[3], device=images.device) - corner[:, 1:, None]
    inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return inside[:, None], row, column


@dataclass(frozen=True, slots=True)
class _Patch:
    """New values of a square of each image.

    Attributes:
        index: int64 [B, C, s*s], places in the flattened image [H*W].
        new: [B, C, s*s], the values proposed.
        old: the values that they replace.
    """

    index: Tensor
    new: Tensor
    old: Tensor

    def write(self, points: Tensor) -> None:
        """Put the new values into `points` [B, C, H, W]."""
        points.flatten(2).scatter_(2, self.index, self.new)

    def undo(self, points: Tensor, rows: Tensor) -> None:
        """Put the old values back where `rows` [B]."""
        kept = torch.where(rows[:, None, None], self.old, self.new)
        points.flatten(2).scatter_(2, self.index, kept)


def _values(origin: Tensor, current: Tensor, draws: Tensor, side: int, eps: float) -> _Patch:
    """Return linf proposals: a square of one sign a channel, at the ball's surface."""
    _, channels, height, width = origin.shape
    count = torch.tensor([height - side + 1, width - side + 1], device=origin.device)
    corner = (draws[:, :2] * count).to(torch.int64)
    steps = torch.arange(side, device=origin.device)
    places = ((corner[:, :1] + steps)[:, :, None] * width) + (corner[:, 1:] + steps)[:, None]
    index = places.flatten(1)[:, None].expand(-1, channels, -1)
    fair = torch.where(draws[:, 5:] < 0.5, -eps, eps).to(origin.dtype)[:, :, None]
    middle, old = origin.flatten(2).gather(2, index), current.flatten(2).gather(2, index)
    new = (middle + fair).clamp_(0, 1)
    # A square that is there already would be a query for nothing; its negative is not there.
    same = (new == old).flatten(1).all(1)
    if same.any():
        new = torch.where(same[:, None, None], (middle - fair).clamp_(0, 1), new)
    return _Patch(index, new, old)


def _windows(
    origin: Tensor, current: Tensor, draws: Tensor, side: int, norm: str, eps: float
) -> Tensor:
    """Return l2 or l1 proposals: a window takes the budget of another one and what is unspent."""
    power = 2 if norm == "l2" else 1
    delta = current - origin

    def size(values: Tensor) -> Tensor:
        return values.abs().pow(power).sum((2, 3), keepdim=True)

    inside, row, column = _place(draws[:, :2], side, origin)
    emptied, _, _ = _place(draws[:, 2:4], side, origin)
    row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
    window = _window(side, norm, origin)
    window = torch.where(
        (draws[:, 4] < 0.5)[:, None, None], window[row, column], window[column, row]
    )
    fair = torch.where(draws[:, 5:] < 0.5, -1.0, 1.0).to(origin.dtype)[:, :, None, None]
    old = delta * inside
    fresh = fair * (window[:, None] * inside) + old / (size(old) ** (1 / power)).clamp_min(1e-12)
    unspent = (eps**power - size(delta).sum(1, keepdim=True)).clamp_min(0) / origin.shape[1]
    budget = unspent + size(delta * (inside | emptied))
    fresh = fresh * (budget / size(fresh).clamp_min(1e-24)) ** (1 / power)
    if norm == "l1":
        # Every channel asks for all of it, and `_spread` leaves the largest values.
        fresh = fresh * origin.shape[1]
    return _spread(origin, torch.where(inside, fresh, delta * ~emptied), norm, eps)


def _window(side: int, norm: str, images: Tensor) -> Tensor:
    """Return [s, s] of size 1 in `norm`: two pyramids of opposite signs, one above the other.

    A pyramid is a sum of nested rectangles about its middle, the k-th weighted by k^-2 (l2) or by
    k^-4 (l1), k = 1 the middle itself.
    """

    def pyramid(height: int) -> Tensor:
        rows = torch.arange(height, device=images.device) - height // 2
        columns = torch.arange(side, device=images.device) - side // 2
        # The k-th rectangle holds what is fewer than k steps from the middle.
        nearest = torch.maximum(rows.abs()[:, None], columns.abs()[None])
        depth = max(height // 2, side // 2) + 1
        weights = torch.arange(1, depth + 1, device=images.device, dtype=images.dtype)
        tails = (weights ** (-2 if norm == "l2" else -4)).flip(0).cumsum(0).flip(0)
        values = tails[nearest]
        return values / lp_norm(values[None], norm)

    halves = [
        sign * pyramid(height)
        for sign, height in ((1, side // 2), (-1, side - side // 2))
        if height > 0
    ]
    window = torch.cat(halves)
    return (window / lp_norm(window[None], norm)).to(images.dtype)


def _spread(origin: Tensor, delta: Tensor, norm: str, eps: float) -> Tensor:
    """Return points in [0, 1] whose perturbation is `delta`, brought to size `eps` in `norm`.

    In l1 what is too large loses the same amount from every value, which keeps it sparse (the
    nearest point of ball and box); otherwise it is scaled. What clipping takes away is spread over
    the rest, twice.
    """
    if norm == "l1":
        delta = _shrink(origin, delta, eps)
    for _ in range(3):
        size = lp_norm(delta, norm).clamp_min(1e-12)
        moved = (origin + delta * expand(eps / size).to(origin.dtype)).clamp(0, 1)
        delta = moved - origin
    return moved


def _shrink(origin: Tensor, delta: Tensor, eps: float) -> Tensor:
    """Return the nearest of the `delta` that keep `origin` in [0, 1] and are at most `eps` in l1.

    By the conditions of optimality it is min(room, max(|delta| - t, 0)) with the signs of delta,
    where t >= 0 is the least that fits: found by bisection, to a 2^-25th of the largest value.
    """
    size = delta.abs()
    room = torch.where(delta > 0, 1 - origin, origin)
    high = size.flatten(1).amax(1)
    low = torch.zeros_like(high)
    for _ in range(25):
        middle = (low + high) / 2
        kept = torch.minimum((size - expand(middle)).clamp_min(0), room)
        large = kept.flatten(1).sum(1) > eps
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    return delta.sign() * torch.minimum((size - expand(high)).clamp_min(0), room)
