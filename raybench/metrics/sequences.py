"""Confidence sequences for paired differences: intervals that hold at every number of images.

    ends = paired_ends(first, second, [32, 48, 64], alpha=0.005, bounded=True)
    verdict(ends.low[-1], ends.high[-1], margin=0.02)      # separated, tied or undecided

An interval for a fixed n is wrong once somebody looks at it again and again and stops when he likes
what he sees. A confidence sequence contains the true mean at all times at once, with probability
1 - alpha or more, so it may be looked at after every image, and any rule may stop it. Here it is
about the mean over images of second - first, for images that are drawn in random order. Both kinds
intersect the intervals of all earlier images, so they never widen.

Bounded (differences in [-1, 1]): by betting. I. Waudby-Smith, A. Ramdas, "Estimating means of
bounded random variables by betting", JRSS-B 86, 2024, https://arxiv.org/abs/2010.09686. No
assumption but the bounds; holds for every number of images and every distribution.

Unbounded: asymptotic. I. Waudby-Smith, D. Arbour, R. Sinha, E. H. Kennedy, A. Ramdas,
"Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 52,
2024, https://arxiv.org/abs/2103.06476. Its error tends to alpha as the start is later; at a given
start it is an approximation, as a normal interval is, and skewed differences need more images.

Shape legend: T images, L looks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["BETS", "SEPARATED", "START", "TIED", "UNDECIDED", "Ends", "paired_ends", "verdict"]

SEPARATED, TIED, UNDECIDED = "separated", "tied", "undecided"

BETS = (0.05, 0.1, 0.2, 0.4, 0.7, 0.95)
"""Shares of the most that may be bet; one of them is near the best for any effect and variance.

The capital is split evenly between them, which costs at most log(6) of its logarithm, whatever the
data. Over the flip radii of MNIST networks this stopped 10 to 27 % earlier than the
paper's plug-in bets, truncated at 1/2.
"""

START = 64
"""Images before which the asymptotic sequence says nothing."""

# The asymptotic sequence is tightest, relative to others, at this many images.
_TIGHTEST = 4 * START
# It waits for _SKEW log(1/alpha) g^2 images, g the skewness seen so far, since skewness makes
# the normal approximation err in its far tails. W. G. Cochran's rule t > 25 g^2 (Sampling
# Techniques, 1977) is for the 95 % of a single look, where this is 60 g^2.
_SKEW = 20.0

_HALVINGS = 34  # of [0, 1]: ends are known to 1e-10, rounded outwards


@dataclass(frozen=True, slots=True)
class Ends:
    """The ends of a sequence at each look.

    Attributes:
        counts: [L] int64, images looked at.
        low, high: [L] float64. Never widening; low above high means that the sequence contradicts
            itself, which happens with probability alpha at most where its assumptions hold.
    """

    counts: np.ndarray
    low: np.ndarray
    high: np.ndarray


def verdict(low: float, high: float, margin: float) -> str:
    """Return what an interval for a mean difference says.

    Separated: it excludes 0. Tied: it lies within [-margin, margin], and the margin is above 0.
    Else undecided. Where both hold, they are separated by less than the margin: separated.
    """
    if low > 0 or high < 0:
        return SEPARATED
    if margin > 0 and -margin <= low and high <= margin:
        return TIED
    return UNDECIDED


def paired_ends(
    first: np.ndarray, second: np.ndarray, counts: Sequence[int], *, alpha: float, bounded: bool
) -> Ends:
    """Return the confidence sequence of the mean over images of second - first.

    Args:
        first: [T] float64, one number for each image, in random order; NaN where it is not known,
            and the image then counts for neither.
        second: [T] float64 likewise, of the same images.
        counts: looks, numbers of images in 1..T, rising.
        alpha: two-sided error rate of the whole sequence, in (0, 1).
        bounded: all numbers lie in [0, 1]: by betting. Otherwise asymptotic.

    Raises:
        ValueError: numbers that break the bounds.
    """
    known = ~np.isnan(first + second)
    seen = np.cumsum(known)[np.asarray(counts, dtype=np.int64) - 1]
    first, second = first[known], second[known]
    if bounded:
        both = np.concatenate([first, second])
        if ((both < 0) | (both > 1)).any():
            raise ValueError("bounded numbers must lie in [0, 1]")
        half = (second - first + 1) / 2
        low = 2 * _betting_low(half, seen, alpha / 2) - 1
        high = 1 - 2 * _betting_low(1 - half, seen, alpha / 2)
    else:
        low, high = _asymptotic(first, second, seen, alpha)
    return Ends(np.asarray(counts, dtype=np.int64), low, high)


def _betting_low(values: np.ndarray, counts: np.ndarray, alpha: float) -> np.ndarray:
    """Return the lower ends [L] of a one-sided sequence for the mean of `values` [T] in [0, 1].

    Were the mean m, nobody could expect to gain by betting that it is higher: the capital

        K_t(m) = mean over bets c of prod_{i <= t} (1 + c (x_i - m) / m),   0 < c < 1

    is a nonnegative martingale (a supermartingale for any lower mean) that starts at 1, so it ever
    reaches 1 / alpha with probability alpha at most (Ville). Every m at which it has is excluded.
    K_t falls in m, so all lower m are excluded too, and the end is found by halving.
    """
    low = np.zeros(len(counts))
    high = np.ones(len(counts))
    for look, count in enumerate(counts):
        seen = values[:count]
        if look:
            low[look] = low[look - 1]  # what was excluded stays so
        for _ in range(_HALVINGS):
            middle = (low[look] + high[look]) / 2
            if count and _most_capital(seen, middle) >= math.log(1 / alpha):
                low[look] = middle
            else:
                high[look] = middle
    return low


def _most_capital(values: np.ndarray, mean: float) -> float:
    """Return the logarithm of the most that `_betting_low`'s capital has ever been."""
    gains = np.log1p(np.multiply.outer(np.array(BETS), values / mean - 1))
    logs = np.cumsum(gains, axis=1)
    most = logs.max(axis=0)
    return float((most + np.log(np.exp(logs - most).mean(axis=0))).max())


