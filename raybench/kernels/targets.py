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
    ahead = z - z[:, label, None]
    sums = [(ahead * factor).exp_().sum(1) for factor in factors]
    return torch.stack(sums, dim=1).reciprocal_()


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
