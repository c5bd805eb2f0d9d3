"""The vocabulary of the package: what a model, a dataset, a batch and a shard are.

Shape legend: N images, C channels, H height, W width, K classes. Images are float32 in [0, 1],
NCHW, RGB or grey; any normalisation lives inside the model, so that distances and perturbation
sizes are always in pixel units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = [
    "Access",
    "Batch",
    "Dataset",
    "DatasetInfo",
    "Failure",
    "Model",
    "ModelInfo",
    "Shard",
]


class Access(IntEnum):
    """What a caller may see of a model, one ordered scale (A0 to A4 of spec 00 section 0.3)."""

    LABELS = 0
    SCORES = 1
    LOGITS = 2
    GRADIENTS = 3
    INTERNALS = 4

    @classmethod
    def named(cls, name: str) -> "Access":
        """Return the level called `name` (any case); ValueError lists the legal names."""
        try:
            return cls[name.upper()]
        except KeyError:
            levels = ", ".join(level.name.lower() for level in cls)
            raise ValueError(f"expected one of {levels}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is known of a model without running it; small, picklable, part of result keys.

    Attributes:
        spec: canonical spec string that loads it again.
        name: short name for people (tables, run names).
        access: highest access level it offers.
        input_shape: (C, H, W) it takes; H and W are 0 where any size will do.
        num_classes: K, the number of columns of its scores.
        fingerprint: SHA-256 hex over weights and architecture; identifies results.
        normalisation: what happens to [0, 1] pixels inside the model, as text ("none", "mean ...").
        details: further facts worth recording (source, training, parameters), as text; one called
            "warning" is shown beside every result.
    """

    spec: str
    name: str
    access: Access
    input_shape: tuple[int, int, int]
    num_classes: int
    fingerprint: str
    normalisation: str = "none"
    details: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class Model(Protocol):
    """A classifier behind an access level. Methods above ``info.access`` raise AccessError.

    Inputs are images [N, C, H, W] float32 in [0, 1] on ``device``.
    """

    info: ModelInfo
    device: str

    def labels(self, images: "Tensor") -> "Tensor":
        """Return the predicted classes [N] int64 (LABELS)."""
        ...

    def probabilities(self, images: "Tensor") -> "Tensor":
        """Return class probabilities [N, K] float64, rows summing to one (SCORES)."""
        ...

    def logits(self, images: "Tensor") -> "Tensor":
        """Return logits [N, K] float32 (LOGITS); differentiable from GRADIENTS up."""
        ...

    def activations(self, images: "Tensor", layers: Sequence[str]) -> Mapping[str, "Tensor"]:
        """Return the outputs of the named layers (INTERNALS), batch first."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be read: it becomes an error row, never a silent gap."""

    id: str
    source: str
    error: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that could be read, and those that could not.

    Attributes:
        ids: sample ids [N]: stable names such as ``test/17`` or a relative path; they key every
            random draw, so they never depend on selection, order or sharding.
        sources: where each came from (file name or array position) [N].
        images: float32 [N, C, H, W] in [0, 1], on the CPU.
        failures: the samples of the request that could not be read.
        labels: true classes [N] int64 for an evaluation that needs them, else None.
        examples: class -> images [E, C, H, W] of that label, the first few of the whole selection
            (so that they depend on no shard); E may be 0. None where there are no labels.
    """

    ids: tuple[str, ...]
    sources: tuple[str, ...]
    images: "Tensor"
    failures: tuple[Failure, ...] = ()
    labels: "Tensor | None" = None
    examples: "Callable[[int], Tensor] | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What is known of a selection of images without decoding it; small, picklable.

    Attributes:
        spec: canonical spec string, selection included, that opens it again.
        name: short name for people and for the MLflow experiment ("digits", "imagenet").
        shape: (C, H, W) of every image after the declared preprocessing.
        num_classes: K where known, else None.
        size: number of selected images.
        has_labels: whether `Dataset.labels` can answer.
        fingerprint: SHA-256 hex over the selected content (and preprocessing).
    """

    spec: str
    name: str
    shape: tuple[int, int, int]
    num_classes: int | None
    size: int
    has_labels: bool
    fingerprint: str


class Dataset(Protocol):
    """A reproducible selection of images, read by id on the worker that needs them."""

    info: DatasetInfo
    ids: Sequence[str]

    def read(self, ids: Sequence[str]) -> Batch:
        """Return the images of `ids`, in order; unreadable ones are in ``failures``."""
        ...

    def labels(self, ids: Sequence[str]) -> "np.ndarray | None":
        """Return labels [len(ids)] int64, or None. Scoring never calls this."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of work, retry and output: a fixed set of sample ids, independent of workers."""

    index: int
    ids: tuple[str, ...]
