"""The numbers of each image under one measurement, as columns ready for statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raybench.kernels.targets import TEMPERATURES

__all__ = ["MATCHED_CONFIDENCE", "ImageScores", "image_scores", "mean_or_none"]

# The mean confidence at which temperature-matched scores are taken.
MATCHED_CONFIDENCE = 0.9


def mean_or_none(values: np.ndarray | None) -> float | None:
    """Return the mean of the values that are known, or None where none is."""
    if values is None or np.isnan(values).all():
        return None
    return float(np.nanmean(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScores:
    """Columns over N images, in the order of the shards; NaN where a value is not known.

    Attributes:
        ids: sample ids.
        ok: [N] bool, whether the image was scored.
        predicted: [N] float64, predicted classes.
        columns: further columns by name, each [N] float64.
        scores_at: [N, temperatures] Eq. 2's term at each of `TEMPERATURES`, or None.
        confidence_at: [N, temperatures] confidence at each, or None.
        first_error: the first error text, or None.
    """

    ids: tuple[str, ...]
    ok: np.ndarray
    predicted: np.ndarray
    columns: dict[str, np.ndarray]
    scores_at: np.ndarray | None
    confidence_at: np.ndarray | None
    first_error: str | None

    @property
    def score(self) -> np.ndarray:
        """The score of each image [N]."""
        return self.columns["score"]

    @property
    def scored(self) -> int:
        """How many images were scored."""
        return int(self.ok.sum())

    @property
    def unscored(self) -> int:
        """How many were not."""
        return len(self.ids) - self.scored

    def mean(self, name: str) -> float | None:
        """Return the mean of a column over the images where it is known."""
        return mean_or_none(self.columns.get(name))

    def share_below(self, name: str, limit: float) -> float | None:
        """Return the share of images, among those where it is known, with the column below `limit`.

        None where the measurement has no such column.
        """
        values = self.columns.get(name)
        known = values[~np.isnan(values)] if values is not None else np.empty(0)
        return float((known < limit).mean()) if len(known) else None

    def predictions(self) -> Iterator[tuple[str, int]]:
        """Yield (sample id, predicted class) of the scored images."""
        for sample_id, ok, label in zip(self.ids, self.ok, self.predicted, strict=True):
            if ok:
                yield sample_id, int(label)

    def normalised(self, *, logarithm: bool) -> np.ndarray | None:
        """Return the normalised score of each image [N], or its logarithm; None if unknown.

        A weightless image (a constant model) has no logarithm; it counts as the smallest number
        that has one, so that it ranks lowest instead of dropping out.
        """
        values = self.columns.get("normalised")
        if values is None or np.isnan(values).all():
            return None
        if not logarithm:
            return values
        logs: np.ndarray = np.log(np.maximum(values, 1e-300))
        return logs

    def at_temperature(self, factor: float) -> float | None:
        """Return the score if the logits were multiplied by `factor`, one of `TEMPERATURES`."""
        if self.scores_at is None:
            return None
        return mean_or_none(self.scores_at[:, TEMPERATURES.index(factor)])

    def matched(self) -> np.ndarray | None:
        """Return each image's score where the mean confidence is `MATCHED_CONFIDENCE` [N].

        One factor on the logits for the whole model, found between the stored temperatures by
        linear interpolation in their logarithm; needs no labels. None where no factor in their
        range reaches that confidence.
        """
        if self.scores_at is None or self.confidence_at is None:
            return None
        if np.isnan(self.confidence_at).all(axis=0).any():
            return None
        confidence = np.nanmean(self.confidence_at, axis=0)
        above = np.flatnonzero(confidence >= MATCHED_CONFIDENCE)
        if len(above) == 0 or above[0] == 0:
            return None
        high = int(above[0])
        share = (MATCHED_CONFIDENCE - confidence[high - 1]) / (
            confidence[high] - confidence[high - 1]
        )
        matched: np.ndarray = (1 - share) * self.scores_at[:, high - 1] + share * self.scores_at[
            :, high
        ]
        return matched

    def reliability(self) -> float | None:
        """Return the split-half reliability of the images' scores (Spearman-Brown), if known."""
        first, second = self.columns.get("half_a"), self.columns.get("half_b")
        if first is None or second is None:
            return None
        known = ~(np.isnan(first) | np.isnan(second))
        if known.sum() < 3 or first[known].std() == 0 or second[known].std() == 0:
            return None
        r = float(np.corrcoef(first[known], second[known])[0, 1])
        return 2 * r / (1 + r) if r > -1 else None


_NUMBERS = (
    "score",
    "normalised",
    "corrected",
    "noise_floor",
    "half_a",
    "half_b",
    "probability",
    "num_segments",
    "r2",
)


def image_scores(rows: pa.Table) -> ImageScores:
    """Return the columns of a measurement's rows."""
    names = set(rows.column_names)
    columns = {name: _floats(rows, name) for name in _NUMBERS if name in names}
    errors = [text for text in rows.column("error").to_pylist() if text]
    scores_at = confidence_at = None
    if "temperature_l1" in names:
        # Eq. 2's divisor is the same at every temperature: the score's own over its own norm.
        l1 = _floats(rows, "l1")
        with np.errstate(invalid="ignore", divide="ignore"):
            per_norm = np.where(l1 > 0, columns["score"] / l1, 0.0)
        scores_at = _lists(rows, "temperature_l1") * per_norm[:, None]
        confidence_at = _lists(rows, "temperature_probability")
    return ImageScores(
        ids=tuple(rows.column("sample_id").to_pylist()),
        ok=np.array([status == "ok" for status in rows.column("status").to_pylist()]),
        predicted=_floats(rows, "predicted"),
        columns=columns,
        scores_at=scores_at,
        confidence_at=confidence_at,
        first_error=errors[0] if errors else None,
    )


def _floats(rows: pa.Table, name: str) -> np.ndarray:
    values: np.ndarray = rows.column(name).cast(pa.float64()).to_numpy()
    return values


def _lists(rows: pa.Table, name: str) -> np.ndarray:
    flat = rows.column(name).combine_chunks().values.to_numpy(zero_copy_only=False)
    values: np.ndarray = flat.astype(np.float64).reshape(rows.num_rows, -1)
    return values
