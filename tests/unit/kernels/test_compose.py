"""Copies hold exactly the image's and the fill's pixels, the fast way as by a selection."""

import pytest
import torch
from torch import Tensor

from raybench.kernels.compose import compose, equal_rows
from raybench.kernels.draws import bits
from raybench.kernels.lime import bernoulli_masks
from raybench.kernels.segments import grid_segments


def selected(image: Tensor, fill: Tensor, segments: Tensor, masks: Tensor) -> Tensor:
    """Return the copies by the plain way: one pixel or the other."""
    keep = masks[:, segments.reshape(-1)].reshape(-1, 1, *segments.shape)
    return torch.where(keep, image, fill)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 224, 224), (3, 97, 131)])
@pytest.mark.parametrize("kind", ["grid", "superpixels"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_copies_are_equal_to_a_selection_to_the_bit(
    shape: tuple[int, int, int], kind: str, scale: float
) -> None:
    made = torch.Generator().manual_seed(1)
    image, fill = (torch.rand(shape, generator=made) * scale for _ in range(2))
    segments = grid_segments(shape[1], shape[2], 7)
    if kind == "superpixels":
        segments = torch.randint(0, 49, shape[1:], generator=made)
    masks = bernoulli_masks(bits(0, "masks", "a", (6, 49)))
    for run in {1, equal_rows(segments)}:
        found = compose(image, fill, segments, masks, run=run)
        assert found.is_contiguous()
        assert torch.equal(found, selected(image, fill, segments, masks))


def test_rows_of_a_grid_are_found_where_they_are_long_and_alike() -> None:
    assert equal_rows(grid_segments(224, 224, 8)) == 28
    assert equal_rows(grid_segments(96, 128, 1)) == 96
    assert equal_rows(grid_segments(32, 32, 8)) == 1  # too short to pay
    assert equal_rows(grid_segments(100, 100, 8)) == 1  # cells of 12 and 13 rows
    ragged = grid_segments(224, 224, 8).clone()
    ragged[30, 5] = 3
    assert equal_rows(ragged) == 1
