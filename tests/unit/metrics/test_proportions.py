import numpy as np
import pytest

from raybench.metrics.proportions import mcnemar


def test_mcnemar_by_hand() -> None:
    first = np.array([True] * 6 + [False] + [True] * 20)
    second = np.array([False] * 6 + [True] + [True] * 20)
    # 6 of 7 discordant pairs one way: 2 * (C(7,6) + C(7,7)) / 2**7.
    assert mcnemar(first, second) == pytest.approx(2 * 8 / 128)
    assert mcnemar(second, first) == pytest.approx(2 * 8 / 128)


def test_equal_columns_do_not_differ() -> None:
    column = np.array([True, False, True])
    assert mcnemar(column, column) == 1.0
