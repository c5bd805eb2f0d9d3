import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from raybench.metrics.brittle import choose_baselines, compare
from raybench.metrics.intervals import percentile_interval, resample_means, wilson


def test_means_and_intervals_of_a_known_law() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(5.0, 2.0, size=(400, 1))
    boot = resample_means(values, np.random.default_rng(1))
    assert boot.means[0] == values.mean()
    # The bootstrap of a mean has the standard error of the sample, up to its own 10,000 draws.
    expected = values.std() / 20
    assert boot.resampled.std() == pytest.approx(expected, rel=0.03)
    low, high = percentile_interval(boot.resampled[:, 0])
    assert low == pytest.approx(values.mean() - 1.96 * expected, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * expected, abs=0.02)


def test_resamples_are_paired_across_models() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(1.0, size=300)
    values = np.column_stack([base, base + 0.5])
    boot = resample_means(values, np.random.default_rng(1), resamples=500)
    np.testing.assert_allclose(boot.resampled[:, 1] - boot.resampled[:, 0], 0.5, rtol=1e-12)


def test_unscored_images_count_in_no_mean() -> None:
    values = np.array([[1.0, 2.0], [np.nan, 4.0], [3.0, 6.0]])
    boot = resample_means(values, np.random.default_rng(0), resamples=2000)
    assert boot.means.tolist() == [2.0, 4.0]
    assert np.nanmin(boot.resampled[:, 0]) >= 1.0
    assert np.nanmax(boot.resampled[:, 0]) <= 3.0


def test_a_model_without_a_scored_image_has_no_mean() -> None:
    boot = resample_means(np.array([[np.nan, 1.0]]), np.random.default_rng(0), resamples=10)
    assert np.isnan(boot.means[0])
    assert list(compare(["a", "b"], boot, {"a": None, "b": None})) == ["b"]


def test_large_n_goes_in_blocks_and_keeps_the_law() -> None:
    values = np.random.default_rng(0).normal(size=(6000, 1))
    boot = resample_means(values, np.random.default_rng(1), resamples=10_000)
    assert len(boot.resampled) == 2000
    assert boot.resampled.std() == pytest.approx(values.std() / np.sqrt(6000), rel=0.06)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy(case: tuple[int, int]) -> None:
    successes, trials = case
    peer = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_wilson_refuses_no_trials() -> None:
    with pytest.raises(ValueError, match="0 of 0"):
        wilson(0, 0)


def scores(shift: float, noise: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(7)
    standard = rng.gamma(2.0, size=500)
    other = standard * (1 - shift) + noise * rng.normal(size=500)
    return np.column_stack([standard, other])


def test_relative_improvement_is_equation_3_with_both_denominators() -> None:
    values = scores(0.25)
    boot = resample_means(values, np.random.default_rng(1))
    result = compare(["std", "adv"], boot, {"std": None, "adv": "std"})
    b_std, b_adv = values.mean(0)
    adv = result["adv"]
    assert adv.ri == pytest.approx(100 * (b_std - b_adv) / b_std)
    assert adv.ri_over_model == pytest.approx(100 * (b_std - b_adv) / b_adv)
    assert adv.ri_low is not None
    assert adv.ri_high is not None
    assert adv.ri_low < adv.ri < adv.ri_high
    assert adv.ri_low > 0
    assert result["std"].ri is None
    assert (adv.rank, result["std"].rank) == (1, 2)
    assert adv.tied == result["std"].tied == ()


def test_equal_models_are_tied() -> None:
    boot = resample_means(scores(0.0), np.random.default_rng(1))
    result = compare(["std", "adv"], boot, {"std": None, "adv": "std"})
    assert result["adv"].tied == ("std",)
    assert result["std"].tied == ("adv",)


def test_relative_improvement_over_zero_is_undefined() -> None:
    values = np.column_stack([np.zeros(50), np.ones(50)])
    boot = resample_means(values, np.random.default_rng(0), resamples=100)
    assert compare(["std", "x"], boot, {"std": None, "x": "std"})["x"].ri is None


@given(st.floats(0.01, 100))
def test_relative_improvement_does_not_move_with_a_common_scale(factor: float) -> None:
    plain, scaled = (
        compare(
            ["s", "m"],
            resample_means(scores(0.1) * f, np.random.default_rng(3), resamples=50),
            {"s": None, "m": "s"},
        )["m"]
        for f in (1.0, factor)
    )
    assert plain.ri == pytest.approx(scaled.ri)
    assert plain.tied == scaled.tied


def test_twins_are_compared_with_each_other_and_others_with_the_baseline() -> None:
    names = ["mlp2", "mlp2-adv", "cnn3-adv", "other"]
    assert choose_baselines(names, "mlp2") == {
        "mlp2": None,
        "mlp2-adv": "mlp2",
        "cnn3-adv": "mlp2",
        "other": "mlp2",
    }
    assert choose_baselines(["a", "b"], None) == {"a": None, "b": None}
