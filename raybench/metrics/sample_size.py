"""How many images and samples a wanted precision takes, judged by a pilot's per-image scores.

    size = sample_size(scores, half_a, half_b, samples=1000, width=0.1)
    size.images                       # images for a 95 % interval of +-10 % of the score
    size.noise_share, size.samples    # what more samples could change

Normal approximation throughout, and no better than the pilot's standard deviations. Shape legend: N
images, P models; NaN marks an image that was not scored, which counts in nothing.

The variance over images of a score at k samples is V + W / k: V is how the images differ, W / k the
noise of the random masks, which every image draws anew. A mean over n images has the variance
(V + W / k) / n, so doubling n always halves it, and doubling k halves only its second part.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "LOW_NOISE",
    "PairSize",
    "SampleSize",
    "closest_pair",
    "doubling_samples_narrows",
    "images_to_separate",
    "images_to_width",
    "noise_share",
    "running_interval",
    "sample_size",
    "samples_for_noise",
    "sampling_noise",
]

# Sampling noise below this share of the images' own variance is not worth more samples.
LOW_NOISE = 0.1

_Z = 1.96  # as the printed formula says: two-sided 95 %
_Z_POWER = 0.8416  # four chances in five: the 80 % point of the normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """What one model's score needs; None where the pilot cannot tell.

    Attributes:
        pilot: images the pilot scored.
        mean, sd: of their scores; None without an image, or with fewer than two.
        images: images at which the 95 % interval has the wanted width; see `images_to_width`.
        noise_share: share of the variance over images that is sampling noise, at the pilot's k.
        samples: k at which sampling noise is `LOW_NOISE` of the images' own variance.
    """

    pilot: int
    mean: float | None
    sd: float | None
    images: int | None
    noise_share: float | None
    samples: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSize:
    """What telling two models apart needs.

    Attributes:
        first, second: their names; the first has the lower mean.
        pilot: images that both scored.
        difference: mean of the second less that of the first over those images, not negative.
        sd: standard deviation of the paired difference over images.
        images: images at which the 95 % interval of that difference just excludes 0, which a second
            run of as many images would find half of the time; None where the difference is 0.
        images_four_in_five: the same, found four times in five (80 % power).
    """

    first: str
    second: str
    pilot: int
    difference: float
    sd: float
    images: int | None
    images_four_in_five: int | None


def images_to_width(mean: float, sd: float, width: float) -> int | None:
    """Return the images whose 95 % interval is `mean` +- `width` * `mean`.

        1.96 sd / sqrt(n) = width mean, hence n = (1.96 sd / (width mean))^2, rounded up.

    At least 2; None for a mean that is not above 0, of which no share can be taken.

    Args:
        mean: mean score over images.
        sd: its standard deviation over images.
        width: wanted half-width as a share of the mean, above 0.
    """
    return _images(_Z, sd, width * mean)


def images_to_separate(difference: float, sd: float, *, power: float = 0.0) -> int | None:
    """Return the images whose 95 % interval of a mean paired difference excludes 0.

        (1.96 + z) sd / sqrt(n) = |difference|, hence n = ((1.96 + z) sd / difference)^2.

    At least 2; None where the difference is 0.

    Args:
        difference: mean paired difference.
        sd: its standard deviation over images.
        power: z, the normal quantile of the chance to find it; 0 is one half.
    """
    return _images(_Z + power, sd, abs(difference))


def _images(quantile: float, sd: float, half_width: float) -> int | None:
    if not half_width > 0 or not math.isfinite(sd):
        return None
    ratio = quantile * sd / half_width
    return _round_up(ratio * ratio)


def _round_up(value: float) -> int | None:
    """Return the least whole number from 2 up that is not below `value`, its rounding aside."""
    return max(2, math.ceil(value * (1 - 1e-12))) if math.isfinite(value) else None


def sampling_noise(half_a: np.ndarray, half_b: np.ndarray) -> float | None:
    """Return the variance that the random masks alone give an image's score, a mean over images.

    The halves a and b of an image's samples are independent and have equal means, so
    Var(a - b) = 2 Var(a), and their mean (a + b) / 2, which has all the samples, has the variance
    Var(a) / 2 = Var(a - b) / 4.

    Args:
        half_a: [N] float64, scores from the first half of the samples.
        half_b: [N] float64, from the second.

    Returns:
        None where fewer than two images have both.
    """
    gap = half_a - half_b
    gap = gap[~np.isnan(gap)]
    return float(gap.var(ddof=1)) / 4 if len(gap) > 1 else None


def noise_share(scores: np.ndarray, half_a: np.ndarray, half_b: np.ndarray) -> float | None:
    """Return the share of the scores' variance over images [N] that is sampling noise, in [0, 1].

    None where fewer than two images have all three, or where the scores do not vary.
    """
    known = ~np.isnan(scores + half_a + half_b)
    noise = sampling_noise(half_a[known], half_b[known])
    if noise is None:
        return None
    total = float(scores[known].var(ddof=1))
    return min(1.0, noise / total) if total > 0 else None


def samples_for_noise(
    share: float, samples: int, low: float = LOW_NOISE, least: int = 2
) -> int | None:
    """Return the samples k at which noise is `low` of the images' own variance, rounded up.

    Noise is W / k. With the share s = (W / k0) / (V + W / k0) seen at k0 samples,
    W / V = k0 s / (1 - s), and W / k = low V at k = k0 s / (low (1 - s)).

    None where all of the variance is noise, so that V is not known.

    Args:
        share: s, in [0, 1].
        samples: k0.
        low: the wanted ratio of noise to the images' own variance.
        least: the fewest samples that weights can be fitted from.
    """
    found = _round_up(samples * share / (low * (1 - share))) if share < 1 else None
    return None if found is None else max(least, found)


def doubling_samples_narrows(share: float) -> float:
    """Return by which share twice the samples narrow an interval: 1 - sqrt(1 - share / 2).

    Twice the images narrow it by 1 - sqrt(1/2) = 29 %, whatever the `share` of noise.
    """
    return 1 - math.sqrt(1 - share / 2)


def sample_size(
    scores: np.ndarray,
    half_a: np.ndarray | None,
    half_b: np.ndarray | None,
    *,
    samples: int,
    width: float,
    least_samples: int = 2,
) -> SampleSize:
    """Return what a model's score needs, from the pilot's columns [N].

    Args:
        scores: [N] float64.
        half_a: scores from one half of the samples; None where the reading has no halves.
        half_b: from the other half.
        samples: k of the pilot.
        width: wanted half-width of the 95 % interval as a share of the score.
        least_samples: the fewest that the reading can be fitted from.
    """
    known = scores[~np.isnan(scores)]
    mean = float(known.mean()) if len(known) else None
    sd = float(known.std(ddof=1)) if len(known) > 1 else None
    share = None if half_a is None or half_b is None else noise_share(scores, half_a, half_b)
    return SampleSize(
        pilot=len(known),
        mean=mean,
        sd=sd,
        images=None if mean is None or sd is None else images_to_width(mean, sd, width),
        noise_share=share,
        samples=None if share is None else samples_for_noise(share, samples, least=least_samples),
    )


def closest_pair(names: Sequence[str], scores: np.ndarray) -> PairSize | None:
    """Return the two models with the smallest mean paired difference, and what parts them.

    Args:
        names: P model names.
        scores: [N, P] float64, the same images for all.

    Returns:
        None where no two models share two images.
    """
    found = [
        pair
        for first, second in itertools.combinations(range(len(names)), 2)
        if (pair := _pair(names[first], names[second], scores[:, second] - scores[:, first]))
    ]
    return min(found, key=lambda pair: pair.difference, default=None)


def _pair(first: str, second: str, gaps: np.ndarray) -> PairSize | None:
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < 2:
        return None
    difference, sd = float(gaps.mean()), float(gaps.std(ddof=1))
    if difference < 0:
        first, second, difference = second, first, -difference
    return PairSize(
        first=first,
        second=second,
        pilot=len(gaps),
        difference=difference,
        sd=sd,
        images=images_to_separate(difference, sd),
        images_four_in_five=images_to_separate(difference, sd, power=_Z_POWER),
    )


def running_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the first n values and half its 95 % normal interval, for n from 1 to N.

    Args:
        values: [N] float64, without NaN.

    Returns:
        Means [N], and 1.96 sd / sqrt(n) [N], NaN for n = 1.
    """
    counts = np.arange(1, len(values) + 1)
    # Sums of squares around the mean of all: around 0 they would cancel where sd << mean.
    centre = values.mean() if len(values) else 0.0
    sums, squares = np.cumsum(values - centre), np.cumsum((values - centre) ** 2)
    spread = np.maximum(squares - sums**2 / counts, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = _Z * np.sqrt(spread / (counts - 1) / counts)
    return centre + sums / counts, half
