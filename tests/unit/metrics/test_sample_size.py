"""Sample sizes by closed forms, and by what simulated scores of known variances come to."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.metrics.sample_size import (
    closest_pair,
    doubling_samples_narrows,
    images_to_separate,
    images_to_width,
    noise_share,
    running_interval,
    sample_size,
    samples_for_noise,
    sampling_noise,
)

NAN = math.nan


def noisy(
    rng: np.random.Generator, images: int, own: float, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores and halves of images whose variances are `own` and, at full k, `noise`."""
    true = rng.normal(5, math.sqrt(own), images)
    first, second = true + rng.normal(0, math.sqrt(2 * noise), (2, images))
    return (first + second) / 2, first, second


@pytest.mark.parametrize(
    ("mean", "sd", "width", "images"),
    [
        (1.0, 1.0, 0.1, 385),  # 19.6^2 = 384.16
        (2.0, 1.0, 0.1, 97),  # 9.8^2 = 96.04
        (1.0, 1.0, 0.196, 100),  # exactly 10^2: rounding of floats must not add one
        (0.01, 0.02, 0.05, 6147),  # 78.4^2 = 6146.56
        (1.0, 1e-9, 0.1, 2),
    ],
)
def test_images_for_a_width(mean: float, sd: float, width: float, images: int) -> None:
    assert images_to_width(mean, sd, width) == images


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 1))
def test_the_width_is_reached_and_not_with_one_image_less(
    mean: float, sd: float, width: float
) -> None:
    images = images_to_width(mean, sd, width)
    assert images is not None
    assert 1.96 * sd / math.sqrt(images) <= width * mean * (1 + 1e-9)
    if images > 2:
        assert 1.96 * sd / math.sqrt(images - 1) > width * mean * (1 - 1e-9)


@pytest.mark.parametrize(
    ("mean", "sd"), [(0.0, 1.0), (-1.0, 1.0), (NAN, 1.0), (1.0, NAN), (1e-300, 1e10)]
)
def test_no_share_can_be_taken_of_no_mean(mean: float, sd: float) -> None:
    assert images_to_width(mean, sd, 1e-10) is None


def test_images_to_separate() -> None:
    assert images_to_separate(0.1, 1.0) == 385
    assert images_to_separate(-0.1, 1.0) == 385
    # (1.96 + 0.8416)^2 / 0.1^2 = 784.9: the number every textbook gives for 80 % power.
    assert images_to_separate(0.1, 1.0, power=0.8416) == 785
    assert images_to_separate(0.0, 1.0) is None
    assert images_to_separate(0.1, 0.0) == 2


def test_half_of_the_runs_with_that_many_images_separate() -> None:
    rng = np.random.default_rng(0)
    for power, chance in ((0.0, 0.5), (0.8416, 0.8)):
        images = images_to_separate(0.2, 1.0, power=power)
        assert images is not None
        gaps = rng.normal(0.2, 1.0, (4000, images))
        low = gaps.mean(1) - 1.96 * gaps.std(1, ddof=1) / math.sqrt(images)
        assert (low > 0).mean() == pytest.approx(chance, abs=0.03)


def test_sampling_noise_by_hand() -> None:
    # Gaps 2, -2, 2, -2: variance 16 / 3, a quarter of it 4 / 3.
    first, second = np.array([3.0, 1.0, 7.0, 2.0]), np.array([1.0, 3.0, 5.0, 4.0])
    assert sampling_noise(first, second) == pytest.approx(4 / 3)
    # A gap that all images share is bias of a half, not noise.
    assert sampling_noise(first, first - 1) == 0
    assert sampling_noise(first, np.array([1.0, NAN, NAN, NAN])) is None
    assert sampling_noise(np.empty(0), np.empty(0)) is None


@pytest.mark.parametrize(("own", "noise"), [(4.0, 1.0), (1.0, 4.0), (1.0, 0.01)])
def test_the_share_of_noise_is_found_again(own: float, noise: float) -> None:
    scores, first, second = noisy(np.random.default_rng(1), 40_000, own, noise)
    assert noise_share(scores, first, second) == pytest.approx(noise / (own + noise), rel=0.04)


def test_shares_at_the_ends() -> None:
    scores = np.array([1.0, 2.0, 3.0])
    assert noise_share(scores, scores, scores) == 0
    # Noise may be estimated above all there is: the share is never above one.
    assert noise_share(scores, scores * 9, -scores * 9) == 1
    assert noise_share(np.ones(3), np.ones(3), np.ones(3)) is None
    assert noise_share(scores[:1], scores[:1], scores[:1]) is None
    one_known = np.array([1.0, NAN, NAN])
    assert noise_share(scores, one_known, scores) is None


def test_samples_for_noise() -> None:
    # Half of the variance at k = 100: W / 100 = V, so W / k = V / 10 at k = 1,000.
    assert samples_for_noise(0.5, 100) == 1000
    assert samples_for_noise(0.5, 100, low=1.0) == 100
    assert samples_for_noise(1 / 11, 100) == 100
    assert samples_for_noise(0.0, 100) == 2
    assert samples_for_noise(0.0, 100, least=18) == 18
    assert samples_for_noise(1.0, 100) is None


