"""Whether an interval holds zero, told by counting, is what ordering the values tells."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybench.metrics.intervals import percentile_interval, straddles_zero


def by_ordering(samples: np.ndarray) -> bool:
    low, high = percentile_interval(samples)
    return low <= 0 <= high


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(1, 400),
    negative=st.integers(0, 400),
    zero=st.integers(0, 12),
    seed=st.integers(0, 10_000),
)
def test_counting_agrees_with_ordering(size: int, negative: int, zero: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = np.abs(rng.normal(size=size)) + 1e-9
    samples[:negative] *= -1
    samples[negative : negative + zero] = 0.0
    rng.shuffle(samples)
    assert straddles_zero(samples) == by_ordering(samples)


@pytest.mark.parametrize("negative", range(244, 258))
def test_at_the_very_edge_the_values_decide(negative: int) -> None:
    samples = np.linspace(0.1, 1.0, 10_000)
    samples[:negative] *= -1
    assert straddles_zero(samples) == by_ordering(samples)
    assert straddles_zero(-samples) == by_ordering(-samples)


def test_resamples_without_a_value_are_left_out() -> None:
    samples = np.full(1_000, np.nan)
    samples[:10] = 1.0
    assert not straddles_zero(samples)
    samples[:5] = -1.0
    assert straddles_zero(samples)
