"""What two of the controls do to their input before a network sees it.

Legend: N images, C channels, H height, W width, D = C*H*W.
"""

import torch
from torch import Tensor, nn

from raybench.kernels.counter import uniform, words

__all__ = ["ContentNoise", "Rounded"]

_TABLE_KEY = 0x5EED


class Rounded(nn.Module):
    """A network behind the rounding of its input to multiples of 1/levels.

    The derivative of rounding is zero almost everywhere, and torch takes it to be zero everywhere:
    the graph is whole, and all gradients in the input are exactly zero.
    """

    def __init__(self, body: nn.Module, *, levels: int) -> None:
        super().__init__()
        self.body = body
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores [N, K] of the rounded images."""
        scores: Tensor = self.body(torch.round(images * self.levels) / self.levels)
        return scores


class ContentNoise(nn.Module):
    """A network behind uniform noise of +-level on its input, keyed by a hash of the image's bits.

    A defence that drew by a counter of its calls would answer by the order in which it is asked,
    and no result could be had again. Keyed by content, the same image is always answered alike, and
    an image that differs in one bit draws noise that has nothing in common with the former: along
    any path of an attack the answers are as random as a counter's. Two consequences: an attack that
    averages gradients has to ask about copies that differ, by 1e-6 say; and the gradient does not
    see the noise move, so that it holds for one draw only.
    """

    table: Tensor

    def __init__(self, body: nn.Module, shape: tuple[int, int, int], *, level: float) -> None:
        super().__init__()
        self.body = body
        self.level = level
        size = shape[0] * shape[1] * shape[2]
        halves = words(torch.tensor([_TABLE_KEY]), 0, 2 * size).view(size, 2)
        self.register_buffer("table", (halves[:, 0] << 32) | halves[:, 1] | 1, persistent=False)

    def keys(self, images: Tensor) -> Tensor:
        """Return a key [N] int64 for the bits of each image: a sum of products modulo 2^64.

        Integers wrap and are summed exactly in any order, on any device. With odd random factors,
        two images have the same key by a chance of 2^-32 at most.
        """
        # The addition makes -0.0, which is the same pixel, 0.0.
        bits = (images.detach().to(torch.float32).flatten(1) + 0.0).contiguous().view(torch.int32)
        return (bits.to(torch.int64) * self.table).sum(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores [N, K] of the noisy images."""
        drawn = uniform(self.keys(images), 0, images.shape[1:].numel())
        noise = self.level * (2 * drawn - 1)
        scores: Tensor = self.body(images + noise.to(images.dtype).view_as(images))
        return scores
