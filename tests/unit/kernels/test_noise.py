"""Noise estimates against simulation where the truth is known by enumerating every mask."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from raybench.kernels.designs import hadamard_masks
from raybench.kernels.draws import bits, stream
from raybench.kernels.lime import bernoulli_masks, explain, proximity
from raybench.kernels.noise import (
    folded_mean,
    group_jackknife,
    noise_floor,
    row_groups,
    sandwich,
    split_half,
    unfold,
    unfolded_l1,
)
from raybench.kernels.ridge import weighted_ridge

SEGMENTS = 12


def response(masks: Tensor) -> Tensor:
    """Few strong segments, many weak ones, interactions and saturation: a network in small."""
    z = masks.to(torch.float64)
    linear = torch.tensor([1.0, -0.6, 0.3] + [0.05, -0.05, 0.0] * 3, dtype=torch.float64)
    pairs = torch.randn(12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    signs = 2 * z - 1
    return torch.sigmoid(z @ linear + ((signs @ pairs.triu(1)) * signs).sum(1) / 3)[:, None]


def truth(samples: int) -> Tensor:
    """Weights [S] of the fit on all 2^S masks, at the shrinkage that `samples` of them have."""
    every = (torch.arange(2**SEGMENTS)[:, None] >> torch.arange(SEGMENTS)) & 1
    pi = proximity(every.bool()) * (samples / 2**SEGMENTS)
    return weighted_ridge(every, response(every), pi, 1.0).weights[:, 0]


class Trials(NamedTuple):
    """Of many independent draws of masks: weights, variances [trials, S]; jackknives [trials]."""

    weights: Tensor
    variances: Tensor
    debiased: Tensor
    se: Tensor


def simulate(samples: int, trials: int) -> Trials:
    weights, variances, debiased, errors = [], [], [], []
    for trial in range(trials):
        masks = bernoulli_masks(bits(0, "masks", f"{samples} {trial}", (samples, SEGMENTS)))
        pi, y = proximity(masks), response(masks)
        fit = sandwich(masks, y, pi, 1.0)
        jackknife = group_jackknife(masks, y, pi, 1.0)
        weights.append(fit.weights[:, 0])
        variances.append(fit.variance[:, 0])
        debiased.append(float(jackknife.debiased[0]))
        errors.append(float(jackknife.se[0]))
    return Trials(
        torch.stack(weights), torch.stack(variances), torch.tensor(debiased), torch.tensor(errors)
    )


def test_sandwich_weights_are_those_of_the_fit_and_leverages_those_of_the_hat_matrix() -> None:
    masks = bernoulli_masks(bits(0, "masks", "hat", (60, SEGMENTS)))
    pi, y = proximity(masks), response(masks)
    fit = sandwich(masks, y, pi, 1.0)
    torch.testing.assert_close(fit.weights, explain(masks, y).weights)
    # Column i of the hat matrix is the fit to a response that is 1 at row i and 0 elsewhere.
    identity = torch.eye(60, dtype=torch.float64)
    unit = weighted_ridge(masks, identity, pi, 1.0)
    hat = masks.double() @ unit.weights + unit.intercept
    torch.testing.assert_close(fit.leverage, hat.diagonal())
    # Leaving a row out changes the weights by what the sandwich adds up.
    changes = []
    for left in range(60):
        kept = torch.arange(60) != left
        changes.append(fit.weights - weighted_ridge(masks, y, pi * kept, 1.0).weights)
    torch.testing.assert_close(fit.variance, torch.stack(changes).square().sum(0))


@pytest.mark.parametrize(("samples", "trials"), [(250, 150), (1000, 60)])
def test_variance_and_floor_match_repeated_draws(samples: int, trials: int) -> None:
    found = simulate(samples, trials)
    assert float(found.variances.mean() / found.weights.var(0).mean()) == pytest.approx(1, abs=0.15)
    noise = found.weights - found.weights.mean(0)
    floor = noise_floor(found.variances.mT).mean()
    assert float(floor / noise.abs().sum(1).mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("samples", "trials"), [(250, 150), (1000, 60)])
def test_corrections_take_most_of_the_bias_of_the_norm(samples: int, trials: int) -> None:
    found = simulate(samples, trials)
    wanted = float(truth(samples).abs().sum())
    raw = float(found.weights.abs().sum(1).mean()) - wanted
    unfolded = float(unfolded_l1(found.weights.mT, found.variances.mT).mean()) - wanted
    debiased = float(found.debiased.mean()) - wanted
    assert raw > 0.03 * wanted
    assert abs(unfolded) < 0.5 * raw
    assert abs(debiased) < 0.6 * raw
    # And the jackknife knows how much the norm itself varies from draw to draw.
    spread = float(found.weights.abs().sum(1).std())
    assert float(found.se.mean()) == pytest.approx(spread, rel=0.35)


def test_folded_mean_is_the_mean_of_absolute_normals() -> None:
    draws = np.random.default_rng(0).standard_normal(400_000)
    for mean, sd in ((0.0, 1.0), (0.3, 0.5), (-2.0, 1.5)):
        expected = np.abs(mean + sd * draws).mean()
        found = folded_mean(torch.tensor(mean), torch.tensor(sd).square())
        assert float(found) == pytest.approx(expected, abs=0.01)
    exact = folded_mean(torch.tensor([-2.0, 0.0]), torch.zeros(2))
    assert exact.tolist() == [2.0, 0.0]


def test_unfold_has_the_stated_bias_and_leaves_certain_weights_alone() -> None:
    draws = torch.from_numpy(np.random.default_rng(1).standard_normal(400_000))
    one = torch.ones_like(draws)
    for mean, before, after in ((0.0, 0.798, 0.467), (1.0, 0.167, -0.066), (3.0, 0.001, -0.016)):
        assert float((mean + draws).abs().mean()) - mean == pytest.approx(before, abs=0.01)
        assert float(unfold(mean + draws, one).mean()) - mean == pytest.approx(after, abs=0.01)
    weights = torch.tensor([[-2.0], [0.0], [1.0]]).double()
    assert torch.equal(unfold(weights, torch.zeros_like(weights)), weights.abs())
    # Weights that are surely noise do not add up to less than nothing.
    assert unfolded_l1(weights * 0, torch.ones_like(weights)).tolist() == [0.0]


def test_constant_responses_have_no_noise() -> None:
    masks = bernoulli_masks(bits(0, "masks", "constant", (100, SEGMENTS)))
    y = torch.full((100, 1), 0.3)
    fit = sandwich(masks, y, proximity(masks), 1.0)
    assert float(fit.weights.abs().sum()) == 0.0
    assert float(noise_floor(fit.variance)[0]) == 0.0
    jackknife = group_jackknife(masks, y, proximity(masks), 1.0)
    assert [float(value[0]) for value in jackknife] == [0.0, 0.0, 0.0]


def test_jackknife_by_hand() -> None:
    masks = bernoulli_masks(bits(0, "masks", "hand", (80, SEGMENTS)))
    pi, y = proximity(masks), response(masks)
    found = group_jackknife(masks, y, pi, 1.0, groups=4)
    full = float(explain(masks, y).weights.abs().sum())
    groups = row_groups(80, 4)
    norms = []
    for group in range(4):
        kept = groups != group
        part = weighted_ridge(masks[kept], y[kept], pi[kept], 0.75)
        norms.append(float(part.weights.abs().sum()))
    assert float(found.l1[0]) == pytest.approx(full)
    assert float(found.debiased[0]) == pytest.approx(4 * full - 3 * np.mean(norms))
    assert float(found.se[0]) == pytest.approx(
        np.sqrt(0.75 * np.square(norms - np.mean(norms)).sum())
    )


def test_groups_keep_complements_together_and_are_equal() -> None:
    groups = row_groups(1024, 10)
    assert torch.equal(groups[0::2], groups[1::2])
    counts = torch.bincount(groups)
    assert len(counts) == 10
    assert int(counts.max() - counts.min()) <= 2
    with pytest.raises(ValueError, match=r"2\.\.4 for 8 samples, found 5"):
        row_groups(8, 5)


@pytest.mark.parametrize("kind", ["bernoulli", "hadamard"])
def test_halves_are_two_fits_that_agree_with_the_truth_and_with_each_other(kind: str) -> None:
    if kind == "bernoulli":
        masks = bernoulli_masks(bits(0, "masks", "halves", (1024, SEGMENTS)))
    else:
        masks = hadamard_masks(stream(0, "hadamard", "halves"), 1024, SEGMENTS)
    pi, y = proximity(masks), response(masks)
    halves = split_half(masks, y, pi, 1.0)
    groups = row_groups(1024, 2)
    for half in range(2):
        kept = groups == half
        alone = weighted_ridge(masks[kept], y[kept], pi[kept], 0.5)
        torch.testing.assert_close(halves[half], alone.weights)
        both = torch.stack([halves[half][:, 0], truth(1024)])
        assert float(torch.corrcoef(both)[0, 1]) > 0.8
    assert not torch.equal(halves[0], halves[1])
