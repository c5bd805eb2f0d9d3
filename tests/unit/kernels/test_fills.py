import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from raybench.kernels.fills import blur_fill


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0, 9.5, 40.0])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14), (3, 32, 5), (1, 1, 6)])
def test_blur_equals_scipy_at_any_width(sigma: float, shape: tuple[int, int, int]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.stack([gaussian_filter(channel, sigma) for channel in image.numpy()])
    np.testing.assert_allclose(blur_fill(image, sigma).numpy(), expected, atol=1e-12, rtol=0)


def test_constants_stay_and_ranges_are_kept() -> None:
    constant = torch.full((3, 16, 16), 0.3)
    torch.testing.assert_close(blur_fill(constant, 3.0), constant, rtol=0, atol=1e-7)
    image = torch.rand(3, 16, 16).round()
    blurred = blur_fill(image, 1.5)
    assert blurred.dtype == torch.float32
    assert float(blurred.min()) >= 0
    assert float(blurred.max()) <= 1
    # Reflection about the outer edge loses no light.
    torch.testing.assert_close(blurred.mean((1, 2)), image.mean((1, 2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf")])
def test_widths_that_are_none_are_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma_pixels must be a number above 0"):
        blur_fill(torch.zeros(1, 4, 4), sigma)
