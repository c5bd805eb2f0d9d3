"""Hadamard masks: exactly balanced and orthogonal, and never noisier than independent masks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybench.kernels.designs import antithetic_masks, hadamard_masks
from raybench.kernels.draws import bits, stream
from raybench.kernels.lime import bernoulli_masks, explain, proximity
from raybench.kernels.ridge import weighted_ridge


def design(samples: int, segments: int, sample: str = "a", *, original: bool = True) -> Tensor:
    draws = stream(0, "hadamard", sample)
    return hadamard_masks(draws, samples, segments, original=original)


@pytest.mark.parametrize(("samples", "segments"), [(4, 1), (8, 3), (64, 31), (256, 49), (1024, 64)])
def test_columns_are_balanced_and_orthogonal_exactly(samples: int, segments: int) -> None:
    masks = design(samples, segments, original=False)
    assert masks.shape == (samples, segments)
    assert masks.dtype == torch.bool
    signs = masks.to(torch.int64) * 2 - 1
    assert torch.equal(signs.sum(0), torch.zeros(segments, dtype=torch.int64))
    assert torch.equal(signs.mT @ signs, samples * torch.eye(segments, dtype=torch.int64))


def test_pairs_of_rows_are_complements_so_interactions_of_two_stay_out_of_the_weights() -> None:
    masks = design(128, 20, original=False)
    assert torch.equal(masks[0::2], ~masks[1::2])
    signs = masks.to(torch.int64) * 2 - 1
    products = (signs[:, :, None] * signs[:, None, :]).flatten(1)
    assert int((signs.mT @ products).abs().max()) == 0


def test_row_0_is_the_original_and_nothing_else_changes() -> None:
    with_original, without = design(64, 10), design(64, 10, original=False)
    assert bool(with_original[0].all())
    assert torch.equal(with_original[1:], without[1:])
    # One row in M: the column sums are off by at most two halves.
    signs = with_original.to(torch.int64) * 2 - 1
    assert int(signs.sum(0).abs().max()) <= 2


def test_designs_are_keyed_and_their_columns_and_rows_random() -> None:
    assert torch.equal(design(256, 30), design(256, 30))
    other = design(256, 30, "b")
    assert not torch.equal(design(256, 30), other)
    # Over many keys each entry of each row is a fair coin, and neighbours are uncorrelated.
    many = torch.stack([design(16, 5, str(i), original=False) for i in range(4000)]).double()
    assert float((many.mean(0) - 0.5).abs().max()) < 0.04  # five standard deviations
    agree = (many[:, 0, :-1] == many[:, 0, 1:]).double().mean(0)
    assert float((agree - 0.5).abs().max()) < 0.04


@pytest.mark.parametrize("samples", [0, 2, 3, 1000])
def test_samples_that_are_no_power_of_two_are_refused(samples: int) -> None:
    with pytest.raises(ValueError, match=f"power of two, 4 or more, found {samples}"):
        design(samples, 1)


@pytest.mark.parametrize("segments", [0, 32, 100])
def test_segments_that_do_not_fit_are_refused(segments: int) -> None:
    with pytest.raises(ValueError, match=rf"64 samples serve 1\.\.31 segments, found {segments}"):
        design(64, segments)


def test_antithetic_pairs_are_complements_and_otherwise_fair_and_independent() -> None:
    masks = antithetic_masks(stream(0, "antithetic", "a"), 9001, 8)
    assert masks.shape == (9001, 8)
    assert bool(masks[0].all())
    assert torch.equal(masks[2:-1:2], ~masks[3::2])
    assert abs(float(masks.double().mean()) - 0.5) < 0.01
    upper = masks[2:-1:2].double() * 2 - 1
    correlation = (upper.mT @ upper) / len(upper) - torch.eye(8)
    assert float(correlation.abs().max()) < 0.08  # five standard deviations
    assert torch.equal(masks, antithetic_masks(stream(0, "antithetic", "a"), 9001, 8))
    assert not torch.equal(masks, antithetic_masks(stream(0, "antithetic", "b"), 9001, 8))


def _functions(segments: int) -> dict[str, Callable[[Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(4)
    linear = torch.randn(segments, generator=generator, dtype=torch.float64)
    quadratic = torch.randn(segments, segments, generator=generator, dtype=torch.float64) / 4

    def mixed(z: Tensor) -> Tensor:
        return z @ linear + ((z @ quadratic) * z).sum(1)

    return {
        "linear": lambda z: z @ linear,
        "quadratic": lambda z: ((z @ quadratic) * z).sum(1),
        "linear + quadratic": mixed,
        "saturated": lambda z: torch.sigmoid(mixed(z)),
    }


@pytest.mark.parametrize("name", ["linear", "quadratic", "linear + quadratic", "saturated"])
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_vary_less_than_with_independent_masks(name: str, weighted: bool) -> None:
    samples, segments, draws = 128, 16, 150
    function = _functions(segments)[name]

    def weights(masks: Tensor) -> Tensor:
        y = function(masks.to(torch.float64))[:, None]
        if weighted:  # lime's proximity weights, which no longer leave the columns orthogonal
            return explain(masks, y).weights[:, 0]
        return weighted_ridge(masks, y, torch.ones_like(proximity(masks)), 1e-9).weights[:, 0]

    def variance(masks: Callable[[str], Tensor]) -> float:
        fits = torch.stack([weights(masks(str(i))) for i in range(draws)])
        return float(fits.var(0).sum())

    independent = variance(lambda key: bernoulli_masks(bits(0, "masks", key, (samples, segments))))
    folded = variance(lambda key: design(samples, segments, key))
    paired = variance(lambda key: antithetic_masks(stream(0, "antithetic", key), samples, segments))
    # Of a linear response only shrinkage varies, and a complement tells nothing new of that.
    assert name == "linear" or paired < independent
    if name == "linear" and not weighted:
        assert independent < 1e-12  # nothing to misfit: both are exact
        assert folded < 1e-12
    else:
        assert folded < independent / 1.2
