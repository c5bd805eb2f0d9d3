"""What MLflow shows of a measurement: its name, its params, its numbers, the sentence people read.

    >>> run_name("cnn3", "grid?cells=4&fill=mean&samples=1000&target=prob_pred")
    'cnn3 · grid · mean, prob_pred'
    >>> run_params("cnn3", "digits", 400, 0, "pgd?eps=0.1&norm=linf&steps=20")["with.steps"]
    '20'

MLflow's Compare page opens on the first params that differ, by name, and on the first metric that
all runs share, in the order they were logged in. So the params that tell runs apart come first by
name, and the number that ranks comes first in the lists of metrics.
"""

from raybench.core.results import ModelScore
from raybench.core.robustness import AttackScore
from raybench.core.spec import parse

__all__ = ["ATTACK_METRICS", "FINAL_METRICS", "final_values", "headline", "run_name", "run_params"]

# Fields of `ModelScore` that become metrics of a finished run, under their own names.
FINAL_METRICS = (
    "score", "ci_low", "ci_high", "normalised", "normalised_low", "normalised_high", "matched",
    "noise_floor", "corrected", "reliability", "confidence", "ri", "ri_low", "ri_high",
    "ri_over_model", "clean_accuracy", "clean_low", "clean_high", "n", "unscored", "queries",
    "queries_spent", "queries_fixed_n", "images_per_second", "mean_segments", "r2",
    "degenerate_fraction",
)  # fmt: skip

# The same of `AttackScore`.
ATTACK_METRICS = (
    "robust_accuracy", "robust_low", "robust_high", "clean_accuracy", "clean_low", "clean_high",
    "accuracy", "accuracy_low", "accuracy_high", "accuracy_u8", "success_rate", "n", "unscored",
    "median_l0", "median_l2", "median_linf", "queries", "gradients", "median_queries",
    "images_per_second", "zero_gradients", "out_of_budget",
)  # fmt: skip


# What names a run beside its scheme; everything else is in its params.
_TELLING = ("fill", "target", "design", "segmentation", "targeted")
# Options that are params of their own; the others get the prefix, so that they sort behind all.
_BARE = ("eps", "samples", "target", "targeted")
_FLIP_RADIUS = "flip-radius"
# The flip radius has no LIME weights: what would stand under these is its normalised score again,
# and a metric must mean one thing in all runs that are compared.
_WEIGHTS_ONLY = ("score", "ci_low", "ci_high")


def run_name(model: str, evaluation: str) -> str:
    """Return the name of a measurement's run: model, reading or attack, and what sets it apart."""
    spec = parse(evaluation)
    eps = spec.get("eps")
    words = [f"{spec.get('norm') or ''} {eps}".strip()] if eps else []
    words += [value for name in _TELLING if (value := spec.get(name))]
    return " · ".join(filter(None, (model, spec.scheme, ", ".join(words))))


def run_params(
    model: str, dataset: str, size: int, seed: int, evaluation: str
) -> dict[str, str | int]:
    """Return what makes a measurement itself, as columns that people can sort and compare by.

    Args:
        model: its name.
        dataset: its name.
        size: number of images.
        seed: of the run.
        evaluation: canonical reading or attack spec.
    """
    spec = parse(evaluation)
    options = {name if name in _BARE else f"with.{name}": value for name, value in spec.options}
    return {
        "model": model,
        "dataset": dataset,
        "n": size,
        "seed": seed,
        "reading": spec.scheme,
        **options,
    }


def final_values(row: ModelScore | AttackScore) -> dict[str, float | None]:
    """Return the metrics of a finished run by name, in the order to log; None where unknown."""
    if isinstance(row, AttackScore):
        return {name: getattr(row, name) for name in ATTACK_METRICS}
    known = {name: getattr(row, name) for name in FINAL_METRICS}
    if parse(row.reading).scheme == _FLIP_RADIUS:
        known |= dict.fromkeys(_WEIGHTS_ONLY)
    return known


def headline(row: ModelScore | AttackScore) -> str:
    """Return the sentence people read on the run's page."""
    if isinstance(row, AttackScore):
        worst = ""
        if row.robust_accuracy is not None:
            worst = (
                f"; all attacks of this budget **{row.robust_accuracy:.2%}**"
                f"{_interval(row.robust_low, row.robust_high, '.2%')}"
            )
        return (
            f"accuracy **{row.accuracy:.2%}** under `{row.reading}`{worst}; clean "
            f"{row.clean_accuracy:.2%}, n = {row.n}. An upper bound of robust accuracy."
        )
    parts = []
    if row.rank is not None:
        parts.append(f"rank **{row.rank}{'=' if row.tied else ''}**")
    if row.normalised is not None:
        by = f" by `{row.normalised_by}`" if row.normalised_by not in (None, row.reading) else ""
        bounds = _interval(row.normalised_low, row.normalised_high, ".4g")
        parts.append(f"normalised **{row.normalised:.4g}**{bounds}{by}")
    if parse(row.reading).scheme != _FLIP_RADIUS:
        bounds = _interval(row.ci_low, row.ci_high, ".4g")
        parts.append(f"brittle-score **{row.score:.4g}**{bounds}")
    gain = "" if row.ri is None else f"; R.I. {row.ri:.4g} % against {row.baseline}"
    stopped = ""
    if row.fixed_n is not None and row.n + row.unscored < row.fixed_n:
        stopped = f" (decided at {row.n + row.unscored} of {row.fixed_n} images)"
    return (
        f"{', '.join(parts)} under reading `{row.reading}`, "
        f"n = {row.n}{stopped}{gain}. Lower = less brittle under this reading."
    )


def _interval(low: float | None, high: float | None, style: str) -> str:
    return "" if low is None or high is None else f" [{low:{style}}, {high:{style}}]"
