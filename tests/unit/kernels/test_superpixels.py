import pytest
import torch
from torch import Tensor

from raybench.kernels.superpixels import slic_segments


def scene(size: int, channels: int) -> Tensor:
    """A smooth background with a bright disc and a little noise."""
    axis = torch.linspace(-1, 1, size)
    disc = (axis[:, None].square() + axis[None].square() < 0.3).float()
    shades = torch.stack([disc * 0.6, axis[:, None].expand(size, size) * 0.2 + 0.2, disc * 0.3])
    noise = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) * 0.05
    return (shades + noise).clamp(0, 1)[:channels]


@pytest.mark.parametrize("count", [64, 100])
def test_segments_at_224_are_dense_and_about_as_many_as_asked(count: int) -> None:
    segments = slic_segments(scene(224, 3), count)
    assert segments.shape == (224, 224)
    assert segments.dtype == torch.int64
    found = int(segments.max()) + 1
    assert segments.unique().tolist() == list(range(found))
    assert 0.75 * count <= found <= 1.25 * count


def test_the_image_alone_decides_and_grey_is_colour() -> None:
    grey = scene(64, 1)
    first = slic_segments(grey, 30)
    assert torch.equal(first, slic_segments(grey.clone(), 30))
    assert torch.equal(first, slic_segments(grey.expand(3, -1, -1), 30))
    assert int(first.max()) >= 15


def test_segments_follow_edges() -> None:
    image = torch.zeros(3, 64, 64)
    image[:, :, 27:] = 1.0
    segments = slic_segments(image, 25)
    left, right = set(segments[:, :27].flatten().tolist()), set(segments[:, 27:].flatten().tolist())
    assert not left & right


@pytest.mark.parametrize("count", [0, 17])
def test_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"1\.\.16 for 4x4 images, found {count}"):
        slic_segments(torch.zeros(3, 4, 4), count)
