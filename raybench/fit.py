"""Does a model suit the images and what is asked of it? Tried before any device is taken.

    info = resolve_model("zoo:cnn3", dataset, evaluations, labels, notes)
    check_fit(info, dataset, evaluations, labels)    # again later, without loading it

Everything that is wrong is an `InputError`, and says what would be right.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from raybench.core.catalog import load_model
from raybench.core.errors import AccessError, InputError
from raybench.core.plan import Evaluation
from raybench.core.spec import parse
from raybench.core.types import Dataset, Model, ModelInfo
from raybench.evaluations.attack import AttackEvaluation
from raybench.evaluations.lime import LimeEvaluation
from raybench.models.check import WARNING, check_outputs
from raybench.models.wrap import FITTING, size
from raybench.reports.summary import DEGENERATE_LIMIT, DEGENERATE_SEGMENTS

__all__ = ["check_fit", "check_segments", "known_labels", "no_labels", "resolve_model"]

_PROBE_IMAGES = 8


def resolve_model(
    spec: str,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    labels: np.ndarray | None,
    notes: list[str],
) -> ModelInfo:
    """Load a model, try it on the first images, and return what is known of it, warnings included.

    Args:
        spec: the model.
        dataset: the images.
        evaluations: what it must have access for.
        labels: [N], where the evaluations need them.
        notes: told what the user must see.

    Raises:
        InputError: it cannot be had, does not fit the images, or answers wrongly.
    """
    model = _fitted(load_model(spec), dataset, notes)
    warnings = _check_model(model, dataset, evaluations)
    notes.extend(f"{model.info.name}: {warning}" for warning in warnings)
    if labels is not None:
        _check_classes(model.info, dataset, labels, evaluations)
    return _warned(model.info, warnings)


def check_fit(
    info: ModelInfo,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    labels: np.ndarray | None,
) -> None:
    """Refuse a model whose access, shape or classes do not suit; no model is loaded for it.

    Raises:
        InputError: what does not fit, and what would.
    """
    _check_access(info, evaluations)
    _check_shape(info, dataset)
    if labels is not None:
        _check_classes(info, dataset, labels, evaluations)


def check_segments(reading: Evaluation, dataset: Dataset, seed: int) -> None:
    """Refuse a segmentation that leaves nothing to explain, or more than the samples can carry.

    The first images tell (spec 01 section 1.1, edge cases).
    """
    if not isinstance(reading, LimeEvaluation) or not reading.segmentation:
        return
    batch = dataset.read(dataset.ids[: 2 * _PROBE_IMAGES])
    counts = [
        int(reading.segment(image, sample_id, seed).max()) + 1
        for sample_id, image in zip(batch.ids, batch.images, strict=True)
    ]
    reading.check_design(max(counts, default=1))
    few = sum(count < DEGENERATE_SEGMENTS for count in counts)
    if counts and not reading.force and few / len(counts) > DEGENERATE_LIMIT:
        raise InputError(
            f"reading {reading.canonical()}: {few} of the first {len(counts)} images of "
            f"{dataset.info.name} have fewer than {DEGENERATE_SEGMENTS} superpixels "
            f"(segments: {', '.join(map(str, counts))}); use the reading grid, a smaller "
            "kernel_size, or force=true"
        )


def known_labels(dataset: Dataset) -> np.ndarray | None:
    """Return the labels [N] of a selection, or None where it has none."""
    return dataset.labels(dataset.ids)


def no_labels(dataset: Dataset) -> str:
    """Return what is wrong with attacks on images without labels."""
    return (
        f"{dataset.info.spec} has no labels, and an attack needs them to know what is wrong; "
        "use a dataset with labels (folders named by class, a labels= or label= column)"
    )


def _check_classes(
    info: ModelInfo, dataset: Dataset, labels: np.ndarray, evaluations: Sequence[Evaluation]
) -> None:
    """Refuse labels, or a target class, that the model does not know, or other classes than its."""
    classes = info.num_classes
    known = dataset.info.num_classes
    if known is not None and known != classes:
        raise InputError(
            f"{info.spec} has {classes} classes, but {dataset.info.spec} has {known}: its labels "
            "mean something else to this model, and right and wrong cannot be told"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{info.spec} has classes 0 to {classes - 1}, but the labels of {dataset.info.spec} "
            f"run from {low} to {high}; the model and the data do not belong together"
        )
    for attack in evaluations:
        assert isinstance(attack, AttackEvaluation), type(attack)
        wanted, least = attack.targeted, attack.kind.least_classes
        if wanted is not None and wanted.isdigit() and int(wanted) >= classes:
            raise InputError(f"targeted={wanted}: {info.spec} has classes 0 to {classes - 1}")
        if classes < least:
            raise InputError(
                f"attack {attack.attack} needs at least {least} classes; {info.spec} has {classes}"
            )


def _fitted(model: Model, dataset: Dataset, notes: list[str]) -> Model:
    """Return `model`, for the images' size where its own is a guess that they do not have.

    Sizes that were not declared are found by trial, and a network for 128 pixels may pass for one
    for 224. The images' own size, where it gives finite scores, goes into the spec: so the workers
    load the same.
    """
    info, shape = model.info, dataset.info.shape
    if FITTING not in dict(info.details) or not _differing(info, shape):
        return model
    batch = dataset.read(dataset.ids[:_PROBE_IMAGES])
    if not len(batch.ids):
        return model
    try:
        fitted = load_model(parse(info.spec).with_options(shape=size(shape)))
        with torch.inference_mode():
            check_outputs(fitted, batch.images)
    except InputError:
        return model  # whose own size is then what `_check_model` complains of
    if fitted.info.num_classes != info.num_classes:
        return model
    notes.append(
        f"{info.name}: the input size was found by trial: {size(shape)}, as the images have; say "
        f"shape={size(shape)} to be sure"
    )
    return fitted


def _differing(info: ModelInfo, shape: tuple[int, int, int]) -> str:
    """Return the first in which images of `shape` differ from what the model takes, or ''."""
    for wanted, found, what in zip(
        info.input_shape, shape, ("channels", "height", "width"), strict=True
    ):
        if wanted and wanted != found:
            return what
    return ""


def _check_model(model: Model, dataset: Dataset, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return warnings about `model` after trying it on the first images; raise what is wrong."""
    _check_access(model.info, evaluations)
    _check_shape(model.info, dataset)
    batch = dataset.read(dataset.ids[:_PROBE_IMAGES])
    if not len(batch.ids):
        raise InputError(f"none of the first images of {dataset.info.spec} can be read")
    with torch.inference_mode():
        return check_outputs(model, batch.images)


