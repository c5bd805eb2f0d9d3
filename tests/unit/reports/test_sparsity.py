"""Masks and concentration measures against hand-made examples and their closed forms."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raybench.metrics.sparsity import area_fractions, gini, hoyer, mask_values

vectors = arrays(
    np.float64, st.integers(2, 30), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
)


@pytest.mark.parametrize(
    ("weights", "options", "mask"),
    [
        ([0.5, -0.3, 0.001, -0.02], {}, [1, -1, 0, -1]),
        ([0.5, -0.3, 0.001, -0.02], {"top": 2}, [1, -1, 0, 0]),
        ([0.01, -0.01, 0.0099, 0.0], {}, [1, -1, 0, 0]),
        ([0.2, -0.2, 0.2], {"top": 2}, [1, -1, 0]),
        ([1e-6, -9e-7, 4e-8], {"relative": 0.05}, [1, -1, 0]),
        ([1.0, 0.02, -0.06], {"relative": 0.05}, [1, 0, -1]),
        ([0.0, 0.0], {"relative": 0.05}, [0, 0]),
        ([0.0, 0.0], {"min_weight": 0.0}, [0, 0]),
        ([-0.4], {"top": 10}, [-1]),
    ],
)
def test_mask_values(weights: list[float], options: dict, mask: list[int]) -> None:
    assert mask_values(weights, **options).tolist() == mask


def test_bad_weights_are_refused() -> None:
    for weights in ([], [[1.0]], [np.nan], [np.inf]):
        with pytest.raises(ValueError, match="finite"):
            mask_values(weights)
    with pytest.raises(ValueError, match="top"):
        mask_values([1.0], top=0)


def test_area_fractions_weigh_segments_by_their_pixels() -> None:
    segments = [[0, 0, 0, 0], [1, 1, 2, 3]]
    assert area_fractions([1, -1, 0, 0], segments) == (0.25, 0.25, 0.5)


def test_closed_forms() -> None:
    even, single = np.full(8, -0.3), np.array([0.0] * 7 + [-2.0])
    assert gini(even) == pytest.approx(0.0, abs=1e-12)
    assert gini(single) == pytest.approx(7 / 8)
    assert hoyer(even) == pytest.approx(0.0, abs=1e-12)
    assert hoyer(single) == pytest.approx(1.0)
    # |w| = (1, 3): Gini by the mean-difference formula, 2/(2 * 2**2 * 2) * |1 - 3|
    assert gini([1.0, -3.0]) == pytest.approx(0.25)
    assert hoyer([1.0, -3.0]) == pytest.approx((2**0.5 - 4 / 10**0.5) / (2**0.5 - 1))
    assert (gini([0.0, 0.0]), hoyer([0.0, 0.0])) == (0.0, 0.0)
    assert (gini([2.0]), hoyer([2.0])) == (0.0, 1.0)


@given(vectors, st.floats(1e-3, 1e3))
def test_scale_sign_and_order_do_not_matter(weights: np.ndarray, scale: float) -> None:
    for measure in (gini, hoyer):
        value = measure(weights)
        assert 0.0 <= value <= 1.0
        assert measure(-scale * weights[::-1]) == pytest.approx(value, abs=1e-6)


@given(vectors)
def test_gini_is_the_mean_difference(weights: np.ndarray) -> None:
    size = np.abs(weights)
    if size.sum() > 0:
        differences = np.abs(size[:, None] - size[None, :]).mean()
        assert gini(weights) == pytest.approx(differences / (2 * size.mean()), abs=1e-9)


@given(vectors, st.integers(1, 12))
def test_masks_keep_signs_and_counts(weights: np.ndarray, top: int) -> None:
    mask = mask_values(weights, top=top)
    assert (np.abs(mask).sum()) <= top
    assert ((mask == 0) | (mask == np.sign(weights))).all()
    kept = np.abs(weights)[mask != 0]
    left = np.abs(weights)[(mask == 0) & (np.abs(weights) >= 0.01)]
    assert not kept.size or not left.size or kept.min() >= left.max()
