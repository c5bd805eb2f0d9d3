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
    in_turn,
    new_losses,
    new_result,
    note_success,
    rows_of,
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

    A restart is for images without success so far, and makes ``steps + 1`` iterates. In l1 it goes
    through balls of 3, 2 and 1 eps, with 30, 30 and 40 % of the steps, and makes ``steps + 3``
    (below four steps, only the last ball and ``steps + 1``); no iterate before the last ball
    counts. Every iterate costs `eot` queries and, but for the last of a ball, `eot` gradients.
    Iterations count on through restarts.

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

    def attempt(rows: Tensor, restart: int) -> AttackResult:
        objective = partial(LOSSES[loss], targeted=targeted)
        return _run(
            scores, images[rows], keys[rows], {"labels": labels[rows]}, objective, norm=norm,
            eps=eps, steps=steps, targeted=targeted, eot=eot, draw=restart * RESTART,
        )  # fmt: skip

    return in_turn(new_result(images), [partial(attempt, restart=r) for r in range(restarts)])


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

    Every restart of `apgd` with the targeted DLR loss towards one class, in the order of the logits
    of the clean image, of which one query is made; any wrong class is a success. An image that is
    wrong from the outset is found at iteration 0 by that query. The rest is as in `apgd`.

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

    def attempt(rows: Tensor, place: int, restart: int) -> AttackResult:
        wanted = {"labels": labels[rows], "targets": ranked[rows, place]}
        return _run(
            scores, images[rows], keys[rows], wanted, targeted_dlr, norm=norm, eps=eps,
            steps=steps, targeted=False, eot=eot, draw=(place * restarts + restart) * RESTART,
        )  # fmt: skip

    places = [(place, restart) for place in range(num_targets) for restart in range(restarts)]
    return in_turn(clean, [partial(attempt, place=p, restart=r) for p, r in places])


def _run(
    scores: Scores,
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
    draw: int,
) -> AttackResult:
    """Return what one random start comes to; in l1 through ever smaller balls."""
    if norm == "l1":
        first = steps * 3 // 10
        stages = [(3 * eps, first), (2 * eps, first), (eps, steps - 2 * first)]
        stages = [(radius, count) for radius, count in stages if count]
    else:
        stages = [(eps, steps)]
    start = draw_start(keys, draw, ball(images, norm, stages[0][0]))
    result, asked = new_result(images), 0
    for radius, count in stages:
        near = ball(images, norm, radius)
        last = radius == eps
        part = _walk(
            scores, enclose(start, near), near, wanted, objective, steps=count, targeted=targeted,
            eot=eot, judged=last,
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
    judged: bool,
) -> AttackResult:
    """Return what steps from `start` [N, C, H, W] reach; success ends them where `judged`.

    `wanted` are labels (and targets) [N], passed to `objective` by name beside the logits.
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
        if judged and won.any():
            note_success(result, walk.index[won], walk.points[won], iteration, asked)
            walk, near = stay(walk, ~won), rows_of(near, ~won)
            wanted = {name: each[~won] for name, each in wanted.items()}
        if gradient is None:
            break
        if iteration in checks:
            walk = check(walk, near, checks[iteration])
        walk, zero = move(walk, near, momentum=iteration > 0)
        result.zero_gradient[walk.index] |= zero
    result.images[walk.index] = walk.best
    return replace(result, losses=losses)
