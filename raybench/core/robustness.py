"""The headline of attacks: what tables, figures, MLflow and ``--json`` show of robust accuracy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raybench.core.types import DatasetInfo, ModelInfo

__all__ = ["AttackScore", "AttackTable", "RobustScore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackScore:
    """One model under one attack: one measurement.

    Fractions are in [0, 1]; every interval is Wilson's at 95 %.

    Attributes:
        model: the model.
        reading: canonical attack spec, budget included.
        key: digest of the measurement.
        folder: its folder below the output folder.
        status: "complete", "incomplete" or "failed"; nothing below is published unless complete.
        accuracy, accuracy_low, accuracy_high: share of all images that are right and stay right
            under this attack.
        accuracy_u8: the same with attacked images rounded to 8 bits.
        robust_accuracy, clean_accuracy: of the model over all attacks of its table, and without.
        success_rate, success_low, success_high: successes over the images that were right.
        attacked: how many those are.
        n, unscored: images judged, and images that could not be (they count in no share).
        median_l2, median_linf, median_l0: distances of the successes; None without one.
        queries, gradients: forward and backward passes, in all.
        median_queries: of the successes, up to the first; None without one.
        images_per_second: of worker time; None where unknown.
        zero_gradients: images whose gradient was zero throughout: a sign of gradient masking.
        out_of_budget: results that broke the budget or the range (a fault of the attack); never
            successes.
        error: why it failed, where it did.
    """

    model: ModelInfo
    reading: str
    key: str
    folder: str
    status: str
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_u8: float | None = None
    robust_accuracy: float | None = None
    robust_low: float | None = None
    robust_high: float | None = None
    clean_accuracy: float | None = None
    clean_low: float | None = None
    clean_high: float | None = None
    success_rate: float | None = None
    success_low: float | None = None
    success_high: float | None = None
    attacked: int = 0
    n: int = 0
    unscored: int = 0
    median_l0: float | None = None
    median_l2: float | None = None
    median_linf: float | None = None
    queries: int = 0
    gradients: int = 0
    median_queries: float | None = None
    images_per_second: float | None = None
    zero_gradients: int = 0
    out_of_budget: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustScore:
    """One model under all attacks of a table.

    Attributes:
        model: the model.
        status: "complete" when every attack is, else "incomplete" or "failed".
        robust_accuracy, robust_low, robust_high: share of images that are right and that no attack
            changes: the worst case image by image, not the smallest of the attacks' means.
        clean_accuracy, clean_low, clean_high: share of images that are right.
        n: images judged by every attack.
        rank: 1 is the most robust; None unless complete.
        tied: names of models that McNemar's exact test does not tell apart (p >= 0.05).
        attacks: the attacks, in the order of the run.
        warnings: sentences a reader must see beside the number.
    """

    model: ModelInfo
    status: str
    robust_accuracy: float | None = None
    robust_low: float | None = None
    robust_high: float | None = None
    clean_accuracy: float | None = None
    clean_low: float | None = None
    clean_high: float | None = None
    n: int = 0
    rank: int | None = None
    tied: tuple[str, ...] = ()
    attacks: Sequence[AttackScore] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackTable:
    """Models under the same attacks within one budget on the same images, most robust first.

    `threat` names the budget, such as ``linf 8/255`` or ``l2 (no budget), targeted next``.
    """

    dataset: DatasetInfo
    threat: str
    norm: str
    eps: str | None
    targeted: str | None
    seed: int
    rows: Sequence[RobustScore]

    def measurements(self) -> Iterator[AttackScore]:
        """Yield every attack of every model."""
        for row in self.rows:
            yield from row.attacks
