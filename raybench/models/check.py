"""The first batch: does a model answer as it declares? Asked before a run starts."""

import torch
from torch import Tensor

from raybench.core.errors import OutputError
from raybench.core.types import Access, Model
from raybench.models.torch_model import unlimited

__all__ = ["WARNING", "check_outputs"]

WARNING = "warning"
"""The detail of a `ModelInfo` that keeps what `check_outputs` warned of."""

_SUM_TOLERANCE = 1e-4
_SAME_TOLERANCE = 1e-3


def check_outputs(model: Model, images: Tensor) -> list[str]:
    """Return warnings about `model`'s answers on a first batch [N, C, H, W]; empty where none.

    The model is asked three times for N images and once for one. A lowered model is judged by what
    lies beneath, where wrong scores still show. Warnings: the model's own (`warnings`, where it has
    some), answers that change from one call to the next, or with the other images of a batch. They
    do not begin with the model's name: whoever shows them says whose they are.

    A model that keeps its answers has a method `again`, and is asked anew through it.

    Raises:
        OutputError: not [N, K], not finite, probabilities where logits were declared, or
            probabilities that are negative or do not sum to one.
    """
    assert len(images) >= 1
    inner = unlimited(model)
    name = inner.info.name
    warnings = list(getattr(inner, "warnings", ()))
    if inner.info.access < Access.SCORES:
        return warnings + _check_labels(inner, images)
    declared_logits = inner.info.access >= Access.LOGITS
    with torch.no_grad():
        scores = inner.logits(images) if declared_logits else inner.probabilities(images)
        scores = scores.double()
    _check_shape(name, scores, (len(images), inner.info.num_classes))
    if not bool(torch.isfinite(scores).all()):
        bad = int((~torch.isfinite(scores)).any(1).sum())
        raise OutputError(
            f"{name}: {bad} of {len(images)} answers hold NaN or infinite values; the weights or "
            "the normalisation are wrong"
        )
    like_probabilities = bool(
        ((scores >= 0) & (scores <= 1)).all()
        and ((scores.sum(1) - 1).abs() <= _SUM_TOLERANCE).all()
    )
    if declared_logits and like_probabilities:
        raise OutputError(
            f"{name}: logits were declared, but every row of the answer lies in [0, 1] and sums to "
            "one: these are probabilities; add output=probabilities to the spec"
        )
    if not declared_logits and not like_probabilities:
        raise OutputError(
            f"{name}: probabilities were declared, but rows do not lie in [0, 1] and sum to one "
            f"(first row sums to {float(scores[0].sum()):.4g}); use output=logits if these are "
            "logits"
        )
    return warnings + _check_repeats(inner, images)


def _again(model: Model) -> Model:
    """Return the model as one that does not remember what it was asked."""
    anew: Model = getattr(model, "again", lambda: model)()
    return anew


def _check_labels(model: Model, images: Tensor) -> list[str]:
    labels = model.labels(images)
    name, classes = model.info.name, model.info.num_classes
    _check_shape(name, labels, (len(images),))
    if labels.dtype != torch.int64 or not bool(((labels >= 0) & (labels < classes)).all()):
        raise OutputError(f"{name}: labels must be int64 in 0 to {classes - 1}")
    if not bool((_again(model).labels(images) == labels).all()):
        return [_varies("its labels")]
    return []


def _check_repeats(model: Model, images: Tensor) -> list[str]:
    first, second = model.probabilities(images), _again(model).probabilities(images)
    alone = model.probabilities(images[:1])
    change = float((first - second).abs().max())
    if change > _SAME_TOLERANCE:
        return [_varies(f"its probabilities (by up to {change:.2g})")]
    apart = float((first[:1] - alone).abs().max())
    if apart > _SAME_TOLERANCE:
        return [
            f"the first image is answered differently alone and in a batch of {len(images)} "
            f"(probabilities differ by {apart:.2g}): results depend on batching"
        ]
    return []


def _varies(what: str) -> str:
    return (
        f"asked twice about the same images, {what} changed: the model is randomised, and its "
        "scores hold for one draw only"
    )


def _check_shape(name: str, answer: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(answer.shape) != expected:
        raise OutputError(
            f"{name}: the answer has shape {list(answer.shape)}, expected {list(expected)}"
        )
