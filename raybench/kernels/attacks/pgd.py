"""Projected gradient descent (Madry et al. 2018, https://arxiv.org/abs/1706.06083; spec 02 s. 2.3).

    >>> keys = torch.from_numpy(sample_keys(seed, "pgd", sample_ids))
    >>> settings = {"norm": "linf", "eps": 8 / 255, "steps": 40, "step_size": 2 / 255}
    >>> result = pgd(model.logits, images, labels, keys=keys, restarts=5, **settings)
    >>> bim = pgd(model.logits, images, labels, keys=keys, random_start=False, **settings)
    >>> (1 - result.found.double()).mean()  # robust accuracy over images that were classified well

The parts of it serve FGSM and APGD too: one walk (`climb`), its passes, step and ball (`ask`,
`uphill`, `Ball`). `inner_maximisation` is the bare loop of adversarial training.

Legend: N images, B of them still active, C channels, H height, W width, K classes, T iterations.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from raybench.kernels.attacks.common import (
    LOSSES,
    AttackResult,
    Scores,
    ball_start,
    check_inputs,
    cross_entropy,
    expand,
    gradient_step,
    succeeded,
)
from raybench.kernels.attacks.turns import (
    Attempts,
    in_turn,
    new_losses,
    new_result,
    note_success,
    stages,
)

__all__ = [
    "RESTART",
    "Ball",
    "ask",
    "ball",
    "check_settings",
    "choose",
    "climb",
    "confine",
    "inner_maximisation",
    "pgd",
    "rows_of",
    "uphill",
]

RESTART = 2**32
"""How far apart the draws of an image lie in `step` from one restart to the next."""


def pgd(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str,
    eps: float,
    steps: int,
    step_size: float,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
    targeted: bool = False,
    shrink: bool = True,
) -> AttackResult:
    """Return the first success or best loss of PGD (https://arxiv.org/abs/1706.06083; spec 02 2.3).

    A step goes `step_size` along the sign (linf) or the direction (l2) of the gradient and back
    into the ball and [0, 1]. Without a random start it is BIM (spec 02 s. 2.2), for which one step
    of `eps` is FGSM. A restart makes ``steps + 1`` queries and `steps` gradients. Those after the
    first are for images without success so far, and walk side by side until one of them succeeds
    (`turns`): their starts are all iteration ``steps + 1``.

    Args:
        scores: images [B, C, H, W] -> logits [B, K], differentiable.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes; the wanted ones where `targeted`.
        keys: [N] int64, a key for the draws of each image (`kernels.counter.sample_keys`).
        norm: linf or l2.
        eps: radius in pixel units, above 0.
        steps: gradient steps of a restart, at least 1.
        step_size: in pixel units, above 0. Where ``steps * step_size`` is below ``2.5 * eps``, a
            path may be too short to cross the ball.
        restarts: starts to try, at least 1; more than 1 only with a random start.
        random_start: begin at a uniform draw from the ball, not at the image.
        loss: ce, margin or dlr (dlr only untargeted).
        targeted: ascend towards `labels`.
        shrink: let images leave at their success. False spends every pass on every image, to time
            them; `queries` and `gradients` then grow, and nothing else changes.

    Raises:
        ValueError: a setting out of range; l1, for which the attack is APGD.
    """
    check_inputs(images, labels, norm=norm, eps=eps, step_size=step_size)
    if norm == "l1":
        raise ValueError("norm must be linf or l2 for PGD; found 'l1', which apgd attacks")
    check_settings(loss=loss, targeted=targeted, steps=steps, restarts=restarts)
    if restarts > 1 and not random_start:
        raise ValueError(f"restarts must be 1 without a random start; found {restarts}")
    images = images.detach()

    def attempt(attempts: Attempts) -> AttackResult:
        near = ball(attempts.spread(images), norm, eps)
        start = near.centre
        if random_start:
            some, own = images[attempts.rows], keys[attempts.rows]
            drawn = attempts.weave(lambda r: ball_start(own, r * RESTART, some, norm, eps))
            start = confine(start + drawn, near)
        objective = partial(LOSSES[loss], targeted=targeted)
        return climb(
            scores, start, attempts.spread(labels), near, steps=steps, step_size=step_size,
            objective=objective, targeted=targeted, shrink=shrink, attempts=attempts,
        )  # fmt: skip

    return in_turn(new_result(images), stages(attempt, images, restarts), shrink=shrink)


def climb(
    scores: Scores,
    start: Tensor,
    labels: Tensor,
    near: "Ball",
    *,
    steps: int,
    step_size: float,
    objective: Callable[..., Tensor],
    targeted: bool = False,
    shrink: bool = True,
    attempts: Attempts | None = None,
) -> AttackResult:
    """Return what `steps` steps of gradient ascent reach from `start` [N, C, H, W], unchecked.

    `near` is the ball of each image, which holds its start; ``objective(logits, labels=) -> [B]``
    is the loss to ascend; `attempts` says which rows are of one image, and end together. The rest
    is as in `pgd`.
    """
    result, losses = new_result(start), new_losses(start, steps + 1)
    index = torch.arange(len(start), device=start.device)
    current, best = start, start
    top, length = (
        new_losses(start, 1)[:, 0],
        torch.full(index.shape, step_size, device=start.device),
    )
    seeking = torch.ones_like(index, dtype=torch.bool)
    for iteration in range(steps + 1):
        if not len(index):
            break
        answer, values, gradient = ask(
            scores, current, partial(objective, labels=labels), gradient=iteration < steps
        )
        losses[index, iteration] = values.where(seeking, -torch.inf)
        better = values > top
        best, top = choose(better, current, best), torch.where(better, values, top)
        won = seeking & (values > -torch.inf) & succeeded(answer, labels, targeted=targeted)
        if won.any():
            note_success(result, index[won], current[won], iteration, iteration + 1)
            seeking = seeking & ~(won if attempts is None else attempts.leaving(index, won))
        result.queries[index] = iteration + 1
        if gradient is None:
            break
        result.gradients[index] = iteration + 1
        if shrink and won.any():
            index, labels, current, best, top, length, gradient = (
                each[seeking] for each in (index, labels, current, best, top, length, gradient)
            )
            near, seeking = rows_of(near, seeking), seeking[seeking]
        current, zero = uphill(current, gradient, near.norm, length)
        if zero.any():
            result.zero_gradient[index] |= zero & seeking
        confine(current, near)
    result.images[index[seeking]] = best[seeking]
    return replace(result, losses=losses)


def ask(
    scores: Scores,
    images: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    gradient: bool = True,
    times: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits [B, K], losses [B] float64 and, if wanted, the gradient of their sum.

    Each is the mean over `times` passes (EOT, spec 02 s. 2.9). A loss that is nan comes back as
    -inf, so that it is never the best and its point never a success.
    """
    answers, losses, gradients = [], [], []
    for _ in range(times):
        if gradient:
            answer, loss, slope = gradient_step(scores, images, objective)
            gradients.append(slope)
        else:
            with torch.no_grad():
                answer = scores(images)
                loss = objective(answer)
        answers.append(answer)
        losses.append(loss.to(torch.float64))
    mean = _mean(losses)
    mean = torch.where(mean.isnan(), -torch.inf, mean)
    return _mean(answers), mean, _mean(gradients) if gradient else None


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ball:
    """The eps-balls, cut by [0, 1], around images.

    Attributes:
        centre: [B, C, H, W], the images.
        corners: lowest and highest points of linf balls, empty for another norm.
        norm: linf or l2.
        eps: the radius.
    """

    centre: Tensor
    corners: tuple[Tensor, ...]
    norm: str
    eps: float


def ball(images: Tensor, norm: str, eps: float) -> Ball:
    """Return the balls around images [B, C, H, W] in [0, 1]."""
    corners: tuple[Tensor, ...] = ()
    if norm == "linf":
        corners = ((images - eps).clamp_(min=0), (images + eps).clamp_(max=1))
    return Ball(centre=images, corners=corners, norm=norm, eps=eps)


def rows_of(near: Ball, rows: Tensor) -> Ball:
    """Return the balls of `rows` alone, a mask [B] or indices."""
    corners = tuple(corner[rows] for corner in near.corners)
    return replace(near, centre=near.centre[rows], corners=corners)


def confine(points: Tensor, near: Ball) -> Tensor:
    """Move `points` [B, C, H, W] in place into their balls, and return them.

    l2: onto the sphere along the radius, then into [0, 1], which only takes them nearer.
    """
    if near.norm == "linf":
        return points.clamp_(*near.corners)
    assert near.norm == "l2", near.norm
    points.sub_(near.centre)
    size = torch.linalg.vector_norm(points.flatten(1), dim=1)
    share = expand((near.eps / size.clamp_min(1e-12)).clamp_max(1.0))
    return torch.addcmul(near.centre, points, share, out=points).clamp_(0, 1)


def uphill(points: Tensor, gradient: Tensor, norm: str, length: Tensor) -> tuple[Tensor, Tensor]:
    """Return new points `length` [B] up the gradient, and where [B] that is zero throughout.

    linf: along the sign, with sign(0) = 0. l2: along the direction. A gradient of zero moves
    nothing.
    """
    size = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    # Squares of a saturated softmax's gradient underflow, and one nan would spoil its whole image:
    # such images are scaled first. An entry that is nan says nothing and counts as zero.
    doubtful = ~((size > 1e-12) & (size < 1e18))
    if doubtful.any():
        finite = gradient.nan_to_num(nan=0.0)
        peak = finite.flatten(1).abs().amax(1)
        scale = torch.where(doubtful & (peak > 0), peak, 1.0)
        gradient = (finite.to(torch.float64) / expand(scale)).to(points.dtype)
        size = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    zero = size == 0
    if norm == "linf":
        moved = gradient.sign()
        return torch.addcmul(points, moved, expand(length), out=moved), zero
    share = expand(length / size.masked_fill(zero, 1.0))
    return torch.addcmul(points, gradient, share), zero


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return images `new` where `mask` [B], else `old`; neither is written to.

    As torch.where, but it copies the fewer rows, and none where all come from one side, which
    while a loss rises is the rule.
    """
    count = int(mask.sum())
    base, other, rows = (new, old, ~mask) if 2 * count > len(mask) else (old, new, mask)
    if count in (0, len(mask)):
        return base
    chosen = base.clone()
    chosen[rows] = other[rows]
    return chosen


def check_settings(*, loss: str = "ce", targeted: bool = False, **whole: int) -> None:
    """Raise ValueError unless `loss` is known and fits, and each of `whole` is at least 1."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; found {loss!r}")
    if loss == "dlr" and targeted:
        raise ValueError("loss must be ce or margin where targeted; found 'dlr'")
    for name, value in whole.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; found {value}")


def inner_maximisation(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    noise: Tensor,
) -> Tensor:
    """Return the last iterates [N, C, H, W] of linf PGD from ``images + eps * noise``.

    The bare loop of adversarial training, which needs no best iterate and saves the last forward
    pass; an evaluation takes `pgd`. The weights that a training gives depend on every bit of it.
    `noise` is uniform in [-1, 1], shaped like `images`.
    """
    near = ball(images.detach(), "linf", eps)
    current = confine(near.centre + eps * noise.detach(), near)
    for _ in range(steps):
        _, _, gradient = gradient_step(scores, current, partial(cross_entropy, labels=labels))
        current = confine(current + step_size * gradient.sign(), near)
    return current
