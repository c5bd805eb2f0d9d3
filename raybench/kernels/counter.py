"""Random draws on the device, keyed by sample: Philox4x32-10 (Salmon et al. 2011).

    >>> keys = torch.from_numpy(sample_keys(0, "pgd", ("test/17", "test/4")))
    >>> uniform(keys, step=0, count=784).shape
    torch.Size([2, 784])

Attacks draw inside their loops, where `draws.stream` would need one generator for each image. Here
a draw is a function of (key of the sample, step, position), computed for a whole batch at once, so
that an image draws the same whatever images stand beside it and whichever have left the batch.

Legend: N samples, a key for each; integers are int64 and hold unsigned 32-bit words.
"""

import math

import numpy as np
import torch
from torch import Tensor

from raybench.kernels.draws import key_words

__all__ = ["child_keys", "normal", "philox", "sample_keys", "signs", "uniform", "words"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def sample_keys(seed: int, purpose: str, sample_ids: tuple[str, ...]) -> np.ndarray:
    """Return a key [N] int64 for each sample: a hash of all that the draws are for."""
    keys = [key_words(seed, purpose, sample_id)[0] for sample_id in sample_ids]
    return np.array(keys, dtype=np.uint64).view(np.int64)


def philox(counters: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Return four words [..., 4] for counters and keys of one broadcast shape.

    Products of two 32-bit words wrap in int64, which keeps all 64 bits of the unsigned product.
    """
    spread = torch.broadcast_tensors(*counters, *key)  # type: ignore[no-untyped-call]
    c0, c1, c2, c3 = spread[:4]
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # In place on what this round made: half the time goes into fresh memory otherwise.
        first = (high >> 32).bitwise_and_(_MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        third = (low >> 32).bitwise_and_(_MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c0, c1, c2, c3 = first, high.bitwise_and_(_MASK), third, low.bitwise_and_(_MASK)
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1)


def words(keys: Tensor, step: int, count: int) -> Tensor:
    """Return `count` words [N, count] in 0..2^32-1 for each key [N]; `step` names the draw.

    The first words of a longer draw are those of a shorter one.
    """
    blocks = torch.arange((count + 3) // 4, device=keys.device)[None]
    zero = torch.zeros((), dtype=torch.int64, device=keys.device)
    counters = (blocks & _MASK, zero + (step & _MASK), zero + (step >> 32), zero)
    drawn = philox(counters, (keys[:, None] & _MASK, (keys[:, None] >> 32) & _MASK))
    return drawn.flatten(1)[:, :count]


def uniform(keys: Tensor, step: int, count: int) -> Tensor:
    """Return [N, count] float64, uniform in (0, 1); neither end is drawn."""
    return words(keys, step, count).to(torch.float64).add_(0.5).div_(2**32)


def normal(keys: Tensor, step: int, count: int) -> Tensor:
    """Return [N, count] float64, standard normal (Box and Muller 1958)."""
    half = (count + 1) // 2
    drawn = uniform(keys, step, 2 * half)
    radius = (-2 * drawn[:, :half].log()).sqrt()
    angle = 2 * math.pi * drawn[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def signs(keys: Tensor, step: int, count: int) -> Tensor:
    """Return [N, count] float32 of fair signs, -1 or 1."""
    drawn = words(keys, step, (count + 31) // 32)
    shifts = torch.arange(32, device=keys.device)
    tosses = (drawn[:, :, None] >> shifts) & 1
    return (2 * tosses.flatten(1)[:, :count] - 1).to(torch.float32)


def child_keys(keys: Tensor, index: int) -> Tensor:
    """Return keys [N] of an independent family of draws, for a part of what `keys` are for."""
    drawn = words(keys, (1 << 62) + index, 2)
    return drawn[:, 0] | (drawn[:, 1] << 32)
