"""The fast gradient sign method (Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572).

    >>> result = fgsm(model.logits, images, labels, eps=8 / 255)
    >>> result.images[result.found], result.zero_gradient.any()

Legend: N images, B of them still active, C channels, H height, W width, K classes.
"""

from functools import partial

from torch import Tensor

from raybench.kernels.attacks.common import AttackResult, Scores, check_inputs, cross_entropy
from raybench.kernels.attacks.pgd import ball, climb, rows_of
from raybench.kernels.attacks.turns import in_turn, new_result

__all__ = ["fgsm"]


def fgsm(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "linf",
    eps: float,
    targeted: bool = False,
) -> AttackResult:
    """Return one step of `eps` up the cross-entropy (https://arxiv.org/abs/1412.6572; spec 02 2.1).

    linf: ``x + eps * sign(g)``, with sign(0) = 0; l2: ``x + eps * g / |g|``; both cut to [0, 1].
    Two queries and one gradient of each image. By the contract the better of start and step comes
    back: an image that is already wrong, or whose loss the step lowers, is returned as it was.

    Args:
        scores: images [B, C, H, W] -> logits [B, K], differentiable.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes (predicted ones serve where there are none); the wanted ones
            where `targeted`.
        norm: linf or l2.
        eps: radius and step in pixel units, above 0.
        targeted: ascend towards `labels`.

    Raises:
        ValueError: a setting out of range.
    """
    check_inputs(images, labels, norm=norm, eps=eps)
    if norm == "l1":
        raise ValueError("norm must be linf or l2 for FGSM; found 'l1'")
    near = ball(images.detach(), norm, eps)

    def step(rows: Tensor) -> AttackResult:
        own = rows_of(near, rows)
        return climb(
            scores, own.centre, labels[rows], own, steps=1, step_size=eps,
            objective=partial(cross_entropy, targeted=targeted), targeted=targeted,
        )  # fmt: skip

    return in_turn(new_result(images), [step])
