"""AutoAttack: a fixed cascade of attacks (Croce and Hein 2020, https://arxiv.org/abs/2003.01690).

    >>> found = autoattack(model.logits, images, labels, keys=keys, norm="linf", eps=8 / 255)

``standard`` is APGD on the cross-entropy, APGD on the targeted ratio (9 targets), targeted FAB (9
targets) and Square (5,000 queries), each on what withstood those before (spec 02 section 2.8).
``plus`` takes five restarts and adds the untargeted ratio and FAB; ``rand`` averages gradients over
20 draws of a random defence.

Legend: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from raybench.kernels.attacks.apgd import apgd, apgd_targeted
from raybench.kernels.attacks.common import AttackResult, Scores, check_inputs, lp_norm
from raybench.kernels.attacks.fab import fab, fab_targeted
from raybench.kernels.attacks.square import square
from raybench.kernels.counter import child_keys

__all__ = ["VERSIONS", "autoattack"]

_TARGETS = 9


@dataclass(frozen=True, slots=True)
class Component:
    """One attack of the cascade: its function, and the fewest classes it can work with."""

    name: str
    attack: Callable[..., AttackResult]
    least_classes: int = 2


_CE = Component("apgd-ce", partial(apgd, loss="ce"))
_SQUARE = Component("square", partial(square, queries=5000))
_STANDARD = (
    _CE,
    Component("apgd-t", partial(apgd_targeted, num_targets=_TARGETS), 4),
    Component("fab-t", partial(fab_targeted, num_targets=_TARGETS, within=True)),
    _SQUARE,
)
_PLUS = (
    Component("apgd-ce", partial(apgd, loss="ce", restarts=5)),
    Component("apgd-dlr", partial(apgd, loss="dlr", restarts=5), 3),
    Component("fab", partial(fab, restarts=5, within=True)),
    _SQUARE,
    Component("apgd-t", partial(apgd_targeted, num_targets=_TARGETS), 4),
    Component("fab-t", partial(fab_targeted, num_targets=_TARGETS, within=True)),
)
_RAND = (
    Component("apgd-ce", partial(apgd, loss="ce", eot=20)),
    Component("apgd-dlr", partial(apgd, loss="dlr", eot=20), 3),
)
VERSIONS = {"standard": _STANDARD, "plus": _PLUS, "rand": _RAND}


def autoattack(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str,
    eps: float,
    version: str = "standard",
) -> AttackResult:
    """Return the first success of the cascade (https://arxiv.org/abs/2003.01690; spec 02 s. 2.8).

    Without one, the best iterate of the first attack.

    Counts are sums over the components that an image went through. `found_at` is the place in the
    cascade of the component that broke an image (0 the first), since iterations of different
    attacks do not compare. With fewer classes than a component needs it is left out, and the
    number of targets is what the classes allow.

    Args:
        scores: images -> logits [B, K], differentiable.
        images: [N, C, H, W] in [0, 1], rightly classified.
        labels: true classes [N] int64.
        keys: [N] int64, one for each image.
        norm: "linf", "l2" or "l1".
        eps: budget in pixel units.
        version: one of `VERSIONS`.

    Raises:
        ValueError: an unknown version or norm, or shapes that do not fit.
    """
    check_inputs(images, labels, norm=norm, eps=eps)
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}; found {version!r}")
    if len(images) == 0:
        raise ValueError("images must hold at least one image; found none")
    with torch.no_grad():
        classes = scores(images[:1]).shape[1]
    counts = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    made, queries, gradients = images.clone(), counts.clone(), counts.clone()
    found_at, found_queries = counts - 1, counts - 1
    zero = torch.zeros_like(counts, dtype=torch.bool)
    for place, part in enumerate(VERSIONS[version]):
        open_ = (found_at < 0).nonzero()[:, 0]
        if len(open_) == 0 or classes < part.least_classes:
            continue
        attack = part.attack
        if isinstance(attack, partial) and "num_targets" in attack.keywords:
            attack = partial(attack, num_targets=min(_TARGETS, classes - 1))
        result = attack(
            scores,
            images[open_],
            labels[open_],
            keys=child_keys(keys[open_], place),
            norm=norm,
            eps=eps,
        )
        distance = lp_norm(result.images - images[open_], norm)
        won = result.found & (distance <= eps * (1 + 1e-5) + 1e-6)
        if place == 0:
            made[open_] = result.images
        chosen = open_[won]
        made[chosen] = result.images[won]
        found_at[chosen] = place
        found_queries[chosen] = queries[chosen] + result.found_queries[won]
        queries[open_] += result.queries
        gradients[open_] += result.gradients
        zero[open_] |= result.zero_gradient
    return AttackResult(
        images=made,
        found=found_at >= 0,
        found_at=found_at,
        found_queries=found_queries,
        queries=queries,
        gradients=gradients,
        zero_gradient=zero,
    )
