"""The flip radius as an evaluation: how far each prediction is from changing, found by queries.

    >>> RadiusEvaluation(samples=1000).canonical()
    'flip-radius?samples=1000'

Not a reading of LIME: it measures the distance that LIME's weights are meant to tell. Its
``normalised`` column, one minus the radius in units of 0.3, is the area above the label-free curve
of unchanged predictions for sizes from 0 to 0.3: 0 where no change was found, 1 where any
perturbation changes the prediction. No scale of the logits is in it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raybench.core.errors import SpecError
from raybench.core.spec import Spec
from raybench.core.types import Access, Batch, Model
from raybench.evaluations.explain import scores_of
from raybench.evaluations.rows import NOT_FINITE, empty_row, to_record_batch
from raybench.kernels.radius import (
    CAP,
    CHECKPOINTS,
    LEAST_QUERIES,
    RadiusResult,
    flip_radius,
    queries_asked,
)

__all__ = ["FLIP_RADIUS", "RadiusEvaluation"]

FLIP_RADIUS = "flip-radius"

# Images that walk together. A forward pass of another size rounds otherwise, and the search follows
# the difference: groups are always filled up, so that no result depends on the shard's size.
_GROUP = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiusEvaluation:
    """Settings of the flip radius: `samples` model queries for each image, all told.

    Copies that only fill up a group of images come on top; `queries` counts them.
    """

    samples: int = 1000

    def __post_init__(self) -> None:
        if not LEAST_QUERIES <= self.samples <= 1_000_000:
            raise SpecError(
                f"{FLIP_RADIUS}: samples must lie in {LEAST_QUERIES}..1000000, found {self.samples}"
            )

    @property
    def reading(self) -> str:
        return FLIP_RADIUS

    @property
    def family(self) -> str:
        return "radius"

    @property
    def requires(self) -> Access:
        return Access.SCORES

    @property
    def needs_labels(self) -> bool:
        return False

    def canonical(self) -> str:
        return Spec(FLIP_RADIUS).with_options(samples=self.samples).canonical()

    def queries(self, images: int) -> int:
        groups = [min(_GROUP, images - start) for start in range(0, images, _GROUP)]
        return sum(queries_asked(size, self.samples, _GROUP) for size in groups)

    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                pa.field("source", pa.string(), nullable=False),
                pa.field("status", pa.string(), nullable=False),
                pa.field("error", pa.string()),
                pa.field("predicted", pa.int32()),
                pa.field("margin", pa.float64()),
                pa.field("radius", pa.float64()),
                pa.field("radii", pa.list_(pa.float64(), len(CHECKPOINTS))),
                pa.field("linearised", pa.float64()),
                pa.field("score", pa.float64()),
                pa.field("normalised", pa.float64()),
                pa.field("k", pa.int32(), nullable=False),
                pa.field("reading", pa.string(), nullable=False),
                pa.field("seed", pa.int64(), nullable=False),
            ]
        )

    def __call__(self, model: Model, batch: Batch, *, seed: int, batch_size: int) -> pa.RecordBatch:
        """Return one row for each sample of `batch`; see `schema`."""
        rows = []
        for start in range(0, len(batch.ids), _GROUP):
            images = batch.images[start : start + _GROUP]
            found = self._search(model, images, seed, batch_size)
            rows += [
                _row(batch.ids[start + offset], batch.sources[start + offset], found, offset)
                for offset in range(len(images))
            ]
        rows += [empty_row(bad.id, bad.source, bad.error) for bad in batch.failures]
        constants = {"k": self.samples, "reading": self.canonical(), "seed": seed}
        return to_record_batch([row | constants for row in rows], self.schema())

    def _search(self, model: Model, images: Tensor, seed: int, batch_size: int) -> RadiusResult:
        with torch.inference_mode():
            return flip_radius(
                scores_of(model),
                images.to(model.device),
                seed=seed,
                queries=self.samples,
                batch=max(batch_size, _GROUP),
                fill=_GROUP,
            )


def _row(sample_id: str, source: str, found: RadiusResult, index: int) -> dict[str, object]:
    if not bool(found.finite[index]):
        return empty_row(sample_id, source, NOT_FINITE)
    radius = float(found.extrapolated[index])
    normalised = 1 - radius / CAP
    linearised = float(found.linearised[index])
    radii: np.ndarray = found.radii[index].numpy()
    return {
        "sample_id": sample_id,
        "source": source,
        "status": "ok",
        "error": None,
        "predicted": int(found.predicted[index]),
        "margin": float(found.margin[index]),
        "radius": radius,
        "radii": radii,
        "linearised": linearised if np.isfinite(linearised) else None,
        "score": normalised,
        "normalised": normalised,
    }