@given(st.floats(0, 0.99), st.integers(2, 10_000))
def test_at_those_samples_noise_is_a_tenth(share: float, samples: int) -> None:
    needed = samples_for_noise(share, samples)
    assert needed is not None
    ratio = share / (1 - share)  # of noise to the images' own variance, at `samples`
    assert ratio * samples / needed <= 0.1 * (1 + 1e-9)


def test_doubling() -> None:
    assert doubling_samples_narrows(0.0) == 0
    assert doubling_samples_narrows(1.0) == pytest.approx(1 - math.sqrt(0.5))
    assert doubling_samples_narrows(0.5) == pytest.approx(1 - math.sqrt(0.75))


def test_sample_size_of_a_pilot() -> None:
    scores = np.array([1.0, NAN, 3.0])  # mean 2, sd sqrt 2
    size = sample_size(scores, None, None, samples=100, width=0.1)
    assert (size.pilot, size.mean, size.sd) == (2, 2.0, pytest.approx(math.sqrt(2)))
    assert size.images == 193  # 1.96^2 * 2 / 0.2^2 = 192.08
    assert (size.noise_share, size.samples) == (None, None)
    halves = np.array([1.0, NAN, 4.0]), np.array([1.0, NAN, 2.0])
    # Gaps 0 and 2: variance 2, noise 1/2 of the total 2; a tenth of 3/2 at k = 100 * (1/3) / 0.1.
    size = sample_size(scores, *halves, samples=100, width=0.1)
    assert (size.noise_share, size.samples) == (pytest.approx(0.25), 334)
    size = sample_size(scores, *halves, samples=100, width=0.1, least_samples=500)
    assert size.samples == 500


@pytest.mark.parametrize(
    ("scores", "mean", "sd"), [([], None, None), ([NAN], None, None), ([2.0], 2.0, None)]
)
def test_a_pilot_that_is_too_small_says_so(
    scores: list[float], mean: float | None, sd: float | None
) -> None:
    column = np.array(scores, dtype=float)
    size = sample_size(column, column, column, samples=100, width=0.1)
    assert (size.mean, size.sd) == (mean, sd)
    assert (size.images, size.noise_share, size.samples) == (None, None, None)


def test_a_score_of_zero_needs_no_number_of_images() -> None:
    size = sample_size(np.zeros(5), np.zeros(5), np.zeros(5), samples=100, width=0.1)
    assert (size.mean, size.sd, size.images, size.noise_share) == (0.0, 0.0, None, None)


def test_the_closest_pair_is_paired() -> None:
    images = np.array([0.0, 10.0, 20.0, 30.0])
    scores = np.column_stack([images + 5, images + 1, images + np.array([1.0, 3.0, 1.0, 3.0])])
    pair = closest_pair(["far", "low", "high"], scores)
    assert pair is not None
    # Differences 0, 2, 0, 2: mean 1, variance 4 / 3, however much images differ.
    assert (pair.first, pair.second, pair.pilot, pair.difference) == ("low", "high", 4, 1.0)
    assert pair.sd == pytest.approx(math.sqrt(4 / 3))
    assert pair.images == 6  # 1.96^2 * 4 / 3 = 5.12
    assert pair.images_four_in_five == 11  # 2.8016^2 * 4 / 3 = 10.47
    turned = closest_pair(["high", "low"], scores[:, [2, 1]])
    assert turned == pair


def test_pairs_that_cannot_be_told() -> None:
    same = closest_pair(["a", "b"], np.array([[1.0, 1.0], [2.0, 2.0]]))
    assert same is not None
    assert (same.difference, same.images, same.images_four_in_five) == (0.0, None, None)
    assert closest_pair(["a"], np.ones((5, 1))) is None
    assert closest_pair(["a", "b"], np.array([[1.0, 2.0]])) is None
    apart = np.array([[1.0, NAN], [2.0, NAN], [NAN, 1.0], [NAN, 2.0]])
    assert closest_pair(["a", "b"], apart) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_the_running_interval_is_that_of_every_head(values: list[float]) -> None:
    means, half = running_interval(np.array(values))
    assert math.isnan(half[0])
    for count in range(2, len(values) + 1):
        head = np.array(values[:count])
        assert means[count - 1] == pytest.approx(head.mean(), abs=1e-9)
        expected = 1.96 * head.std(ddof=1) / math.sqrt(count)
        assert half[count - 1] == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_the_running_interval_survives_a_large_mean() -> None:
    values = 1e6 + np.array([0.0, 1e-3] * 50)
    _, half = running_interval(values)
    assert half[-1] == pytest.approx(1.96 * values.std(ddof=1) / 10, rel=1e-6)
    assert [len(part) for part in running_interval(np.empty(0))] == [0, 0]
