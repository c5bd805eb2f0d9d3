"""FAB, the fast adaptive boundary attack (Croce and Hein 2020, https://arxiv.org/abs/1907.02044).

    >>> keys = torch.from_numpy(sample_keys(seed, "fab", sample_ids))
    >>> result = fab_targeted(model.logits, images, labels, keys=keys, norm="linf", eps=8 / 255)
    >>> robust = lp_norm(result.images - images, "linf") > 8 / 255

A minimal-norm attack: the model is linearised, and the next point is the nearest point of the
linear boundary within the box [0, 1]^D, drawn a little to the original.

Legend: N images, B of them (or B pairs of image and target) active, C channels, H height, W width,
K classes, T targets, D = C*H*W.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

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
from raybench.kernels.attacks.fab_step import biased_step
from raybench.kernels.attacks.turns import joined, most_rows
from raybench.kernels.counter import normal, uniform

__all__ = ["fab", "fab_targeted"]

BETA = 0.9  # share of its way out that a point keeps after a success
_SEARCH_STEPS = 3
_RUN = 2**32  # draws of restart r have steps from r * 2^32

# Points [B, C, H, W] and their rows [B] -> logits [B, K]; f [B], a difference of scores that is
# below 0 before the boundary f = 0; its gradient [B, C, H, W]; the number of backward passes.
_Linearise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What is known of N images, written in place.

    Attributes:
        originals: [N, C, H, W].
        images: [N, C, H, W], the nearest adversarials.
        sizes: [N] float64, their distances; inf where there is none.
        norm: of the distances.
        bound: largest distance that counts as found.
        done: distance at which an image leaves the search.
    """

    originals: Tensor
    norm: str
    bound: float
    done: float
    images: Tensor
    sizes: Tensor
    found_at: Tensor
    found_queries: Tensor
    queries: Tensor
    gradients: Tensor
    zero_gradient: Tensor


