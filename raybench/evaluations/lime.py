"""The LIME evaluation: one row of local surrogate weights for each image.

    >>> from raybench.evaluations.readings import parse_reading
    >>> parse_reading("grid?cells=7&fill=0", samples=1000, shape=(1, 28, 28)).canonical()
    'grid?cells=7&fill=0.0&samples=1000&target=prob_pred'

The paper leaves open which features, fill and output LIME explains (spec 01 section 1.1), so every
setting is part of the reading, and the reading stands beside every score. The regression is linear
in the response: from the same model queries each row also keeps the weights' norm for the margin
and for the probability at other softmax temperatures, which cost no query.
"""

import math
from collections import deque
from dataclasses import dataclass, replace

import pyarrow as pa
import torch
from torch import Tensor

from raybench.core.errors import InputError, SpecError, near_miss
from raybench.core.spec import Spec
from raybench.core.types import Access, Batch, Model
from raybench.evaluations.explain import Asked, Explanation, ask_image, explain_answers
from raybench.evaluations.rows import empty_row, to_record_batch
from raybench.kernels.draws import keyed_int
from raybench.kernels.segments import grid_segments, quickshift_segments
from raybench.kernels.superpixels import slic_segments
from raybench.kernels.targets import TARGETS, TEMPERATURES

__all__ = ["READINGS", "LimeEvaluation"]

READINGS = {
    "grid": "square cells switched on and off, weighted ridge (segmentation-free; any image size)",
    "superpixel": "superpixels on and off, weighted ridge, mean |w|: the paper's likely reading",
    "superpixel-sum": "the same without dividing by the number of superpixels",
    "superpixel-pixel": "the same with every pixel counted: |w| weighted by area",
    "mask": "share of pixels in lime's three-valued mask (top 10, |w| >= 0.01): a diagnostic",
    "pixel-gauss": "Gaussian noise on every input value, least squares: weights as a gradient",
    "coarse-gauss": "Gaussian noise on grid cells and channels, least squares",
}
_SUPERPIXELS = {"superpixel", "superpixel-sum", "superpixel-pixel", "mask"}
_GAUSSIAN = {"pixel-gauss", "coarse-gauss"}
_SEGMENTATIONS = ("quickshift", "slic", "grid")
_DESIGNS = ("bernoulli", "antithetic", "hadamard")

