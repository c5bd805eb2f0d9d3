"""Designs of masks that tell more than independent ones: antithetic pairs, folded Hadamard.

    masks = hadamard_masks(stream(0, "hadamard", "test/17"), 1024, 64)
    scores = perturbed_scores(model.logits, image, fill, segments, masks, batch=256)
    fit = explain(masks, margin_pred(scores, label)[:, None])

Independent fair masks overlap by chance, and every chance correlation between two segments puts a
part of one's effect into the other's weight. In a Hadamard design (Plackett and Burman 1946,
https://doi.org/10.1093/biomet/33.4.305) no two columns are correlated. Folding, which adds the
complement of every row (Box and Wilson 1951), keeps all interactions of two segments out of the
weights as well.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["antithetic_masks", "hadamard_masks"]


def antithetic_masks(draws: np.random.Generator, samples: int, segments: int) -> Tensor:
    """Return masks [M, S] bool, fair and independent but for pairs: rows 2 i, 2 i + 1 complement.

    A pair's two errors cancel in part (Hammersley and Morton 1956), as in the folding of a Hadamard
    design; unlike that, any M and S will do. Row 0 is overwritten with all True, the image itself,
    as in `hadamard_masks`; of an odd M the last row stands alone.

    Args:
        draws: raw words are taken from it.
        samples: M, at least 2.
        segments: S.
    """
    count = (samples + 1) // 2 * segments
    words = draws.bit_generator.random_raw((count + 63) // 64)
    tosses = np.unpackbits(words.astype("<u8").view(np.uint8), count=count).astype(bool)
    upper = tosses.reshape(-1, segments)
    masks = np.stack([upper, ~upper], axis=1).reshape(-1, segments)[:samples]
    masks[0] = True
    return torch.from_numpy(masks)


def hadamard_masks(
    draws: np.random.Generator, samples: int, segments: int, *, original: bool = True
) -> Tensor:
    """Return masks [M, S] bool in which every segment is on in half of the rows.

    Columns are distinct, never constant columns of the Sylvester matrix of order M / 2, picked at
    random, each with a random sign; rows 2 i and 2 i + 1 are complements of each other, and the
    pairs stand in random order, so that any whole pairs make a fair sample of the design. Before
    row 0 is overwritten, columns are balanced and pairwise orthogonal exactly, and the product of
    any two is orthogonal to every third.

    With `original`, row 0 is all True: lime's convention that the first query shows the image
    itself, which also tells the predicted class. It replaces a row instead of preceding the
    design, so that M stays the number of queries. Because of the random signs the row it replaces
    is a fair random mask, so no segment is favoured; balance and orthogonality are then off by at
    most one row in M.

    Args:
        draws: raw words are taken from it; `raybench.kernels.draws.stream` of (seed, sample id).
        samples: M, a power of two, 4 or more.
        segments: S, in 1 .. M / 2 - 1.
        original: overwrite row 0 with the unperturbed image's mask.

    Raises:
        ValueError: M is no power of two, or has too few columns for S segments.
    """
    if samples < 4 or samples & (samples - 1):
        raise ValueError(f"samples must be a power of two, 4 or more, found {samples}")
    half = samples // 2
    if not 1 <= segments <= half - 1:
        raise ValueError(
            f"{samples} samples serve 1..{half - 1} segments, found {segments}; "
            "double the samples or merge segments"
        )
    # Raw Philox words are used, whose values NumPy guarantees; see kernels/draws.py.
    raw = draws.bit_generator.random_raw
    columns = np.argsort(raw(half - 1), kind="stable")[:segments] + 1
    rows = np.argsort(raw(half), kind="stable")
    signs = (raw(segments) >> np.uint64(63)).astype(bool)
    # Entry (i, j) of a Sylvester matrix is minus one to the number of ones in i AND j.
    upper = (np.bitwise_count(rows[:, None] & columns[None, :]) & 1).astype(bool) ^ signs
    masks = np.stack([upper, ~upper], axis=1).reshape(samples, segments)
    if original:
        masks[0] = True
    return torch.from_numpy(masks)