def fab(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    steps: int = 100,
    restarts: int = 1,
    targeted: bool = False,
    within: bool = False,
) -> AttackResult:
    """Return the nearest adversarial found (https://arxiv.org/abs/1907.02044; spec 02 s. 2.8).

    A step takes one backward pass for each class but the true one; where `targeted` a single one,
    of the wanted class's score less the largest other. ``found`` means found at any distance: the
    caller compares norms with `eps`.

    Args:
        scores: images [B, C, H, W] in [0, 1] -> logits [B, K], differentiable.
        images: originals [N, C, H, W] float32 in [0, 1].
        labels: true classes [N] int64; the wanted ones where `targeted`.
        keys: [N] int64, see `counter.sample_keys`; used by restarts alone.
        norm: the norm to minimise: linf, l2 or l1.
        eps: radius of interest, above 0. Restarts begin at half of `eps`, or of the best distance
            where that is smaller.
        steps: steps of each restart, at least 1.
        restarts: at least 1; the first begins at the original.
        targeted: look for the class in `labels` instead of away from it.
        within: attack within the budget `eps` instead, as AutoAttack does: only adversarials at
            most `eps` away count as found, the first of them ends the search for its image, and an
            image without one comes back as it was. It saves passes.

    Raises:
        ValueError: a setting out of range, or misshapen input.
    """
    check_inputs(images, labels, norm=norm, eps=eps, steps=steps, restarts=restarts)

    def linearise(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        mine = labels[rows]
        if not targeted:
            return _nearest_boundary(scores, points, mine, norm)
        step = gradient_step(scores, points, lambda answer: -margin(answer, mine, targeted=True))
        return *step, 1

    record = _record(images, norm, eps if within else None)
    owner = torch.arange(len(images), device=images.device)
    return _search(
        scores, labels, owner, linearise, record, keys=keys, eps=eps, steps=steps,
        restarts=restarts, targeted=targeted,
    )  # fmt: skip


def fab_targeted(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    steps: int = 100,
    restarts: int = 1,
    num_targets: int = 9,
    within: bool = False,
) -> AttackResult:
    """Return the nearest adversarial found by FAB-T (AutoAttack's; spec 02 s. 2.8).

    For each of the `num_targets` classes t that follow the true class y in the scores of the
    original, a search along the boundary of z_t - z_y: one backward pass a step whatever K. Any
    misclassification counts. All targets of an image run at once, and so many images that a pass
    suits the device (`turns.most_rows`). Arguments are those of `fab`, and `num_targets` from 1 to
    K - 1.

    Raises:
        ValueError: a setting out of range, or misshapen input.
    """
    check_inputs(
        images, labels, norm=norm, eps=eps, steps=steps, restarts=restarts, num_targets=num_targets
    )
    images = images.detach()
    size = max(1, most_rows(images) // num_targets)
    groups = zip(*(torch.split(each, size) for each in (images, labels, keys)), strict=True)
    run = partial(
        _every_target, scores, norm=norm, eps=eps, steps=steps, restarts=restarts,
        num_targets=num_targets, within=within,
    )  # fmt: skip
    return joined([run(some, own, drawn) for some, own, drawn in groups])


def _every_target(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    keys: Tensor,
    *,
    norm: str,
    eps: float,
    steps: int,
    restarts: int,
    num_targets: int,
    within: bool,
) -> AttackResult:
    """Return what `fab_targeted` comes to, all targets of all images in one batch."""
    with torch.no_grad():
        answer = scores(images)
    others = answer.shape[1] - 1
    if num_targets > others:
        raise ValueError(f"num_targets must be at most classes - 1 = {others}; found {num_targets}")
    ranked = answer.scatter(1, labels[:, None], -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    targets = ranked[:, :num_targets].flatten()
    owner = torch.arange(len(images), device=images.device).repeat_interleave(num_targets)

    record = _record(images, norm, eps if within else None)
    record.queries.add_(1)
    everyone = torch.arange(len(images), device=images.device)
    _note(record, everyone, images, succeeded(answer, labels), at=0)

    def linearise(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        pair = torch.stack([targets[rows], labels[owner[rows]]], 1)
        step = gradient_step(scores, points, lambda z: z.gather(1, pair) @ z.new_tensor([1, -1]))
        return *step, 1

    return _search(
        scores, labels, owner, linearise, record, keys=keys, eps=eps, steps=steps,
        restarts=restarts, targeted=False,
    )  # fmt: skip


def _search(
    scores: Scores,
    labels: Tensor,
    owner: Tensor,
    linearise: _Linearise,
    record: _Record,
    *,
    keys: Tensor,
    eps: float,
    steps: int,
    restarts: int,
    targeted: bool,
) -> AttackResult:
    """Return the result of searches for rows [R], of which row r begins at image ``owner[r]``."""
    for restart in range(restarts):
        active = (record.sizes[owner] > record.done).nonzero()[:, 0]
        points = _starts(record, keys, restart, eps)[owner[active]]
        for at in range(restart * steps, (restart + 1) * steps):
            if len(active) == 0:
                break
            mine = owner[active]
            answer, gaps, slopes, passes = linearise(points, active)
            record.queries.index_add_(0, mine, torch.ones_like(mine))
            record.gradients.index_add_(0, mine, torch.full_like(mine, passes))
            record.zero_gradient[mine[(slopes == 0).flatten(1).all(1)]] = True
            _note(record, mine, points, succeeded(answer, labels[mine], targeted=targeted), at=at)

            left = record.sizes[mine] > record.done
            active, mine, points = active[left], mine[left], points[left]
            if len(active) == 0:
                break
            origin = record.originals[mine]
            moved = biased_step(points, origin, gaps[left], slopes[left], record.norm)
            with torch.no_grad():
                reached = succeeded(scores(moved), labels[mine], targeted=targeted)
            record.queries.index_add_(0, mine, torch.ones_like(mine))
            _note(record, mine, moved, reached, at=at + 1)
            moved = torch.where(expand(reached), origin + BETA * (moved - origin), moved)
            # A point that stays where it is would stay for ever: this restart is over for it.
            left = (record.sizes[mine] > record.done) & (moved != points).flatten(1).any(1)
            active, points = active[left], moved[left]
    _final_search(scores, labels, record, restarts * steps, targeted)
    found = record.found_at >= 0
    return AttackResult(
        images=torch.where(expand(found), record.images, record.originals),
        found=found,
        found_at=record.found_at,
        found_queries=record.found_queries,
        queries=record.queries,
        gradients=record.gradients,
        zero_gradient=record.zero_gradient,
    )


def _record(images: Tensor, norm: str, bound: float | None) -> _Record:
    """Return an empty record; without a `bound` any distance counts, and only 0 is done."""
    zeros = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return _Record(
        originals=images.detach(),
        norm=norm,
        bound=torch.inf if bound is None else bound,
        done=0.0 if bound is None else bound,
        images=images.detach().clone(),
        sizes=torch.full(zeros.shape, torch.inf, dtype=torch.float64, device=images.device),
        found_at=zeros - 1,
        found_queries=zeros - 1,
        queries=zeros.clone(),
        gradients=zeros.clone(),
        zero_gradient=zeros > 0,
    )


def _note(record: _Record, owner: Tensor, points: Tensor, reached: Tensor, *, at: int) -> None:
    """Write into `record` those of `points` [B, C, H, W] that reached the goal and are nearer."""
    if not reached.any():
        return
    sizes = lp_norm(points - record.originals[owner], record.norm)
    sizes = torch.where(reached, sizes, torch.inf)
    nearest = record.sizes.scatter_reduce(0, owner, sizes, "amin")
    better = nearest < record.sizes
    # Of rows of one image that are equally near, the first: writes of duplicates have no order.
    rows = torch.arange(len(owner), device=owner.device)
    rows = torch.where(sizes == nearest[owner], rows, len(owner))
    first = torch.full_like(record.queries, len(owner)).scatter_reduce(0, owner, rows, "amin")
    record.images[better] = points[first[better]]
    record.sizes.copy_(nearest)
    new = better & (nearest <= record.bound) & (record.found_at < 0)
    record.found_at[new] = at
    record.found_queries[new] = record.queries[new]


def _starts(record: _Record, keys: Tensor, restart: int, eps: float) -> Tensor:
    """Return where restart number `restart` begins: the originals, or random points about them."""
    images = record.originals
    if restart == 0:
        return images
    count = images.shape[1:].numel()
    if record.norm == "linf":
        drawn = 2 * uniform(keys, restart * _RUN, count) - 1
    else:
        drawn = normal(keys, restart * _RUN, count)
    radius = record.sizes.clamp_max(eps) / 2 / lp_norm(drawn, record.norm)
    moved = (drawn * radius[:, None]).to(images.dtype).view_as(images)
    return (images + moved).clamp(0, 1)


def _nearest_boundary(
    scores: Scores, points: Tensor, labels: Tensor, norm: str
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Linearise the boundary between `labels` and that class whose own one seems nearest.

    Distances are |f| over the dual norm of f's gradient. Classes take turns, so that a single
    gradient is held besides the best.
    """
    dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]
    with torch.enable_grad():
        leaf = points.detach().requires_grad_(True)
        answer = scores(leaf)
        classes = answer.shape[1]
        gap = torch.zeros(len(points), dtype=answer.dtype, device=points.device)
        slope = torch.zeros_like(points)
        best = torch.full(labels.shape, torch.inf, dtype=torch.float64, device=points.device)
        # A model that cuts the graph has a gradient of zero throughout.
        for turn in range(1, classes) if answer.requires_grad else ():
            other = (labels + turn) % classes
            difference = (
                answer.gather(1, other[:, None]) - answer.gather(1, labels[:, None])
            ).squeeze(1)
            (gradient,) = torch.autograd.grad(
                difference, leaf, torch.ones_like(difference), retain_graph=turn < classes - 1,
                allow_unused=True, materialize_grads=True,
            )  # fmt: skip
            distance = difference.detach().abs() / lp_norm(gradient, dual)
            nearer = distance < best
            best = torch.where(nearer, distance, best)
            gap = torch.where(nearer, difference.detach(), gap)
            slope = torch.where(expand(nearer), gradient, slope)
    return answer.detach(), gap, slope, classes - 1


def _final_search(scores: Scores, labels: Tensor, record: _Record, at: int, targeted: bool) -> None:
    """Pull each adversarial to its original along the line between them, by false position."""
    rows = ((record.sizes > record.done) & (record.sizes < torch.inf)).nonzero()[:, 0]
    if len(rows) == 0:
        return
    origin, wanted = record.originals[rows], labels[rows]
    way = record.images[rows] - origin

    @torch.no_grad()
    def height(shares: Tensor) -> tuple[Tensor, Tensor]:
        points = (origin + expand(shares) * way).clamp(0, 1)
        answer = scores(points)
        record.queries[rows] += 1
        reached = succeeded(answer, wanted, targeted=targeted)
        _note(record, rows, points, reached, at=at)
        return margin(answer, wanted, targeted=targeted), reached

    inner = torch.zeros(len(rows), dtype=origin.dtype, device=origin.device)
    outer = torch.ones_like(inner)
    above, _ = height(inner)
    below, _ = height(outer)
    for _ in range(_SEARCH_STEPS):
        crossing = (above / (above - below)).nan_to_num(0.5).clamp(0, 1)
        # A hundredth beyond the crossing, since the crossing itself is a tie.
        crossing = (crossing + 0.01 * (1 - crossing)).to(inner.dtype)
        shares = inner + crossing * (outer - inner)
        middle, reached = height(shares)
        inner, outer = torch.where(reached, inner, shares), torch.where(reached, shares, outer)
        above, below = torch.where(reached, above, middle), torch.where(reached, middle, below)
