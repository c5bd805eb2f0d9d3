"""Auto-PGD (Croce and Hein 2020, https://arxiv.org/abs/2003.01690; spec 02 section 2.8).

    >>> keys = torch.from_numpy(sample_keys(seed, "apgd", sample_ids))
    >>> first = apgd(model.logits, images, labels, keys=keys, norm="linf", eps=8 / 255)
    >>> left = ~first.found
    >>> second = apgd_targeted(
    ...     model.logits, images[left], labels[left], keys=keys[left], norm="linf", eps=8 / 255
    ... )

PGD whose step needs no tuning: it starts long and is halved, for each image, where the loss stalls.
In l1 it is APGD-L1 (Croce and Hein 2021, https://arxiv.org/abs/2103.01208).

Legend: N images, B of them still active, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from raybench.kernels.attacks.apgd_schedule import (
    begin,
    check,
    checkpoints,
    draw_start,
    enclose,
    move,
    see,
    stay,
)
from raybench.kernels.attacks.common import (
    LOSSES,
    AttackResult,
    Scores,
    check_inputs,
    succeeded,
    targeted_dlr,
)
from raybench.kernels.attacks.pgd import (
    RESTART,
    Ball,
    ask,
    ball,
    check_settings,
    rows_of,
)
from raybench.kernels.attacks.turns import (
    Attempts,
    in_turn,
    new_losses,
    new_result,
    note_success,
    stages,
)

__all__ = ["apgd", "apgd_targeted"]


def apgd(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str,
    eps: float,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "ce",
    targeted: bool = False,
    eot: int = 1,
) -> AttackResult:
    """Return first success or best loss of APGD (https://arxiv.org/abs/2003.01690; spec 02 s. 2.8).

    A restart makes ``steps + 1`` iterates. Those after the first are for images without success so
    far, and walk side by side until one of them succeeds (`turns`). In l1 a restart goes through
    balls of 3, 2 and 1 eps, with 30, 30 and 40 % of the steps, and makes ``steps + 3`` iterates
    (below four steps, only the last ball and ``steps + 1``); none before the last ball counts.
    Every iterate costs `eot` queries and, but for the last of a ball, `eot` gradients.
    Iterations of the later restarts count on from those of the first.

    Args:
        scores: images [B, C, H, W] -> logits [B, K], differentiable.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes; the wanted ones where `targeted`.
        keys: [N] int64, a key for the draws of each image (`kernels.counter.sample_keys`).
        norm: linf, l2 or l1.
        eps: radius in pixel units, above 0.
        steps: gradient steps of a restart, at least 1.
        restarts: random starts to try, at least 1.
        loss: ce, margin or dlr (dlr only untargeted).
        targeted: ascend towards `labels`.
        eot: passes whose mean gradient, loss and logits are used, for models that draw at random.

    Raises:
        ValueError: a setting out of range; fewer than 3 classes with dlr.
    """
    check_inputs(images, labels, norm=norm, eps=eps)
    check_settings(loss=loss, targeted=targeted, steps=steps, restarts=restarts, eot=eot)
    images = images.detach()

    def attempt(attempts: Attempts) -> AttackResult:
        objective = partial(LOSSES[loss], targeted=targeted)
        return _run(
            scores, attempts, images, keys, {"labels": attempts.spread(labels)}, objective,
            norm=norm, eps=eps, steps=steps, targeted=targeted, eot=eot,
        )  # fmt: skip

    return in_turn(new_result(images), stages(attempt, images, restarts))


def apgd_targeted(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str,
    eps: float,
    steps: int = 100,
    restarts: int = 1,
    num_targets: int = 9,
    eot: int = 1,
) -> AttackResult:
    """Return first success or best loss of APGD-T (https://arxiv.org/abs/2003.01690; spec 02 2.8).

    Every restart of `apgd` with the targeted DLR loss towards one class, of those with the highest
    logits on the clean image, of which one query is made; any wrong class is a success. An image
    that is wrong from the outset is found at iteration 0 by that query. The first class and start
    are tried alone, all others side by side (`turns`). The rest is as in `apgd`.

    Args:
        scores: images [B, C, H, W] -> logits [B, K], differentiable.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes.
        keys: [N] int64, a key for the draws of each image.
        norm: linf, l2 or l1.
        eps: radius in pixel units, above 0.
        steps: gradient steps of each restart, at least 1.
        restarts: random starts to try for each class, at least 1.
        num_targets: classes to try after the true one, at least 1 and at most K - 1.
        eot: passes that are averaged, as in `apgd`.

    Raises:
        ValueError: a setting out of range; fewer than 4 classes.
    """
    check_inputs(images, labels, norm=norm, eps=eps)
    check_settings(steps=steps, restarts=restarts, num_targets=num_targets, eot=eot)
    images = images.detach()
    clean = new_result(images)
    with torch.no_grad():
        logits = scores(images)
    classes = logits.shape[1]
    if classes < 4:
        raise ValueError(f"the targeted DLR loss needs at least 4 classes; found {classes}")
    if num_targets >= classes:
        raise ValueError(
            f"num_targets must be at most {classes - 1} for {classes} classes; found {num_targets}"
        )
    ranked = logits.scatter(1, labels[:, None], -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    clean.queries.add_(1)
    wrong = succeeded(logits, labels).nonzero()[:, 0]
    note_success(clean, wrong, images[wrong], 0, 1)

    def attempt(attempts: Attempts) -> AttackResult:
        rows = attempts.rows
        targets = attempts.weave(lambda place: ranked[rows, place // restarts])
        return _run(
            scores, attempts, images, keys,
            {"labels": attempts.spread(labels), "targets": targets}, targeted_dlr,
            norm=norm, eps=eps, steps=steps, targeted=False, eot=eot,
        )  # fmt: skip

    return in_turn(clean, stages(attempt, images, num_targets * restarts))


def _run(
    scores: Scores,
    attempts: Attempts,
    images: Tensor,
    keys: Tensor,
    wanted: dict[str, Tensor],
    objective: Callable[..., Tensor],
    *,
    norm: str,
    eps: float,
    steps: int,
    targeted: bool,
    eot: int,
) -> AttackResult:
    """Return what a random start of each row comes to; in l1 through ever smaller balls.

    `images` and `keys` are of the whole run [N], `wanted` of the rows [R].
    """
    if norm == "l1":
        first = steps * 3 // 10
        balls = [(3 * eps, first), (2 * eps, first), (eps, steps - 2 * first)]
        balls = [(radius, count) for radius, count in balls if count]
    else:
        balls = [(eps, steps)]
    widest, own = ball(images[attempts.rows], norm, balls[0][0]), keys[attempts.rows]
    start = attempts.weave(lambda place: draw_start(own, place * RESTART, widest))
    images = attempts.spread(images)
    result, asked = new_result(images), 0
    for radius, count in balls:
        near = ball(images, norm, radius)
        last = radius == eps
        part = _walk(
            scores, enclose(start, near), near, wanted, objective, steps=count, targeted=targeted,
            eot=eot, attempts=attempts if last else None,
        )  # fmt: skip
        assert part.losses is not None
        start = part.images
        # Before the last ball nothing is found, so that all images have come the same way.
        result = replace(
            part,
            found_at=torch.where(part.found, part.found_at + asked, -1),
            found_queries=torch.where(part.found, part.found_queries + result.queries, -1),
            queries=part.queries + result.queries,
            gradients=part.gradients + result.gradients,
            zero_gradient=part.zero_gradient | result.zero_gradient,
            losses=torch.cat([new_losses(images, asked), part.losses], 1),
        )
        asked += part.losses.shape[1]
    return result


def _walk(
    scores: Scores,
    start: Tensor,
    near: Ball,
    wanted: dict[str, Tensor],
    objective: Callable[..., Tensor],
    *,
    steps: int,
    targeted: bool,
    eot: int,
    attempts: Attempts | None,
) -> AttackResult:
    """Return what steps from `start` [R, C, H, W] reach.

    A success ends all rows of its image; without `attempts` nothing is one. `wanted` are labels
    (and targets) [R], passed to `objective` by name beside the logits.
    """
    result, losses = new_result(start), new_losses(start, steps + 1)
    walk, checks = begin(start, near), checkpoints(steps, near.norm)
    for iteration in range(steps + 1):
        if not len(walk.index):
            break
        answer, values, gradient = ask(
            scores, walk.points, partial(objective, **wanted), gradient=iteration < steps, times=eot
        )
        asked = eot * (iteration + 1)
        result.queries[walk.index] = asked
        result.gradients[walk.index] = asked if iteration < steps else eot * steps
        losses[walk.index, iteration] = values
        walk = see(walk, values, gradient)
        won = (values > -torch.inf) & succeeded(answer, wanted["labels"], targeted=targeted)
        if attempts is not None and won.any():
            note_success(result, walk.index[won], walk.points[won], iteration, asked)
            left = ~attempts.leaving(walk.index, won)
            walk, near = stay(walk, left), rows_of(near, left)
            wanted = {name: each[left] for name, each in wanted.items()}
        if gradient is None:
            break
        if iteration in checks:
            walk = check(walk, near, checks[iteration])
        walk, zero = move(walk, near, momentum=iteration > 0)
        result.zero_gradient[walk.index] |= zero
    result.images[walk.index] = walk.best
    return replace(result, losses=losses)