def _check_access(info: ModelInfo, evaluations: Sequence[Evaluation]) -> None:
    for evaluation in evaluations:
        if info.access < evaluation.requires:
            kind = "attack" if evaluation.family == "attack" else "reading"
            raise AccessError(
                f"{info.spec}: the {kind} {evaluation.canonical()} needs access to "
                f"{evaluation.requires.name.lower()}, the model offers {info.access.name.lower()}"
            )


def _check_shape(info: ModelInfo, dataset: Dataset) -> None:
    shape = dataset.info.shape
    differing = _differing(info, shape)
    if differing:
        tried = dict(info.details).get(FITTING)
        takes = f"{size(info.input_shape)} (CxHxW)"
        if tried:
            takes = f"{tried} (CxHxW, found by trial; shape= declares another)"
        raise InputError(
            f"{info.spec} takes images of {takes}, but {dataset.info.spec} has {size(shape)}: they "
            f"differ in {differing}; choose a dataset option (resize=, preprocess=, channels=) or "
            "a model that fits"
        )


def _warned(info: ModelInfo, warnings: Sequence[str]) -> ModelInfo:
    """Return `info` with `warnings` among its details, where reports find them.

    Details name no result: a measurement's key is the same with and without.
    """
    if not warnings:
        return info
    return replace(info, details=(*info.details, (WARNING, "; ".join(warnings))))