# Which options a reading does not have: a value there would be silently ignored.
_FOREIGN = {
    "grid": ("kernel_size", "segmentation", "count", "sigma"),
    **dict.fromkeys(_SUPERPIXELS, ("sigma",)),
    "pixel-gauss": ("kernel_size", "segmentation", "count", "cells", "design", "fill"),
    "coarse-gauss": ("kernel_size", "segmentation", "count", "design", "fill"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LimeEvaluation:
    """Settings of one reading; None means the reading has no such option, or its default.

    Attributes:
        reading: one of `READINGS`.
        target: the response explained, one of `kernels.targets.TARGETS`.
        samples: k, model queries for each image, the unperturbed image included.
        fill: what a switched-off segment shows: "mean" (its mean colour), "blur", or a number in
            [0, 1].
        design: masks, "bernoulli" (independent, lime's), "antithetic" (independent pairs of
            complements) or "hadamard" (folded and orthogonal).
        cells: grid cells along a side (grids only).
        segmentation: "quickshift" (lime's), "slic" or "grid" (superpixel readings only).
        kernel_size: quickshift kernel size in pixels.
        count: about how many SLIC superpixels.
        sigma: noise level in pixel units (Gaussian readings only).
        alpha: ridge strength of the mask readings; 1 is lime's default.
        force: score even where more than a tenth of the images have too few segments.
        exact: fit by the plain formulas, one by one. No part of `canonical`: like the device, it
            moves a row's numbers by rounding alone.
    """

    reading: str
    target: str = "prob_pred"
    samples: int = 1000
    fill: str | None = None
    design: str | None = None
    cells: int | None = None
    segmentation: str | None = None
    kernel_size: float | None = None
    count: int | None = None
    sigma: float | None = None
    alpha: float = 1.0
    force: bool = False
    exact: bool = False

    def __post_init__(self) -> None:
        if self.reading not in READINGS:
            raise SpecError(
                f"no reading is named {self.reading!r}{near_miss(self.reading, READINGS)}"
            )
        if self.target not in TARGETS:
            raise SpecError(f"no target is named {self.target!r}{near_miss(self.target, TARGETS)}")
        for name in _FOREIGN[self.reading]:
            if getattr(self, name) is not None:
                raise SpecError(f"the reading {self.reading} has no option {name}")
        number = self.fill is not None and self.fill not in ("mean", "blur")
        in_range = not number or 0 <= float(self.fill or 0) <= 1
        # A regression on displacements cannot tell its noise from fewer than 3 copies.
        least = 3 if self.gaussian else 2
        rules = (
            (in_range, "fill", "mean, blur or a number in [0, 1]"),
            (self.design in (None, *_DESIGNS), "design", " or ".join(_DESIGNS)),
            (
                self.segmentation in (None, *_SEGMENTATIONS),
                "segmentation",
                " or ".join(_SEGMENTATIONS),
            ),
            (least <= self.samples <= 1_000_000, "samples", f"in {least}..1000000"),
            (_finite(self.alpha), "alpha", "a finite number above 0"),
            (self.cells is None or self.cells >= 1, "cells", "at least 1"),
            (self.count is None or self.count >= 1, "count", "at least 1"),
            (_finite(self.sigma), "sigma", "a finite number above 0"),
            (
                self.kernel_size is None or 1 <= self.kernel_size < math.inf,
                "kernel_size",
                "a finite number of at least 1",
            ),
        )
        for holds, name, rule in rules:
            if not holds:
                raise SpecError(f"{name} must be {rule}, found {getattr(self, name)!r}")

    @property
    def family(self) -> str:
        return "lime"

    @property
    def gaussian(self) -> bool:
        """Whether the features are real-valued displacements instead of mask bits."""
        return self.reading in _GAUSSIAN

    @property
    def requires(self) -> Access:
        needs = {"logit_pred": Access.LOGITS, "onehot": Access.LABELS}
        return needs.get(self.target, Access.SCORES)

    @property
    def needs_labels(self) -> bool:
        return False

    def canonical(self) -> str:
        fill = self.fill
        if fill not in (None, "mean", "blur"):
            fill = repr(float(fill))  # type: ignore[arg-type]
        options = {
            "target": self.target,
            "fill": fill,
            "samples": self.samples,
            "design": None if self.design == "bernoulli" else self.design,
            "cells": self.cells,
            "segmentation": None if self.segmentation == "quickshift" else self.segmentation,
            "kernel_size": self.kernel_size,
            "count": self.count,
            "sigma": self.sigma,
            "alpha": None if self.alpha == 1.0 else self.alpha,
            "force": "true" if self.force else None,
        }
        return Spec(self.reading).with_options(**options).canonical()

    def queries(self, images: int) -> int:
        return images * self.samples

    def resolved(self, shape: tuple[int, int, int]) -> "LimeEvaluation":
        """Return a copy whose open settings are decided for images of `shape` (C, H, W).

        Grids: 7 cells a side where 7 divides the side and 8 does not (28 pixels), else 8, but no
        cell under 2 pixels a side (4 cells for 8x8 digits). Quickshift: kernel size 4 from 128
        pixels up, else 1 (spec 01 section 1.1, defaults). SLIC: 64 superpixels. Noise: 0.05.

        Raises:
            InputError: settings that images of this shape, or so few samples, cannot satisfy.
        """
        if self.gaussian:
            cells = self._cells(shape) if self.reading == "coarse-gauss" else None
            return replace(self, sigma=self.sigma or 0.05, cells=cells)
        settings = replace(self, fill=self.fill or "mean", design=self.design or "bernoulli")
        if self.reading in _SUPERPIXELS:
            settings = replace(settings, segmentation=self.segmentation or "quickshift")
        return settings._resolve_segments(shape)

    def _resolve_segments(self, shape: tuple[int, int, int]) -> "LimeEvaluation":
        side = min(shape[1:])
        if self.segmentation == "quickshift":
            if self.cells or self.count:
                raise SpecError("quickshift has neither cells nor count; choose slic or grid")
            if self.kernel_size and self.kernel_size > side:
                raise InputError(
                    f"reading {self.canonical()}: kernel_size must be at most {side}, the side of "
                    f"images of {shape[1]}x{shape[2]} pixels"
                )
            return replace(self, kernel_size=self.kernel_size or (4.0 if side >= 128 else 1.0))
        if self.kernel_size:
            raise SpecError("kernel_size belongs to segmentation=quickshift")
        if self.segmentation == "slic":
            if self.cells:
                raise SpecError("cells belong to segmentation=grid; slic takes count")
            if self.count and self.count > shape[1] * shape[2]:
                raise InputError(
                    f"reading {self.canonical()}: count must lie in 1..{shape[1] * shape[2]} for "
                    f"images of {shape[1]}x{shape[2]} pixels"
                )
            return replace(self, count=self.count or min(64, shape[1] * shape[2]))
        if self.count:
            raise SpecError("count belongs to segmentation=slic")
        cells = self._cells(shape)
        if cells > side // 2 and self.fill == "mean":
            raise InputError(
                f"reading {self.canonical()}: with {cells} cells some are single pixels, "
                f"whose mean colour changes nothing; use at most {side // 2} cells, or fill=0"
            )
        settings = replace(self, cells=cells)
        settings.check_design(cells * cells)
        return settings

    def _cells(self, shape: tuple[int, int, int]) -> int:
        side = min(shape[1:])
        cells = self.cells or max(1, min(side // 2, 7 if side % 7 == 0 and side % 8 else 8))
        if not 1 <= cells <= side:
            raise InputError(
                f"reading {self.canonical()}: cells must lie in 1..{side} for images of "
                f"{shape[1]}x{shape[2]} pixels"
            )
        return cells

    def check_design(self, segments: int) -> None:
        """Refuse fewer samples than `segments` features switched on and off can be fitted from.

        Raises:
            InputError: the samples or the design cannot carry that many segments.
        """
        if self.gaussian:
            return
        if self.design == "hadamard":
            power = self.samples & (self.samples - 1) == 0
            if not power or segments > self.samples // 2 - 1:
                raise InputError(
                    f"reading {self.canonical()}: a Hadamard design needs a power of two of at "
                    f"least {2 * segments + 2} samples for {segments} segments"
                )
        elif self.samples < segments + 2:
            what = "superpixels" if self.cells is None else "cells"
            raise InputError(
                f"reading {self.canonical()}: {self.samples} samples cannot fit {segments} {what}; "
                f"use --samples {2 * segments} or more, or fewer {what}"
            )

    def segment(self, image: Tensor, sample_id: str, seed: int) -> Tensor:
        """Return the segmentation [H, W] int64 of `image` [C, H, W]: the same for every model."""
        if self.cells is not None:
            return grid_segments(image.shape[1], image.shape[2], self.cells)
        if self.count is not None:
            return slic_segments(image, self.count)
        if self.kernel_size is not None:
            rng = keyed_int(seed, "segments", sample_id, 1000)
            return quickshift_segments(image, self.kernel_size, rng)
        # Every pixel of its own: what a figure of pixel weights shows.
        return torch.arange(image[0].numel()).reshape(image.shape[1:])

    def schema(self) -> pa.Schema:
        fixed = self.cells is not None and not self.gaussian
        size = self.cells**2 if fixed and self.cells else -1
        temperatures = pa.list_(pa.float64(), len(TEMPERATURES))
        numbers = ("l1", "score", "corrected", "noise_floor", "half_a", "half_b")
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                pa.field("source", pa.string(), nullable=False),
                pa.field("status", pa.string(), nullable=False),
                pa.field("error", pa.string()),
                pa.field("predicted", pa.int32()),
                pa.field("probability", pa.float64()),
                pa.field("margin", pa.float64()),
                pa.field("weights", pa.list_(pa.float32(), size)),
                pa.field("intercept", pa.float64()),
                pa.field("r2", pa.float64()),
                pa.field("num_segments", pa.int32()),
                *(pa.field(name, pa.float64()) for name in numbers),
                pa.field("margin_l1", pa.float64()),
                pa.field("normalised", pa.float64()),
                pa.field("temperature_l1", temperatures),
                pa.field("temperature_probability", temperatures),
                pa.field("k", pa.int32(), nullable=False),
                pa.field("reading", pa.string(), nullable=False),
                pa.field("seed", pa.int64(), nullable=False),
            ]
        )

    def __call__(self, model: Model, batch: Batch, *, seed: int, batch_size: int) -> pa.RecordBatch:
        """Return one row for each sample of `batch`; see `schema`.

        A sample that cannot be scored (unreadable image, non-finite answer) is a row with status
        "error" and its reason, never a missing row and never a zero.
        """
        rows = {}
        explained = self._explain(model, batch, seed, batch_size)
        for sample_id, source, found in zip(batch.ids, batch.sources, explained, strict=True):
            head = {"sample_id": sample_id, "source": source}
            if isinstance(found, str):
                rows[sample_id] = empty_row(sample_id, source, found)
            else:
                rows[sample_id] = head | {"status": "ok", "error": None} | found.as_row()
        for failure in batch.failures:
            rows[failure.id] = empty_row(failure.id, failure.source, failure.error)
        constants = {"k": self.samples, "reading": self.canonical(), "seed": seed}
        return to_record_batch([row | constants for row in rows.values()], self.schema())

    def _explain(
        self, model: Model, batch: Batch, seed: int, batch_size: int
    ) -> list[Explanation | str]:
        """Return what is found for each image, having asked about the next one before.

        So a GPU makes the answers for one image while the CPU explains those for the last.
        Displacements, which may be as many as the pixels, are kept for one image at a time.
        """
        waiting: deque[Asked | str] = deque()
        found: list[Explanation | str] = []
        with torch.inference_mode():
            for sample_id, image in zip(batch.ids, batch.images, strict=True):
                waiting.append(
                    ask_image(self, model, image, sample_id, seed=seed, batch_size=batch_size)
                )
                if self.gaussian or len(waiting) > 1:
                    found.append(self._explained(model, waiting.popleft()))
            found.extend(self._explained(model, asked) for asked in waiting)
        return found

    def _explained(self, model: Model, asked: Asked | str) -> Explanation | str:
        return asked if isinstance(asked, str) else explain_answers(self, model, asked)


def _finite(value: float | None) -> bool:
    """Return whether `value`, where it is given, is a finite number above 0."""
    return value is None or 0 < value < math.inf
