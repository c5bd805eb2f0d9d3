"""Several attempts at an image, restarts and target classes: the first alone, the rest at once.

    >>> result = in_turn(new_result(images), stages(attempt, images, count=9))

The first attempt mostly succeeds, where any does, and costs the fewest passes alone. Images that
withstand it are few, and passes over few images waste a device, so that the remaining attempts at
such an image walk side by side, as rows of one batch, until one of them succeeds. Which attempts
share a batch depends on the image alone; results do not depend on its neighbours.

Legend: N images, B of them still active, R rows (B images times the attempts made at once), C
channels, H height, W width, T iterations.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raybench.kernels.attacks.common import AttackResult

__all__ = [
    "Attempts",
    "in_turn",
    "joined",
    "most_rows",
    "new_losses",
    "new_result",
    "note_success",
    "stages",
]

_PIXELS = {"cpu": 2**17, "cuda": 2**20}
"""Values of the images in one pass that a device works on best: beyond it, a CPU's activations
leave the cache and are faulted in anew by every pass (half as much time again on a 28x28 CNN)."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """The attempts made at once at B images; row ``b * len(places) + p`` is place p of image b.

    Attributes:
        rows: [B] int64, the images.
        places: which attempts, 0 the first of all.
    """

    rows: Tensor
    places: tuple[int, ...]

    def spread(self, values: Tensor) -> Tensor:
        """Return what each row [R, ...] has of `values` [N, ...]."""
        chosen = values[self.rows]
        if len(self.places) == 1:
            return chosen
        return chosen.repeat_interleave(len(self.places), 0)

    def weave(self, made: Callable[[int], Tensor]) -> Tensor:
        """Return ``made(place)`` [B, ...] of every place as rows [R, ...]."""
        each = [made(place) for place in self.places]
        return each[0] if len(each) == 1 else torch.stack(each, 1).flatten(0, 1)

    def leaving(self, index: Tensor, won: Tensor) -> Tensor:
        """Return which of the rows `index` [A] are done, since one of their image has `won` [A]."""
        if len(self.places) == 1:
            return won
        image = index // len(self.places)
        done = torch.zeros(len(self.rows), dtype=torch.bool, device=index.device)
        done[image[won]] = True
        return done[image]

    def best(self, result: AttackResult) -> AttackResult:
        """Return the `result` [R] of each image [B]: a success, of several the first place's.

        Without one it is the highest loss. Queries and gradients are sums over an image's rows,
        which have all made the same passes when one succeeds.
        """
        count = len(self.places)
        if count == 1:
            return result
        assert result.losses is not None
        found, losses = (
            result.found.view(-1, count),
            result.losses.view(-1, count, result.losses.shape[1]),
        )
        reached = losses.amax(2)
        reached = torch.where(found, torch.inf, reached)
        place = torch.arange(count, device=reached.device)
        top = reached == reached.amax(1, keepdim=True)
        first = torch.where(top, place, count).amin(1)
        row = torch.arange(len(first), device=first.device) * count + first
        return AttackResult(
            images=result.images[row],
            found=result.found[row],
            found_at=result.found_at[row],
            found_queries=torch.where(result.found[row], count * result.found_queries[row], -1),
            queries=result.queries.view(-1, count).sum(1),
            gradients=result.gradients.view(-1, count).sum(1),
            zero_gradient=result.zero_gradient.view(-1, count).any(1),
            losses=losses.amax(1),
        )


Turn = Callable[[Tensor], AttackResult]


def stages(
    attempt: Callable[[Attempts], AttackResult], images: Tensor, count: int
) -> Sequence[Turn]:
    """Return the turns of `count` attempts at images [N, C, H, W]: the first, then the others.

    ``attempt(attempts)`` answers for rows [R], of which those of an image stop at the first success
    of any (`Attempts.leaving`). A pass has at most `most_rows`, so that folding never asks for
    memory that the first attempt did not.
    """
    most = most_rows(images)

    def together(rows: Tensor, places: tuple[int, ...]) -> AttackResult:
        parts = []
        for some in torch.split(rows, max(1, most // len(places))):
            attempts = Attempts(some, places)
            parts.append(attempts.best(attempt(attempts)))
        return joined(parts)

    groups = [(0,), tuple(range(1, count))] if count > 1 else [(0,)]
    return [partial(together, places=places) for places in groups]


def most_rows(images: Tensor) -> int:
    """Return how many rows a pass over rows of `images` [N, C, H, W] may have: at least N."""
    pixels = _PIXELS.get(images.device.type, _PIXELS["cuda"])
    return max(len(images), pixels // max(1, images[0:1].numel()))


def joined(parts: Sequence[AttackResult]) -> AttackResult:
    """Return the results of several groups of images, at least one, as one."""
    if len(parts) == 1:
        return parts[0]
    values: dict[str, Any] = {}
    for field in fields(AttackResult):
        each = [getattr(part, field.name) for part in parts]
        values[field.name] = None if each[0] is None else torch.cat(each)
    return AttackResult(**values)


def in_turn(result: AttackResult, turns: Iterable[Turn], *, shrink: bool = True) -> AttackResult:
    """Return `result` [N] carried on through `turns`, each for the images not found before it.

    A turn is given their rows [B] and answers for them, with losses [B, T] of its own iterations.
    An image keeps its first success, or else the best loss of all turns. Where `shrink` is False,
    every turn is given every image.
    """
    paths, before = [], 0
    top = new_losses(result.images, 1)[:, 0]
    for turn in turns:
        asked = ~result.found if shrink else torch.ones_like(result.found)
        rows = asked.nonzero()[:, 0]
        part = turn(rows)
        assert part.losses is not None
        reached = part.losses.amax(1)
        still = ~result.found[rows]
        gained = still & (part.found | (reached > top[rows]))
        result.images[rows[gained]] = part.images[gained]
        top[rows] = torch.maximum(top[rows], reached)
        fresh = still & part.found
        at = rows[fresh]
        result.found[at] = True
        result.found_at[at] = before + part.found_at[fresh]
        result.found_queries[at] = result.queries[at] + part.found_queries[fresh]
        result.queries[rows] += part.queries
        result.gradients[rows] += part.gradients
        result.zero_gradient[rows] |= part.zero_gradient & still
        path = new_losses(result.images, part.losses.shape[1])
        path[rows] = part.losses
        paths.append(path)
        before += path.shape[1]
    return replace(result, losses=torch.cat(paths, 1).cummax(1).values)


def new_result(images: Tensor) -> AttackResult:
    """Return the result of an attack that has done nothing yet; the caller writes into it."""
    count = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return AttackResult(
        images=images.detach().clone(),
        found=count.bool(),
        found_at=count - 1,
        found_queries=count - 1,
        queries=count.clone(),
        gradients=count.clone(),
        zero_gradient=count.bool(),
    )


def new_losses(images: Tensor, iterations: int) -> Tensor:
    """Return losses [N, T] float64 of -inf, below every loss there is."""
    shape = (len(images), iterations)
    return torch.full(shape, -torch.inf, dtype=torch.float64, device=images.device)


def note_success(
    result: AttackResult, rows: Tensor, images: Tensor, iteration: int, queries: int
) -> None:
    """Write into `result` that `rows` met their goal with `images`, at which cost."""
    result.images[rows] = images
    result.found[rows] = True
    result.found_at[rows] = iteration
    result.found_queries[rows] = queries
