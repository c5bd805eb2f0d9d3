"""T3 of spec 01: exact recovery above d samples, the sqrt(k / d) law below; and the variances."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from raybench.kernels.draws import stream
from raybench.kernels.gaussian import (
    coarse_gaussian,
    gaussian_fit,
    noise_corrected,
    normals,
    pixel_gaussian,
)
from raybench.kernels.noise import noise_floor

INSIDE = torch.full((1, 14, 14), 0.5)  # far from 0 and 1: small noise is never clipped


def gradient(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator, dtype=torch.float64)


def noise(key: str, rows: int, columns: int) -> Tensor:
    return normals(stream(0, "gaussian", key), (rows, columns))


def test_normals_are_normal_and_keyed() -> None:
    drawn = noise("a", 301, 333)
    assert drawn.dtype == torch.float32
    assert kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-4
    correlation = np.corrcoef(drawn.flatten()[:-1:2].numpy(), drawn.flatten()[1::2].numpy())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(drawn.numel() / 2)
    assert torch.equal(drawn, noise("a", 301, 333))
    assert abs(float((drawn * noise("b", 301, 333)).mean())) < 5 / math.sqrt(drawn.numel())


def test_features_are_the_clipped_displacements() -> None:
    image = torch.rand(3, 6, 6)
    drawn = noise("clip", 50, 108)
    copies = pixel_gaussian(image, drawn, 0.8)
    assert float(copies.images.min()) == 0
    assert float(copies.images.max()) == 1
    torch.testing.assert_close(copies.features, (copies.images - image).flatten(1))
    torch.testing.assert_close(
        pixel_gaussian(INSIDE, noise("inside", 9, 196), 0.01).features,
        0.01 * noise("inside", 9, 196),
        atol=1e-7,
        rtol=0,
    )


@pytest.mark.parametrize(("height", "width", "cells"), [(8, 8, 4), (9, 14, 4)])
def test_coarse_noise_is_constant_on_cells_and_features_are_its_clipped_means(
    height: int, width: int, cells: int
) -> None:
    image = torch.rand(2, height, width)
    drawn = noise("coarse", 20, 2 * cells * cells)
    copies = coarse_gaussian(image, drawn, 0.5, cells)
    assert copies.features.shape == (20, 2 * cells * cells)
    moved = (copies.images - image).double()
    amplitude = 0.5 * drawn.reshape(20, 2, cells, cells)
    for channel in range(2):
        for row in range(cells):
            for column in range(cells):
                rows = torch.arange(height) * cells // height == row
                columns = torch.arange(width) * cells // width == column
                cell = moved[:, channel][:, rows][:, :, columns].flatten(1)
                index = (channel * cells + row) * cells + column
                torch.testing.assert_close(copies.features[:, index], cell.mean(1))
                still = image[channel][rows][:, columns].flatten()
                wanted = (still + amplitude[:, channel, row, column, None]).clamp(0, 1) - still
                torch.testing.assert_close(cell, wanted.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.8])
def test_linear_function_is_recovered_exactly_with_more_samples_than_features(
    sigma: float,
) -> None:
    image = torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(1))
    truth = gradient(108)
    copies = pixel_gaussian(image, noise("exact", 150, 108), sigma)
    responses = 0.7 + copies.images.flatten(1).double() @ truth
    fit = gaussian_fit(copies.features, responses[:, None], ridge=0.0)
    torch.testing.assert_close(fit.weights[:, 0], truth, atol=1e-5, rtol=0)
    clean = 0.7 + image.flatten().double() @ truth
    torch.testing.assert_close(fit.intercept[0], clean, atol=1e-5, rtol=0)
    assert fit.recovery == pytest.approx(1.0)
    # No error is left, so no noise is claimed.
    assert float(noise_floor(fit.variance)[0]) < 1e-4 * float(truth.abs().sum())


def test_coarse_weights_of_a_linear_function_are_gradients_summed_over_cells() -> None:
    image = torch.full((2, 8, 8), 0.5)
    truth = gradient(128).reshape(2, 8, 8)
    copies = coarse_gaussian(image, noise("sum", 64, 32), 0.05, 4)
    responses = (copies.images.double() * truth).sum((1, 2, 3))
    fit = gaussian_fit(copies.features, responses[:, None], ridge=0.0)
    cells = truth.reshape(2, 4, 2, 4, 2).sum((2, 4)).flatten()
    torch.testing.assert_close(fit.weights[:, 0], cells, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_fewer_samples_than_features_obey_the_square_root_law(ridge: float) -> None:
    samples, count = 300, 1024
    image = torch.full((1, 32, 32), 0.5)
    ratios, powers = [], []
    for trial in range(4):
        truth = gradient(count, trial)
        copies = pixel_gaussian(image, noise(f"law {trial}", samples, count), 0.05)
        responses = (copies.features.double() @ truth)[:, None]
        fit = gaussian_fit(copies.features, responses, ridge=ridge)
        ratios.append(float(fit.weights.abs().sum() / truth.abs().sum()))
        powers.append(float(fit.weights.square().sum() / truth.square().sum()))
    assert fit.recovery == pytest.approx(samples / count, rel=0.01)
    assert np.mean(ratios) == pytest.approx(math.sqrt(samples / count), rel=0.03)
    assert np.mean(powers) == pytest.approx(samples / count, rel=0.06)


def test_dual_and_primal_are_the_same_fit() -> None:
    """Just above and just below d samples, against the plain formula with an intercept column."""
    for samples, count in ((40, 40), (41, 40), (60, 40)):
        features = noise("both", samples, count).double()
        y = torch.sin(features.sum(1, keepdim=True)) + features[:, :1]
        fit = gaussian_fit(features, y, ridge=0.1)
        centred = features - features.mean(0)
        penalty = 0.1 * float(centred.square().sum()) / min(samples, count)
        gram = centred.mT @ centred + penalty * torch.eye(count, dtype=torch.float64)
        weights = torch.linalg.solve(gram, centred.mT @ (y - y.mean(0)))
        torch.testing.assert_close(fit.weights, weights, atol=1e-10, rtol=0)
        hat = centred @ torch.linalg.solve(gram, centred.mT)
        assert fit.recovery == pytest.approx(float(hat.trace()) / count)
        # The jackknife in closed form is the jackknife by brute force.
        changes = []
        for left in range(samples):
            kept = torch.arange(samples) != left
            part = features[kept] - features[kept].mean(0)
            again = part.mT @ part + penalty * torch.eye(count, dtype=torch.float64)
            changes.append(
                weights - torch.linalg.solve(again, part.mT @ (y[kept] - y[kept].mean(0)))
            )
        jackknife = torch.stack(changes).square().sum(0)
        optimism = 1 - float(hat.trace()) / max(samples - 1, count)
        torch.testing.assert_close(fit.variance, jackknife * optimism, atol=1e-10, rtol=1e-8)


def test_exact_interpolation_with_fewer_samples_has_the_smallest_norm() -> None:
    features = noise("norm", 20, 50).double()
    y = torch.cos(features.sum(1, keepdim=True))
    fit = gaussian_fit(features, y, ridge=0.0)
    torch.testing.assert_close(fit.intercept + features @ fit.weights, y, atol=1e-9, rtol=0)
    centred = features - features.mean(0)
    least = torch.linalg.pinv(centred, rtol=1e-12) @ (y - y.mean(0))
    torch.testing.assert_close(fit.weights, least, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("samples", "count"), [(60, 150), (300, 60)])
def test_variances_and_corrected_weights_match_repeated_draws(samples: int, count: int) -> None:
    truth = gradient(count, 5) * (torch.arange(count) % 3 == 0)  # two thirds of the weights are 0
    draws = 200
    weights, variances, recovery = [], [], 0.0
    for trial in range(draws):
        features = noise(f"{samples} {trial}", samples, count).double()
        curved = 3 * torch.cos(2 * features[:, :5]).sum(1)  # what no linear function explains
        fit = gaussian_fit(features, (features @ truth + curved)[:, None])
        weights.append(fit.weights[:, 0])
        variances.append(fit.variance[:, 0])
        recovery = fit.recovery
    found, claimed = torch.stack(weights), torch.stack(variances)
    assert float(claimed.mean() / found.var(0).mean()) == pytest.approx(1.0, abs=0.12)
    # Squares less their variance are unbiased for the squared (shrunken) truth.
    power = float((found.square() - claimed).sum(1).mean())
    assert power == pytest.approx(float((recovery * truth).square().sum()), rel=0.15)
    # The noise power lifts the L1 norm; most of that is gone after the correction.
    wanted = float((recovery * truth).abs().sum())
    raw = float(found.abs().sum(1).mean())
    corrected = float(noise_corrected(found, claimed).sum(1).mean())
    assert raw > 1.2 * wanted
    assert abs(corrected - wanted) < 0.5 * (raw - wanted)


def test_noise_floor_is_the_norm_of_weights_fitted_to_pure_noise() -> None:
    norms, floors = [], []
    for trial in range(60):
        features = noise(f"floor {trial}", 200, 50)
        y = noise(f"responses {trial}", 200, 1)
        fit = gaussian_fit(features, y)
        norms.append(float(fit.weights.abs().sum()))
        floors.append(float(noise_floor(fit.variance)[0]))
    assert np.mean(floors) == pytest.approx(np.mean(norms), rel=0.05)


@pytest.mark.parametrize("shape", [(30, 50), (80, 50)])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_constant_responses_have_zero_weights_exactly(shape: tuple[int, int], ridge: float) -> None:
    fit = gaussian_fit(noise("a", *shape), torch.full((shape[0], 2), 0.3), ridge=ridge)
    assert float(fit.weights.abs().sum()) == 0.0
    assert float(fit.variance.sum()) == 0.0
    assert fit.intercept.tolist() == pytest.approx([0.3, 0.3])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match="sigma must be above 0, found 0"):
        pixel_gaussian(INSIDE, noise("a", 3, 196), 0.0)
    with pytest.raises(ValueError, match=r"shape \[M, 196\], found \(3, 195\)"):
        pixel_gaussian(INSIDE, noise("a", 3, 195), 0.1)
    with pytest.raises(ValueError, match=r"1\.\.14 for 14x14"):
        coarse_gaussian(INSIDE, noise("a", 3, 225), 0.1, 15)
    with pytest.raises(ValueError, match="ridge must be at least 0"):
        gaussian_fit(noise("a", 9, 4), noise("b", 9, 1), ridge=-1.0)
    with pytest.raises(ValueError, match="at least 3 perturbed copies, found 2"):
        gaussian_fit(noise("a", 2, 4), noise("b", 2, 1))
