"""Paired proportions: whether two models differ on the same images."""

from functools import lru_cache

import numpy as np
from scipy import stats

__all__ = ["mcnemar"]


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the two-sided exact p-value that two columns of outcomes [N] bool differ.

    Only images on which they differ say anything: under equality each falls either way with
    probability 1/2 (McNemar, Psychometrika 12, 1947). No such image gives p = 1.
    """
    above = int((first & ~second).sum())
    below = int((~first & second).sum())
    if above + below == 0:
        return 1.0
    return _two_sided(above, above + below)


@lru_cache(maxsize=65_536)
def _two_sided(above: int, total: int) -> float:
    # Tables of hundreds of models ask about each pair, and few counts are different.
    return float(stats.binomtest(above, total, 0.5).pvalue)
