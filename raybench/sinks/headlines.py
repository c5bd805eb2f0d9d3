"""What MLflow shows of a finished measurement: which numbers, and the sentence people read."""

from raybench.core.results import ModelScore
from raybench.core.robustness import AttackScore

__all__ = ["ATTACK_METRICS", "FINAL_METRICS", "headline"]

# Fields of `ModelScore` that become metrics of a finished run, under their own names.
FINAL_METRICS = (
    "score", "ci_low", "ci_high", "normalised", "normalised_low", "normalised_high", "matched",
    "noise_floor", "corrected", "reliability", "confidence", "ri", "ri_low", "ri_high",
    "ri_over_model", "n", "unscored", "queries", "images_per_second", "clean_accuracy",
    "clean_low", "clean_high", "mean_segments", "r2", "degenerate_fraction",
)  # fmt: skip

# The same of `AttackScore`.
ATTACK_METRICS = (
    "robust_accuracy", "robust_low", "robust_high", "clean_accuracy", "clean_low", "clean_high",
    "accuracy", "accuracy_low", "accuracy_high", "accuracy_u8", "success_rate", "n", "unscored",
    "median_l0", "median_l2", "median_linf", "queries", "gradients", "median_queries",
    "images_per_second", "zero_gradients", "out_of_budget",
)  # fmt: skip


def headline(row: ModelScore | AttackScore) -> str:
    """Return the sentence people read on the run's page."""
    if isinstance(row, AttackScore):
        worst = "" if row.robust_accuracy is None else f"; all attacks {row.robust_accuracy:.2%}"
        return (
            f"accuracy **{row.accuracy:.2%}** under `{row.reading}`{worst}; clean "
            f"{row.clean_accuracy:.2%}, n = {row.n}. An upper bound of robust accuracy."
        )
    interval = ""
    if row.ci_low is not None and row.ci_high is not None:
        interval = f" [{row.ci_low:.4g}, {row.ci_high:.4g}]"
    gain = "" if row.ri is None else f"; R.I. {row.ri:.4g} % against {row.baseline}"
    return (
        f"brittle-score **{row.score:.4g}**{interval} under reading `{row.reading}`, "
        f"n = {row.n}{gain}. Lower = less brittle under this reading."
    )
