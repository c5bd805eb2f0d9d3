"""The brittle-score of several models on the same images: Eq. 2, Eq. 3, intervals, ties.

    B(M) = mean over images of ||w||_1 / d                 (Eq. 2; spec 01 section 1.1)
    R.I.(M) = 100 (B(S) - B(M)) / B(S) percent             (Eq. 3; S the standard model)

The printed table of the paper divides by B(M) instead (spec 01 section 1.6), so both are given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raybench.metrics.intervals import Resampled, percentile_interval, straddles_zero

__all__ = ["Comparison", "choose_baselines", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One model's place among the others; every interval is 95 %.

    Attributes:
        score, ci_low, ci_high: mean over images and its bootstrap interval.
        ri, ri_low, ri_high: Eq. 3 in percent with its paired interval; None without a baseline or
            where the baseline's score is 0 (undefined).
        ri_over_model: the difference over the model's own score, percent; None likewise.
        rank: 1 for the lowest score.
        tied: names of the models whose paired difference has an interval that contains 0.
    """

    score: float
    ci_low: float
    ci_high: float
    ri: float | None
    ri_low: float | None
    ri_high: float | None
    ri_over_model: float | None
    rank: int
    tied: tuple[str, ...]


def choose_baselines(
    names: Sequence[str], baseline: str | None, *, twins: bool = True
) -> dict[str, str | None]:
    """Return for each model the one it is compared with: its plain twin, else `baseline`.

    ``X-adv`` is compared with ``X`` where both are present (the paper's controlled experiment),
    every other model with `baseline`. A baseline is compared with nothing. Without `twins` every
    model is compared with `baseline`.
    """
    if not twins:
        return {name: None if name == baseline else baseline for name in names}
    chosen: dict[str, str | None] = {}
    for name in names:
        twin = name.removesuffix("-adv")
        if twin != name and twin in names:
            chosen[name] = twin
        else:
            chosen[name] = None if name == baseline or f"{name}-adv" in names else baseline
    return chosen


def compare(
    names: Sequence[str], bootstrap: Resampled, baselines: Mapping[str, str | None]
) -> dict[str, Comparison]:
    """Return the comparison of every model that has a score.

    Args:
        names: P model names, the columns of `bootstrap`.
        bootstrap: per-image scores' means and their paired resamples.
        baselines: model name -> the name it is compared with, or None.
    """
    columns = {name: index for index, name in enumerate(names)}
    scored = [name for name in names if not np.isnan(bootstrap.means[columns[name]])]
    order = sorted(scored, key=lambda name: (bootstrap.means[columns[name]], name))
    result = {}
    for rank, name in enumerate(order, start=1):
        mine, draws = bootstrap.means[columns[name]], bootstrap.resampled[:, columns[name]]
        low, high = percentile_interval(draws)
        ri = ri_low = ri_high = ri_over_model = None
        standard = baselines.get(name)
        if standard in scored and standard is not None:
            reference = bootstrap.means[columns[standard]]
            if reference > 0:
                ri = float(100 * (reference - mine) / reference)
                references = bootstrap.resampled[:, columns[standard]]
                # A resample in which the standard model has no weight at all has no ratio.
                if (references > 0).all():
                    changes = 100 * (references - draws) / references
                    ri_low, ri_high = percentile_interval(changes)
                ri_over_model = float(100 * (reference - mine) / mine) if mine > 0 else None
        tied = []
        for other in order:
            if other == name:
                continue
            if straddles_zero(draws - bootstrap.resampled[:, columns[other]]):
                tied.append(other)
        result[name] = Comparison(
            score=float(mine),
            ci_low=low,
            ci_high=high,
            ri=ri,
            ri_low=ri_low,
            ri_high=ri_high,
            ri_over_model=ri_over_model,
            rank=rank,
            tied=tuple(tied),
        )
    return result
