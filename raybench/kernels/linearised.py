"""Where to push: a direction that flips the prediction, from a few differences at several scales.

    design = probe_design(draws, (1, 28, 28), probes=256)
    # ask the model at the image, its centre and centre + DELTA * design.directions, then
    found = flip_direction(design, clean, centre, probed)

A gradient with thousands of entries cannot be measured by 256 differences, but it can be estimated
if one knows how smooth it is, and the differences tell that: directions constant on large blocks
respond strongly to a smooth gradient and hardly to a rough one. The gradient is given a Gaussian
prior whose covariance is a sum over block sizes, its amplitudes are fitted to the squared
responses (empirical Bayes), and the posterior mean is the estimate. All arithmetic is float64 on
the CPU.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raybench.kernels.noise import folded_mean

__all__ = [
    "DELTA",
    "FlipDirection",
    "ProbeDesign",
    "block_sizes",
    "flip_direction",
    "nonnegative_least_squares",
    "probe_design",
]

DELTA = 1e-3  # step of the differences in pixel units: small against any radius of interest
RUNNERS_UP = 3  # classes whose gradient is estimated; the others are far by a rougher measure
_REWEIGHTINGS = 3
_FLOOR = 1e-3  # of the mean: least predicted response in a weight, and jitter of the Gram matrix
_NO_RESPONSE = 1e-9  # L1 norm given to a class whose margin moved in no direction


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """One term of the prior: gradients constant on blocks, in each channel or in all alike.

    Attributes:
        blocks: [d] int64, the block of each input value.
        sums: [k, blocks] float32, each direction summed over each block (whole numbers, exact).
        gram: [k, k] float64, sums @ sums'.
    """

    blocks: Tensor
    sums: Tensor
    gram: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDesign:
    """Directions to difference along, with what the fit needs of them; same for all images.

    Attributes:
        directions: [k, C, H, W] float32 of -1 and 1.
        scales: the prior's terms.
        energy: [k, terms] float64, expected squared response of each direction to each term.
    """

    directions: Tensor
    scales: tuple[_Scale, ...]
    energy: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipDirection:
    """The way to the nearest runner-up, by the linearised margin.

    Attributes:
        sign: [C, H, W] float32 of -1 and 1, to be added to the image.
        runner_up: the class it leads to; -1 where no other class had finite scores.
        radius: clean margin over the L1 norm of its gradient; infinite where there is no runner-up.
    """

    sign: Tensor
    runner_up: int
    radius: float


def block_sizes(height: int, width: int) -> tuple[int, ...]:
    """Return the sides of the blocks in pixels, ascending.

    1, 2, 4 and a quarter of the shorter side (an eighth above 32 pixels: a cell of the default
    grid), none above half the side: 1, 2, 4, 7 at 28 pixels and 1, 2, 4, 8 at 32.
    """
    side = min(height, width)
    sizes = {1, 2, 4, side // 4 if side <= 32 else side // 8}
    return tuple(sorted(size for size in sizes if size == 1 or 1 < size <= side // 2))


def probe_design(
    draws: np.random.Generator, shape: tuple[int, int, int], probes: int
) -> ProbeDesign:
    """Return `probes` random directions, in equal parts constant on blocks of each size.

    Args:
        draws: raw words are taken from it. Key it without an image or a model: directions shared
            by all make differences between models smaller than their noise.
        shape: (C, H, W).
        probes: k, at least the number of block sizes.

    Raises:
        ValueError: too few probes.
    """
    channels, height, width = shape
    sizes = block_sizes(height, width)
    if probes < len(sizes):
        raise ValueError(f"probes must be at least {len(sizes)}, found {probes}")
    parts = []
    for index, size in enumerate(sizes):
        share = probes // len(sizes) + (index < probes % len(sizes))
        blocks = _block_ids(shape, size, shared=False)
        tosses = _tosses(draws, share * (int(blocks.max()) + 1)).reshape(share, -1)
        parts.append(tosses.index_select(1, blocks))
    flat = torch.cat(parts)
    scales = []
    for size in sizes:
        for shared in (False, True) if channels > 1 else (False,):
            blocks = _block_ids(shape, size, shared=shared)
            sums = flat.new_zeros(probes, int(blocks.max()) + 1).index_add_(1, blocks, flat)
            wide = sums.to(torch.float64)
            scales.append(_Scale(blocks=blocks, sums=sums, gram=wide @ wide.mT))
    energy = torch.stack([scale.gram.diagonal() for scale in scales], dim=1).numpy()
    return ProbeDesign(directions=flat.reshape(probes, *shape), scales=tuple(scales), energy=energy)


def flip_direction(
    design: ProbeDesign, clean: Tensor, centre: Tensor, probed: Tensor
) -> FlipDirection:
    """Return the sign pattern that lowers the margin to the nearest runner-up fastest.

    Nearest by margin over the L1 norm of the margin's gradient, the L-infinity distance to the
    boundary of a linear model. That norm is the posterior mean of sum_j |g_j|, which counts what
    the estimate leaves open too. Scores that are not finite exclude their class.

    Args:
        design: the directions asked.
        clean: [K] float64, scores of the image.
        centre: [K] float64, scores of the image moved into [DELTA, 1 - DELTA].
        probed: [k, K] float64, scores at the centre plus DELTA times each direction.
    """
    label = int(clean.argmax())
    margins = clean[label] - clean
    slopes = ((probed[:, label, None] - probed) - (centre[label] - centre)) / DELTA
    usable = margins.isfinite() & slopes.isfinite().all(0)
    usable[label] = False
    rough = margins / slopes.square().mean(0).sqrt().clamp_min(1e-300)
    order = torch.where(usable, rough, torch.inf).argsort(stable=True)
    best = FlipDirection(
        sign=torch.ones(design.directions.shape[1:]), runner_up=-1, radius=float("inf")
    )
    for runner_up in order[: min(RUNNERS_UP, int(usable.sum()))].tolist():
        mean, norm = _gradient(design, slopes[:, runner_up])
        radius = float(margins[runner_up]) / norm
        if best.runner_up < 0 or radius < best.radius:
            sign = torch.where(mean > 0, -1.0, 1.0).reshape(best.sign.shape)
            best = FlipDirection(sign=sign, runner_up=runner_up, radius=radius)
    return best


def _gradient(design: ProbeDesign, slopes: Tensor) -> tuple[Tensor, float]:
    """Return the posterior mean [d] of the gradient behind `slopes` [k], and its expected L1."""
    count = len(design.scales[0].blocks)
    power = float(slopes.square().mean())
    if not power > 0:
        return torch.zeros(count, dtype=torch.float64), _NO_RESPONSE
    amplitudes = power * _amplitudes(design.energy, (slopes.square() / power).numpy())
    gram = torch.zeros_like(design.scales[0].gram)
    cross = torch.zeros(len(slopes), count, dtype=torch.float64)  # U K, directions by input values
    for amplitude, scale in zip(amplitudes, design.scales, strict=True):
        if amplitude > 0:
            gram += amplitude * scale.gram
            weighted = amplitude * scale.sums.to(torch.float64)
            cross += weighted.index_select(1, scale.blocks)
    gram.diagonal().add_(_FLOOR * gram.diagonal().mean())
    lower = torch.linalg.cholesky(gram)
    mean = cross.mT @ torch.cholesky_solve(slopes[:, None], lower)[:, 0]
    known = torch.linalg.solve_triangular(lower, cross, upper=False).square().sum(0)
    variance = (float(amplitudes.sum()) - known).clamp_min(0)
    return mean, float(folded_mean(mean, variance).sum())


def _amplitudes(energy: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return the prior's amplitudes [terms] that explain the squared responses [k], relatively.

    E[slope_j^2] = sum_b amplitude_b energy_jb, and the spread of a squared Gaussian is proportional
    to its mean: rows are weighted by one over the prediction, which the first fit does not know.
    """
    weights = 1 / energy.sum(1)
    for _ in range(_REWEIGHTINGS):
        amplitudes = nonnegative_least_squares(energy * weights[:, None], squares * weights)
        predicted = energy @ amplitudes
        weights = 1 / np.maximum(predicted, _FLOOR * predicted.mean())
    return amplitudes


