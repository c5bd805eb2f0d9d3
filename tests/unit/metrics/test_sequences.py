"""Confidence sequences: their error under constant peeking, exact cases, and what decides."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from raybench.metrics.sequences import (
    BETS,
    SEPARATED,
    START,
    TIED,
    UNDECIDED,
    Ends,
    paired_ends,
    verdict,
)

Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def last(ends: Ends) -> tuple[float, float]:
    return float(ends.low[-1]), float(ends.high[-1])


def decide(first: np.ndarray, second: np.ndarray, margin: float = 0.0, **options: object) -> str:
    settings = {"alpha": 0.05, "bounded": True} | options
    return verdict(*last(paired_ends(first, second, [len(first)], **settings)), margin)


def stop_time(first: np.ndarray, second: np.ndarray, margin: float = 0.0) -> float:
    """Return the images at which the pair is decided, in twenties; infinite where it is not."""
    counts = list(range(20, len(first) + 1, 20))
    ends = paired_ends(first, second, counts, alpha=0.05, bounded=True)
    for count, low, high in zip(counts, ends.low, ends.high, strict=True):
        if verdict(float(low), float(high), margin) != UNDECIDED:
            return count
    return math.inf


# Pairs of models in [0, 1], and the true mean of second - first.
def even(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    first = rng.random(count)
    return first, np.clip(first + 0.2 * (rng.random(count) - 0.5), 0, 1) * 0 + rng.permutation(
        first
    )


def skewed(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """One image in fifty differs by 0.98, all others by -0.02: the mean is 0."""
    rare = rng.random(count) < 0.02
    return np.full(count, 0.02), np.where(rare, 1.0, 0.0)


def binary(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    return (rng.random((2, count)) < 0.3).astype(float)


BOUNDED: dict[str, Draw] = {"even": even, "skewed": skewed, "binary": binary}


def most_allowed(alpha: float, runs: int) -> float:
    """Return the share of errors that a true rate of `alpha` exceeds once in ten thousand."""
    return float(stats.binom.ppf(1 - 1e-4, runs, alpha)) / runs


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_error_with_a_look_after_every_image(name: str) -> None:
    # The ends intersect all earlier ones, so the last look knows whether any look would have erred.
    rng, runs, alpha = np.random.default_rng(0), 250, 0.2
    wrong = sum(decide(*BOUNDED[name](rng, 150), alpha=alpha) == SEPARATED for _ in range(runs))
    assert wrong / runs <= most_allowed(alpha, runs)


@pytest.mark.parametrize("name", BOUNDED)
def test_repeated_t_intervals_break_the_same_error(name: str) -> None:
    rng, runs, alpha = np.random.default_rng(0), 250, 0.2
    wrong = 0
    for _ in range(runs):
        first, second = BOUNDED[name](rng, 150)
        gap = second - first
        count = np.arange(1, 151)
        mean = np.cumsum(gap) / count
        spread = (np.cumsum(gap**2) / count - mean**2) * count / np.maximum(count - 1, 1)
        half = stats.t.ppf(1 - alpha / 2, np.maximum(count - 1, 1)) * np.sqrt(
            np.maximum(spread, 0) / count
        )
        wrong += bool((np.abs(mean) > half)[9:].any())
    assert wrong / runs > most_allowed(alpha, runs)


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.7])
def test_bounded_error_is_at_most_alpha_over_all_sequences_there_are(chance: float) -> None:
    alpha, count = 0.5, 8
    error = 0.0
    for flips in itertools.product([0.0, 1.0], repeat=count):
        second = np.array(flips)
        low, high = last(paired_ends(1 - second, second, [count], alpha=alpha, bounded=True))
        weight = math.prod(chance if flip else 1 - chance for flip in flips)
        error += weight * (not low <= 2 * chance - 1 <= high)
    assert 0 < error <= alpha


def test_ends_are_where_the_capital_reaches_its_threshold() -> None:
    count, alpha, difference = 60, 0.05, 0.3
    first = np.full(count, 0.2)
    low, high = last(paired_ends(first, first + difference, [count], alpha=alpha, bounded=True))
    # Of constant numbers x the capital for a lower end m is mean over c of (1 + c (x / m - 1))^t.
    for end, value in ((low, difference), (-high, -difference)):
        mean, constant = (1 + end) / 2, (1 + value) / 2
        capital = np.mean([(1 + bet * (constant / mean - 1)) ** count for bet in BETS])
        assert capital == pytest.approx(2 / alpha, rel=1e-4)


@pytest.mark.parametrize("bounded", [True, False])
def test_constant_differences_are_separated(bounded: bool) -> None:
    first = np.linspace(0, 0.5, 400)
    assert decide(first, first + 0.3, bounded=bounded) == SEPARATED
    assert decide(first + 0.3, first, bounded=bounded) == SEPARATED


@pytest.mark.parametrize("bounded", [True, False])
def test_identical_models_tie_with_a_margin_and_never_without(bounded: bool) -> None:
    scores = np.random.default_rng(0).random(1000)
    assert decide(scores, scores, 0.05, bounded=bounded) == TIED
    assert decide(scores, scores, 0.0, bounded=bounded) == UNDECIDED
    assert decide(np.zeros(1000), np.zeros(1000), 0.0, bounded=bounded) == UNDECIDED


def test_a_small_true_difference_ties_within_a_larger_margin() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(0.25, 0.75, 600)
    second = first + 0.002 + rng.uniform(-0.1, 0.1, 600)
    assert decide(first, second, 0.03) == TIED


def test_verdicts_of_intervals() -> None:
    assert verdict(0.01, 0.2, 0.0) == verdict(-0.2, -0.01, 0.5) == SEPARATED
    assert verdict(-0.01, 0.02, 0.02) == TIED
    assert verdict(-0.01, 0.03, 0.02) == verdict(0.0, 0.0, 0.0) == UNDECIDED
    # Both hold: a difference, but a small one.
    assert verdict(0.01, 0.02, 0.05) == SEPARATED
    assert verdict(-math.inf, math.inf, 1.0) == UNDECIDED


def test_stop_time_grows_as_the_effect_shrinks() -> None:
    rng = np.random.default_rng(2)
    times = []
    for effect in (0.4, 0.2, 0.1, 0.05):
        found = []
        for _ in range(3):
            first = rng.random(800) * 0.5
            found.append(stop_time(first, first + effect + rng.uniform(-0.05, 0.05, 800)))
        times.append(np.median(found))
    assert times == sorted(times)
    assert times[0] * 3 < times[-1] < math.inf


def test_a_tie_takes_longer_with_a_smaller_margin() -> None:
    scores = np.random.default_rng(3).random(1200)
    assert stop_time(scores, scores, 0.1) < stop_time(scores, scores, 0.05) < math.inf


@pytest.mark.parametrize("bounded", [True, False])
def test_sequences_never_widen_and_mirror(bounded: bool) -> None:
    rng = np.random.default_rng(4)
    first, second = rng.random((2, 300))
    counts = [1, 5, 64, 65, 100, 300]
    ends = paired_ends(first, second, counts, alpha=0.05, bounded=bounded)
    assert (np.diff(ends.low[np.isfinite(ends.low)]) >= 0).all()
    assert (np.diff(ends.high[np.isfinite(ends.high)]) <= 0).all()
    assert ends.low[-1] < (second - first).mean() < ends.high[-1]
    turned = paired_ends(second, first, counts, alpha=0.05, bounded=bounded)
    np.testing.assert_allclose(turned.low, -ends.high, atol=1e-9)
    np.testing.assert_allclose(turned.high, -ends.low, atol=1e-9)


@pytest.mark.parametrize("bounded", [True, False])
def test_a_look_depends_on_its_images_alone(bounded: bool) -> None:
    rng = np.random.default_rng(5)
    first, second = rng.random((2, 300))
    together = paired_ends(first, second, [70, 150, 300], alpha=0.05, bounded=bounded)
    for place, count in enumerate((70, 150, 300)):
        alone = paired_ends(first[:count], second[:count], [count], alpha=0.05, bounded=bounded)
        assert last(alone) == pytest.approx((together.low[place], together.high[place]), abs=1e-9)


@pytest.mark.parametrize("bounded", [True, False])
def test_unscored_images_count_for_neither_model(bounded: bool) -> None:
    rng = np.random.default_rng(6)
    first, second = rng.random((2, 200))
    gaps = rng.choice(200, 40, replace=False)
    holed, other = first.copy(), second.copy()
    holed[gaps[:20]], other[gaps[20:]] = np.nan, np.nan
    whole = np.setdiff1d(np.arange(200), gaps)
    found = paired_ends(holed, other, [200], alpha=0.05, bounded=bounded)
    dense = paired_ends(first[whole], second[whole], [160], alpha=0.05, bounded=bounded)
    assert last(found) == last(dense)
    nothing = paired_ends(np.full(9, np.nan), second[:9], [9], alpha=0.05, bounded=bounded)
    assert verdict(*last(nothing), 0.5) == UNDECIDED


def test_numbers_outside_their_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        paired_ends(np.array([0.5, 1.2]), np.zeros(2), [2], alpha=0.05, bounded=True)


def normal(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(2, count))


def heavy(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.lognormal(0, 1, (2, count))


def lopsided(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Differences skewed by 2: exponential less its mean."""
    first = rng.normal(size=count)
    return first, first + rng.exponential(1, count) - 1


