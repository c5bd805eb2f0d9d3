"""Agreement of two orderings of models: rank correlations with permutation p-values, concordance.

Models are few, so p-values come from permutations: all of them up to 9 models, else a keyed sample
(spec 01 section 1.3).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Agreement", "agreement", "spearman"]

_EXACT_UP_TO = 9
_DRAWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two columns over the same models agree.

    Attributes:
        models: how many models both columns know.
        pearson, spearman, kendall: correlations in [-1, 1] (Kendall's tau-b); NaN where a column is
            constant.
        pearson_p, spearman_p, kendall_p: two-sided permutation p-values.
        exact: whether all permutations were counted.
        concordant, pairs: pairs of models ordered alike, among those that neither column ties.
    """

    models: int
    pearson: float
    spearman: float
    kendall: float
    pearson_p: float
    spearman_p: float
    kendall_p: float
    exact: bool
    concordant: int
    pairs: int


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's rank correlation of two columns [P], ties given their mean rank."""
    return _pearson(stats.rankdata(first), stats.rankdata(second))


def agreement(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> Agreement:
    """Return the agreement of two columns [P]; models with a NaN in either are left out.

    Args:
        first: [P] float64.
        second: [P] float64.
        rng: draws permutations where there are too many to count.

    Raises:
        ValueError: fewer than three models are known to both.
    """
    known = ~(np.isnan(first) | np.isnan(second))
    x, y = first[known], second[known]
    if len(x) < 3:
        raise ValueError(f"a correlation needs at least 3 models, found {len(x)}")
    exact = len(x) <= _EXACT_UP_TO
    orders = (
        np.array(list(itertools.permutations(range(len(x)))))
        if exact
        else np.array([rng.permutation(len(x)) for _ in range(_DRAWS)])
    )
    ranks_x, ranks_y = stats.rankdata(x), stats.rankdata(y)
    upper = np.triu_indices(len(x), 1)
    signs_x = np.sign(x[:, None] - x)[upper]
    pearson, spearman_, kendall = (
        _pearson(x, y),
        _pearson(ranks_x, ranks_y),
        float(stats.kendalltau(x, y).statistic),
    )
    sums = _concordances(np.sign(x[:, None] - x), np.sign(y[:, None] - y), orders)
    now = float((signs_x * np.sign(y[:, None] - y)[upper]).sum())
    decided = (signs_x != 0) & (np.sign(y[:, None] - y)[upper] != 0)
    return Agreement(
        models=len(x),
        pearson=pearson,
        spearman=spearman_,
        kendall=kendall,
        pearson_p=_share(_dots(x, y[orders]), float(_centred(x) @ _centred(y)), exact),
        spearman_p=_share(
            _dots(ranks_x, ranks_y[orders]), float(_centred(ranks_x) @ _centred(ranks_y)), exact
        ),
        kendall_p=_share(sums, now, exact),
        exact=exact,
        concordant=int(((signs_x * np.sign(y[:, None] - y)[upper]) > 0).sum()),
        pairs=int(decided.sum()),
    )


def _concordances(signs_x: np.ndarray, signs_y: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Return concordant less discordant pairs [R] when y is put into each of `orders` [R, P].

    `signs_x`, `signs_y` [P, P] say which of two models is larger.
    """
    count = len(signs_x)
    # Whole numbers below 2^24, which float32 holds exactly. In blocks: at 200 models all orders at
    # once would take gigabytes.
    wanted, known = signs_x.astype(np.float32).ravel(), signs_y.astype(np.float32)
    block = max(1, 2**22 // (count * count))
    sums = [
        known[o[:, :, None], o[:, None, :]].reshape(len(o), -1) @ wanted
        for o in (orders[start : start + block] for start in range(0, len(orders), block))
    ]
    found: np.ndarray = np.concatenate(sums).astype(np.float64) / 2
    return found


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = values - values.mean()
    return centred


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    size = math.sqrt(float(_centred(x) @ _centred(x)) * float(_centred(y) @ _centred(y)))
    return float(_centred(x) @ _centred(y)) / size if size > 0 else math.nan


def _dots(x: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    dots: np.ndarray = shuffled @ _centred(x)
    return dots


def _share(found: np.ndarray, now: float, exact: bool) -> float:
    """Return the share of permutations at least as far from 0 as what was seen.

    Permutations of a sample get one more, the one seen, so that p is never 0 (Phipson, Smyth 2010).
    """
    # Dot products of permutations of the same numbers differ by rounding where they are equal.
    tolerance = 1e-9 * max(1.0, abs(now))
    extreme = int((np.abs(found) >= abs(now) - tolerance).sum())
    return extreme / len(found) if exact else (extreme + 1) / (len(found) + 1)