def nonnegative_least_squares(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return argmin over x >= 0 of ||matrix x - target|| (Lawson and Hanson 1974, chapter 23).

    For a handful of unknowns; float64.

    Args:
        matrix: [rows, unknowns], rows at least unknowns.
        target: [rows].
    """
    # Columns of one length, and the problem turned so that only `unknowns` rows are left.
    lengths = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    turn, small = np.linalg.qr(matrix / lengths)
    aim = turn.T @ target
    unknowns = matrix.shape[1]
    solution: np.ndarray = np.zeros(unknowns)
    free = np.zeros(unknowns, dtype=bool)
    tolerance = 1e-12 * float(np.linalg.norm(target))
    # The method ends after few exchanges; the bound is for ties that rounding could cycle through.
    for _ in range(10 * unknowns):
        gain = np.where(free, -np.inf, small.T @ (aim - small @ solution))
        if gain.max() <= tolerance:
            break
        free[gain.argmax()] = True
        while True:
            trial = np.zeros(unknowns)
            trial[free] = np.linalg.lstsq(small[:, free], aim, rcond=None)[0]
            blocked = free & (trial <= 0)
            if not blocked.any():
                break
            # As far towards the trial as all stay non-negative; the first to reach 0 is fixed.
            steps = solution[blocked] / np.maximum(solution[blocked] - trial[blocked], 1e-300)
            solution = solution + steps.min() * (trial - solution)
            free &= solution > tolerance
            solution[~free] = 0
        solution = trial
    found: np.ndarray = solution / lengths
    return found


def _block_ids(shape: tuple[int, int, int], size: int, *, shared: bool) -> Tensor:
    """Return [C H W] int64: the block of each value; blocks at the far edges may be smaller."""
    channels, height, width = shape
    rows, columns = torch.arange(height) // size, torch.arange(width) // size
    plane = rows[:, None] * (int(columns[-1]) + 1) + columns[None, :]
    steps = torch.arange(channels) * (0 if shared else int(plane.max()) + 1)
    return (steps[:, None, None] + plane).flatten()


def _tosses(draws: np.random.Generator, count: int) -> Tensor:
    """Return `count` fair signs, float32."""
    words = draws.bit_generator.random_raw((count + 63) // 64)
    tosses = np.unpackbits(words.astype("<u8").view(np.uint8), count=count)
    return torch.from_numpy(tosses.astype(np.float32)) * 2 - 1
