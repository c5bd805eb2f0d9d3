"""What of a model's answer is explained, as a response [M] to each perturbed copy.

All are functions of `scores` [M, K]: logits, or log-probabilities where a model gives only those
(they differ by a constant in each row, which leaves probabilities and margins unchanged; spec 00
section 0.3). Computed in float64, because a float32 softmax saturates at 1.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "TARGETS",
    "TEMPERATURES",
    "logit_pred",
    "margin_pred",
    "one_hot",
    "prob_all",
    "prob_at",
    "prob_pred",
]

# Factors on the logits at which the probability's weights are kept (spec 01 T7): a raw score moves
# with the temperature, a model's predictions do not.
TEMPERATURES: tuple[float, ...] = tuple(2.0**power for power in range(-6, 7))

_IN_CACHE = 2**15  # float64 numbers that stay in a core's cache through thirteen passes


def prob_pred(scores: Tensor, label: int) -> Tensor:
    """Return the probability of class `label` [M]: lime's own response."""
    return scores.to(torch.float64).softmax(-1)[:, label]


def prob_at(scores: Tensor, label: int, factors: Sequence[float]) -> Tensor:
    """Return the probability of `label` when all scores are multiplied by each factor [M, F]."""
    z = scores.to(torch.float64)
    if not bool(torch.isfinite(z).all()):
        return torch.stack([prob_pred(z * factor, label) for factor in factors], dim=1)
    # 1 / sum_k exp(f (z_k - z_label)): one exponential a class, and no maximum to look for. Where
    # the sum overflows, the probability is below 1e-308.
    rows = max(1, _IN_CACHE // z.shape[1]) if z.device.type == "cpu" else len(z)
    parts = (z[first : first + rows] for first in range(0, len(z), rows))
    sums = [_sums(part - part[:, label, None], factors) for part in parts]
    return torch.cat(sums).reciprocal_()


def _sums(ahead: Tensor, factors: Sequence[float]) -> Tensor:
    """Return the sum over classes of exp(f `ahead`) for each factor, [M, F].

    Where a factor is twice the last, the powers are squared: a product instead of an exponential,
    at an error of one rounding that doubles with each (1e-12 after twelve).
    """
    found: list[Tensor] = []
    powers, last = ahead, 0.0
    for factor in factors:
        powers = powers.square_() if found and factor == 2 * last else (ahead * factor).exp_()
        found.append(powers.sum(1))
        last = factor
    return torch.stack(found, dim=1)


def logit_pred(scores: Tensor, label: int) -> Tensor:
    """Return the logit of class `label` [M]; meaningless for log-probabilities."""
    return scores.to(torch.float64)[:, label]


def margin_pred(scores: Tensor, label: int) -> Tensor:
    """Return the logit of class `label` minus the largest other logit [M]."""
    z = scores.to(torch.float64)
    others = torch.cat([z[:, :label], z[:, label + 1 :]], dim=1)
    return z[:, label] - others.amax(1)


def prob_all(scores: Tensor, label: int) -> Tensor:
    """Return the probabilities of all classes [M, K]; `label` plays no part."""
    del label
    return scores.to(torch.float64).softmax(-1)


def one_hot(scores: Tensor, label: int) -> Tensor:
    """Return 1 where class `label` is still the predicted one, else 0, [M]: all a label tells."""
    return (scores.argmax(-1) == label).to(torch.float64)


TARGETS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "prob_pred": prob_pred,
    "logit_pred": logit_pred,
    "margin_pred": margin_pred,
    "prob_all": prob_all,
    "onehot": one_hot,
}