def _asymptotic(
    first: np.ndarray, second: np.ndarray, counts: np.ndarray, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends [L] of the asymptotic sequence for the mean of second - first [T].

    Its interval after t images, by a Gaussian mixture with the paper's choice of rho, is

        mean_t +- sd_t sqrt(2 (t rho^2 + 1) / (t rho)^2  log(sqrt(t rho^2 + 1) / alpha))

    and here the whole line until there are `START` images and enough for the skewness seen so far.
    To sd_t^2 is added r^2 / t, r the range of a single model's numbers so far: as if one more image
    had been seen, on which the two differ as much as any two images do. Without it two models that
    agreed so far would be called the same, however they differ on the next image.
    """
    size = len(first)
    if not size:
        return np.full(len(counts), -np.inf), np.full(len(counts), np.inf)
    images = np.arange(1, size + 1)
    differences = second - first
    mean, spread, skewness = _running_moments(differences)
    ranges = np.maximum(_running_range(first), _running_range(second))
    squared = -2 * math.log(alpha)
    rho_squared = (squared + math.log(squared + 1)) / _TIGHTEST
    grown = images * rho_squared + 1
    scale = 2 * grown / (images**2 * rho_squared) * np.log(np.sqrt(grown) / alpha)
    half = np.sqrt((spread + ranges**2 / images) * scale)
    half[(images < START) | (images < _SKEW * math.log(1 / alpha) * skewness**2)] = np.inf
    low = np.maximum.accumulate(mean - half)
    high = np.minimum.accumulate(mean + half)
    # Before the first image nothing is known.
    low, high = np.append(low, -np.inf), np.append(high, np.inf)
    return low[counts - 1], high[counts - 1]


def _running_range(values: np.ndarray) -> np.ndarray:
    """Return the largest less the smallest of the first 1, 2, ... of `values` [T]."""
    found: np.ndarray = np.maximum.accumulate(values) - np.minimum.accumulate(values)
    return found


def _running_moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, variance (over n - 1) and skewness of the first 1, 2, ... of `values` [T]."""
    count = np.arange(1, len(values) + 1)
    # Sums of powers lose digits where the mean is far from 0: taken about the overall mean.
    middle = values.mean()
    first, second, third = (np.cumsum((values - middle) ** power) / count for power in (1, 2, 3))
    spread = np.maximum(second - first**2, 0.0)
    # Rounding leaves a little where all values are the same.
    spread[spread <= 1e-12 * np.maximum.accumulate(np.abs(values)) ** 2] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = (third - 3 * first * second + 2 * first**3) / spread**1.5
    skewness[spread == 0] = 0.0
    return middle + first, spread * count / np.maximum(count - 1, 1), skewness
