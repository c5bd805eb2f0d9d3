import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raybench.metrics.correlation import agreement, spearman

VALUES = st.lists(st.integers(-5, 5), min_size=4, max_size=7)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@given(st.data())
def test_equals_scipy(data: st.DataObject) -> None:
    x = np.array(data.draw(VALUES), dtype=float)
    values = st.lists(st.integers(-5, 5), min_size=len(x), max_size=len(x))
    y = np.array(data.draw(values), dtype=float)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return
    found = agreement(x, y, rng())
    assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert spearman(x, y) == found.spearman


def test_p_values_count_every_permutation() -> None:
    x = np.arange(4.0)
    found = agreement(x, -x, rng())
    # Of 24 orders only the reversed one and the sorted one are as extreme.
    assert found.spearman_p == found.kendall_p == found.pearson_p == 2 / 24
    assert found.exact
    assert (found.concordant, found.pairs) == (0, 6)


def test_many_models_are_sampled_and_p_is_never_zero() -> None:
    x = np.arange(12.0)
    found = agreement(x, x, rng())
    assert not found.exact
    assert 0 < found.spearman_p < 1e-3
    assert (found.concordant, found.pairs) == (66, 66)


def test_unknown_values_are_left_out_and_ties_are_no_pairs() -> None:
    x = np.array([1.0, 2.0, np.nan, 3.0, 3.0])
    y = np.array([3.0, 2.0, 9.0, 1.0, 0.0])
    found = agreement(x, y, rng())
    assert found.models == 4
    assert found.pairs == 5
    assert found.concordant == 0


def test_too_few_models_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 models, found 2"):
        agreement(np.array([1.0, 2.0]), np.array([1.0, 2.0]), rng())


def test_a_constant_column_has_no_correlation() -> None:
    assert np.isnan(agreement(np.ones(4), np.arange(4.0), rng()).spearman)
