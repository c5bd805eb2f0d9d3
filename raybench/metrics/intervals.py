"""Intervals for means over images and for proportions, and paired comparisons of models.

Shape legend: N images, P models. One resampling of images is shared by all models, so that every
difference is paired (spec 00 section 0.5).
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

__all__ = [
    "RESAMPLES",
    "Resampled",
    "percentile_interval",
    "resample_means",
    "straddles_zero",
    "wilson",
]

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means over images of each model, and the same under every resampling of the images.

    Attributes:
        means: [P] float64; NaN for a model without a scored image.
        resampled: [R, P] float64; row r of all models comes from the same resampled images.
    """

    means: np.ndarray
    resampled: np.ndarray


def resample_means(
    values: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Resampled:
    """Return the means over images and their paired bootstrap.

    Args:
        values: [N, P] float64; NaN marks an image that a model could not score, which then counts
            in none of that model's means.
        rng: source of the resampling.
        resamples: R. For N above 5,000 a fifth of it is drawn, in blocks, to bound time.
    """
    count, models = values.shape
    scored = ~np.isnan(values)
    filled = np.where(scored, values, 0.0)
    draws = resamples if count <= 5_000 else max(1, resamples // 5)
    block = max(1, 4_000_000 // max(count, 1))
    chance = np.full(count, 1 / count) if count else np.empty(0)
    means = np.full(models, np.nan)
    known = scored.any(0)
    # Correctly rounded sums: a model's mean must not depend on which models stand beside it.
    sums = np.array([math.fsum(column) for column in filled.T])
    means[known] = sums[known] / scored.sum(0)[known]
    pieces = []
    for start in range(0, draws, block):
        # How often each image is drawn: the same law as N draws with replacement.
        times = rng.multinomial(count, chance, size=min(block, draws - start)).astype(np.float64)
        weight = times @ scored.astype(np.float64)
        with np.errstate(invalid="ignore"):
            pieces.append((times @ filled) / np.where(weight > 0, weight, np.nan))
    return Resampled(means, np.concatenate(pieces) if pieces else np.empty((0, models)))


def percentile_interval(samples: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the central `level` interval of resampled values [R], NaN left out."""
    low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def straddles_zero(samples: np.ndarray, level: float = 0.95) -> bool:
    """Return whether zero lies within `percentile_interval`, mostly without ordering the values.

    How many values lie on each side of zero decides it, unless an end is within a place of zero.
    """
    place = int((1 - level) / 2 * (len(samples) - 1))
    sides = (int((samples <= 0).sum()), int((samples >= 0).sum()))
    if not np.isnan(samples).any():
        if min(sides) < place:
            return False
        if min(sides) > place + 3:
            return True
    low, high = percentile_interval(samples, level)
    return low <= 0 <= high


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion (E. B. Wilson, JASA 22, 1927).

    Raises:
        ValueError: no trials, or successes outside 0..trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"expected 0 <= successes <= trials, trials > 0: {successes} of {trials}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z
        / (1 + z * z / trials)
        * np.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    )
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
