"""The headline of one measurement: what tables, figures, MLflow and ``--json`` show of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from raybench.core.decisions import Decisions
from raybench.core.types import DatasetInfo, ModelInfo

__all__ = ["ModelScore", "ScoreTable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScore:
    """The brittle-score of one model under one reading, with what is needed to judge it.

    Attributes:
        model: the model.
        reading: canonical reading spec the score was computed under; always shown beside it.
        key: digest of the measurement (model, dataset, evaluation, seed): 64 hex characters.
        folder: its folder below the output folder.
        status: "complete", "incomplete" (nothing below is published) or "failed".
        score: Eq. 2, mean over images of ||w||_1 / d; None unless complete.
        ci_low, ci_high: 95 % bootstrap interval over images.
        baseline: name of the model that `ri` compares with (its plain twin, or the run's baseline).
        ri: Eq. 3, percent against the baseline's score; None without a baseline.
        ri_low, ri_high: 95 % paired bootstrap interval of `ri`.
        ri_over_model: the same difference divided by the model's own score, in percent.
        corrected: the score less its estimated upward noise bias.  noise_floor: what weights that
            are pure noise of the size estimated would score; both in the unit of `score`.
        reliability: correlation over images of the scores from the two halves of the samples,
            stepped up to all of them (Spearman-Brown); None where halves are too few.
        normalised, normalised_low, normalised_high: the score that no scale of the logits is left
            in, with its 95 % bootstrap interval; see `normalised_by`.
        normalised_by: the reading that `normalised` comes from: this one's own (geometric mean of
            the margin's ||w||_1 over the margin) or the flip radius.
        normalised_queries: images the model was asked about for it, where that is another reading:
            they come on top of `queries`.
        temperature_half, temperature_double: the score if the logits were halved or doubled, which
            changes no prediction (spec 01 T7).
        matched: the score at the temperature where the mean confidence is 0.9; None out of range.
        confidence: mean probability of the predicted class.
        rank: 1 is the lowest of what the table ranks by; None unless complete.
        tied: names of models whose paired 95 % interval of the difference contains zero.
        n: images scored.  unscored: images that failed (they count in no mean).
        clean_accuracy: fraction right where labels exist, with Wilson 95 % bounds.
        queries: images the model was asked about over the whole measurement of this reading, those
            included that only fill up a batch.
        fixed_n, queries_fixed_n: images, and their queries, of the fixed-n design that a sequential
            run could stop short of; None where all images were asked for from the start.
        images_per_second: dataset images scored per second of worker time; None where unknown.
        mean_segments: mean d.  degenerate_fraction: share of images with fewer than 5 segments.
        r2: mean weighted R-squared of the local fits.
        warnings: sentences a reader must see beside the number.
        error: why it failed, where it did.
    """

    model: ModelInfo
    reading: str
    key: str
    folder: str
    status: str
    score: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    baseline: str | None = None
    ri: float | None = None
    ri_low: float | None = None
    ri_high: float | None = None
    ri_over_model: float | None = None
    corrected: float | None = None
    noise_floor: float | None = None
    reliability: float | None = None
    normalised: float | None = None
    normalised_low: float | None = None
    normalised_high: float | None = None
    normalised_by: str | None = None
    normalised_queries: int | None = None
    temperature_half: float | None = None
    temperature_double: float | None = None
    matched: float | None = None
    confidence: float | None = None
    rank: int | None = None
    tied: tuple[str, ...] = ()
    n: int = 0
    unscored: int = 0
    clean_accuracy: float | None = None
    clean_low: float | None = None
    clean_high: float | None = None
    queries: int = 0
    fixed_n: int | None = None
    queries_fixed_n: int | None = None
    images_per_second: float | None = None
    mean_segments: float | None = None
    degenerate_fraction: float | None = None
    r2: float | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None

    @property
    def queries_spent(self) -> int | None:
        """The queries of a measurement that a sequential run made; None of a plain one."""
        return None if self.fixed_n is None else self.queries


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    """The ranked scores of several models on one dataset under one reading, best first.

    `baseline` names the standard model of Eq. 3 that rows without a twin are compared with,
    or is None. `seed` and `samples` (k) are those of every row: rows are comparable by
    construction. `rank_by` is the field ranked and tied on: "normalised", "score" or "matched".
    `shown` is False where all that it says is a column of another table. `decisions` are those of
    the sequential run that the ranking comes from, if one stopped it.
    """

    dataset: DatasetInfo
    reading: str
    seed: int
    samples: int
    baseline: str | None
    rows: Sequence[ModelScore]
    rank_by: str = "score"
    shown: bool = True
    decisions: Decisions | None = None

    @property
    def images(self) -> str:
        """How many images the rows are about, for titles: all, or which part of them."""
        whole = f"{self.dataset.size:,}"
        complete = [row for row in self.rows if row.status == "complete"]
        found = sorted({row.n + row.unscored for row in complete})
        if all(row.fixed_n is None for row in complete) or found == [self.dataset.size]:
            return whole
        return f"{' to '.join(f'{n:,}' for n in found[:1] + found[1:][-1:])} of {whole}"