def rare(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models that differ on one image in fifty, and by the size of a score."""
    first = rng.exponential(1, count)
    return first, first + np.where(rng.random(count) < 0.02, rng.normal(size=count), 0.0)


@pytest.mark.parametrize("draw", [normal, heavy, lopsided, rare])
def test_asymptotic_error_with_a_look_after_every_image(draw: Draw) -> None:
    rng, runs, alpha = np.random.default_rng(7), 1000, 0.05
    wrong = sum(
        decide(*draw(rng, 600), alpha=alpha, bounded=False) == SEPARATED for _ in range(runs)
    )
    assert wrong / runs <= most_allowed(alpha, runs)


def test_asymptotic_sequence_never_ties_models_that_rarely_differ_wrongly() -> None:
    # One image in a hundred differs by 4: a mean of 0.04, which 64 images as a rule do not show.
    rng, runs, wrong = np.random.default_rng(8), 300, 0
    for _ in range(runs):
        first = rng.normal(size=400)
        second = first + np.where(rng.random(400) < 0.01, 4.0, 0.0)
        wrong += decide(first, second, 0.02, bounded=False) == TIED
    assert wrong / runs <= most_allowed(0.05, runs)


def test_asymptotic_sequence_waits_for_its_start_and_for_skewed_numbers() -> None:
    rng = np.random.default_rng(9)
    first = rng.normal(size=400)
    ends = paired_ends(first, first + 1, [START - 1, START], alpha=0.05, bounded=False)
    assert not np.isfinite(ends.low[0])
    assert np.isfinite(ends.low[1])
    skewed_by_20 = first + np.where(np.arange(400) == 3, 1e6, 0.0)
    ends = paired_ends(first, skewed_by_20, [400], alpha=0.05, bounded=False)
    assert not np.isfinite(ends.low[0])


def test_asymptotic_half_width_is_the_papers() -> None:
    rng = np.random.default_rng(10)
    gap = rng.normal(size=500)
    ends = paired_ends(np.zeros(500), gap, [500], alpha=0.05, bounded=False)
    # The paper's formula at every image, tightest at four starts, and the highest lower end.
    rho2 = (-2 * math.log(0.05) + math.log(-2 * math.log(0.05) + 1)) / (4 * START)
    lows = []
    for t in range(START, 501):
        seen = gap[:t]
        variance = seen.var(ddof=1) + np.ptp(seen) ** 2 / t
        bound = math.sqrt(
            2 * (t * rho2 + 1) / (t**2 * rho2) * math.log(math.sqrt(t * rho2 + 1) / 0.05)
        )
        lows.append(seen.mean() - math.sqrt(variance) * bound)
    assert ends.low[0] == pytest.approx(max(lows), rel=1e-9)
