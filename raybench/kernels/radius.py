"""The flip radius: how far in L-infinity a black box's prediction is from changing, without labels.

    found = flip_radius(model.logits, images, seed=0, queries=1000, batch=256)
    score = -found.extrapolated.mean()

The radius found is an upper bound of the true one: an actual image at that distance got another
prediction. It needs scores only (logits, or log-probabilities), and multiplying all logits by a
positive number changes nothing. A quarter of the queries estimates which way to go (`linearised`);
the rest shrinks the radius for as long as the prediction stays flipped, and otherwise improves the
signs by the square windows of Andriushchenko et al. 2020 (https://arxiv.org/abs/1912.00049).

Every image spends exactly the same number of queries, and directions and windows are the same for
all images and models, so differences between models are paired.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raybench.kernels.draws import stream
from raybench.kernels.linearised import (
    DELTA,
    FlipDirection,
    ProbeDesign,
    flip_direction,
    probe_design,
)

__all__ = [
    "CAP",
    "CHECKPOINTS",
    "RadiusResult",
    "flip_radius",
    "num_probes",
    "queries_asked",
    "square_side",
]

CAP = 0.3  # radii beyond this say nothing more about brittleness
CHECKPOINTS = (0.64, 0.768, 0.896, 1.0)  # shares of the queries at which the radius is recorded
PROBE_SHARE = 0.256
MAX_PROBES = 256
LEAST_QUERIES = 64

_EXTRAPOLATE = 4.0  # the trend is followed to this many times the queries
_SMALLEST = 1e-4  # radii below are recorded as this: their logarithm must stay finite
_FIRST_SHRINK = 0.7
_SHRINK = 0.85
_SQUARE_SHARE = 0.8  # share of the image in the first window
# Square attack's schedule, in ten-thousandths of the queries: the window's area is divided by ...
_SCHEDULE = (
    (10, 1),
    (50, 2),
    (200, 4),
    (500, 8),
    (1000, 16),
    (2000, 32),
    (4000, 64),
    (6000, 128),
    (8000, 256),
)
_LAST_DIVISOR = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RadiusResult:
    """Flip radii of N images, all on the CPU; radii in pixel units, float64.

    Attributes:
        queries: model queries spent on each image.
        checkpoints: queries after which `radii` were recorded.
        radii: [N, checkpoints], smallest radius at which the prediction was seen to change, in
            [1e-4, 1]; 1 where it never changed. The last column is the result of all queries.
        extrapolated: [N], where the trend over the checkpoints leads at four times the queries, at
            most `CAP`. No bound; it is closer to the true radius than the last column.
        linearised: [N], clean margin over the estimated L1 norm of its gradient.
        predicted: [N] int64, class of the unperturbed image.
        margin: [N], its score minus the next one's, at the unperturbed image.
        finite: [N] bool; False where an answer held NaN, and all radii of that image are NaN.
    """

    queries: int
    checkpoints: tuple[int, ...]
    radii: Tensor
    extrapolated: Tensor
    linearised: Tensor
    predicted: Tensor
    margin: Tensor
    finite: Tensor


def flip_radius(
    scores: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    seed: int,
    queries: int = 1000,
    batch: int = 256,
    fill: int = 1,
) -> RadiusResult:
    """Return the L-infinity radius at which the predicted class of each image changes.

    Images walk in lock-step, one query each a step; none looks at another, so a result depends on
    its neighbours only as far as the model's own rounding does. A batch that does not fit the
    device's memory is halved.

    Args:
        scores: images [B, C, H, W] float32 -> logits or log-probabilities [B, K].
        images: [N, C, H, W] in [0, 1], on the model's device; N at least 1.
        seed: keys the directions and windows; the same for models to be compared.
        queries: model queries for each image, at least 64; exactly so many are made.
        batch: largest number of images in one call.
        fill: copies of the first image fill every step of the search up to this number. A forward
            pass of another size rounds otherwise, and the search follows the difference.

    Raises:
        ValueError: a setting out of range, images not [N, C, H, W], or fewer than two classes.
    """
    if queries < LEAST_QUERIES:
        raise ValueError(f"queries must be at least {LEAST_QUERIES}, found {queries}")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be [N, C, H, W] with N >= 1, found {tuple(images.shape)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, found {batch}")
    images = images.to(torch.float32)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    probes = num_probes(queries)
    design = probe_design(stream(seed, "radius directions", "common"), shape, probes)
    ask = _Asker(scores, batch, fill)
    starts = [_start(ask, image, design) for image in images]
    clean = torch.stack([first for first, _, _ in starts])
    finite = torch.stack([known for _, known, _ in starts])
    predicted = clean.argmax(1)
    signs = torch.stack([found.sign for _, _, found in starts]).to(images.device)
    windows = _windows(seed, shape, queries=queries, spent=probes + 3)
    checkpoints = tuple(round(share * queries) for share in CHECKPOINTS)
    radii, searched = _search(
        ask, images, signs, predicted, windows, spent=probes + 2, checkpoints=checkpoints
    )
    finite &= searched
    radii = torch.where(finite[:, None], radii, torch.nan)
    return RadiusResult(
        queries=queries,
        checkpoints=checkpoints,
        radii=radii,
        extrapolated=_extrapolate(radii, checkpoints),
        linearised=torch.tensor([found.radius for _, _, found in starts], dtype=torch.float64),
        predicted=predicted,
        margin=_margins(clean, predicted),
        finite=finite,
    )


def num_probes(queries: int) -> int:
    """Return how many of an image's queries estimate its direction, two at the image left out."""
    return min(MAX_PROBES, round(PROBE_SHARE * queries))


def queries_asked(images: int, queries: int, fill: int) -> int:
    """Return how many images `flip_radius` asks about, those that fill up the search included."""
    search = queries - num_probes(queries) - 2
    return images * queries + max(0, fill - images) * search


def square_side(spent: int, queries: int, height: int, width: int) -> int:
    """Return the side in pixels of the window proposed after `spent` of `queries` queries."""
    now = int(spent / queries * 10000)
    divisor = next((divide for until, divide in _SCHEDULE if now <= until), _LAST_DIVISOR)
    side = round(math.sqrt(_SQUARE_SHARE / divisor * height * width))
    return max(1, min(side, min(height, width) - 1))


class _Asker:
    """The model's scores in float64 on the CPU, `batch` images at a time, halved as memory asks."""

    def __init__(self, scores: Callable[[Tensor], Tensor], batch: int, fill: int) -> None:
        self._scores = scores
        self._batch = batch
        self._fill = fill

    def filled(self, images: Tensor) -> Tensor:
        """Return the answers to `images`, asked among copies of the first where they are few."""
        copies = images[:1].expand(max(0, self._fill - len(images)), -1, -1, -1)
        return self(torch.cat([images, copies]))[: len(images)]

    def __call__(self, images: Tensor) -> Tensor:
        answers: list[Tensor] = []
        start = 0
        while start < len(images):
            try:
                part = self._scores(images[start : start + self._batch])
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
                self._batch = max(1, self._batch // 2)
                torch.cuda.empty_cache()
                continue
            answers.append(part.detach().to("cpu", torch.float64))
            start += len(part)
        found = torch.cat(answers)
        if found.ndim != 2 or found.shape[1] < 2:
            raise ValueError(
                f"scores must be [B, K] with at least two classes, found {tuple(found.shape)}"
            )
        return found


def _start(ask: _Asker, image: Tensor, design: ProbeDesign) -> tuple[Tensor, Tensor, FlipDirection]:
    """Return clean scores [K], whether no answer was NaN, and the direction, for one image.

    An image is asked alone: its differences are small, and must not hold rounding that depends on
    its neighbours.
    """
    centre = image.clamp(DELTA, 1 - DELTA)
    around = centre + DELTA * design.directions.to(image.device)
    answers = ask(torch.cat([image[None], centre[None], around]))
    known = ~answers.isnan().any()
    return answers[0], known, flip_direction(design, answers[0], answers[1], answers[2:])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """One proposal, shared by all images: a square and a sign for each channel [C, 1, 1]."""

    side: int
    row: int
    column: int
    signs: Tensor


def _windows(seed: int, shape: tuple[int, int, int], *, queries: int, spent: int) -> list[_Window]:
    """Return a window for every query after the first `spent`, whether it will be used or not."""
    channels, height, width = shape
    raw = stream(seed, "radius windows", "common").bit_generator.random_raw
    windows = []
    for done in range(spent, queries):
        side = square_side(done, queries, height, width)
        row, column = (int(word) for word in raw(2))
        tosses = raw((channels + 63) // 64).astype("<u8").view(np.uint8)
        signs = np.unpackbits(tosses, count=channels).astype(np.float32) * 2 - 1
        windows.append(
            _Window(
                side=side,
                row=row % (height - side + 1),
                column=column % (width - side + 1),
                signs=torch.from_numpy(signs)[:, None, None],
            )
        )
    return windows


def _search(
    ask: _Asker,
    images: Tensor,
    signs: Tensor,
    predicted: Tensor,
    windows: list[_Window],
    *,
    spent: int,
    checkpoints: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Return radii [N, checkpoints] and whether no answer was NaN [N].

    An image either shrinks (its last query flipped: the same signs at a smaller radius) or proposes
    a window (the same radius, other signs, kept where the margin fell). Radii and margins are
    float64 on the CPU; only signs and images live on the device.
    """
    count = len(images)
    radius = torch.ones(count, dtype=torch.float64)
    margin, finite = _moved_margins(ask, images, signs, radius, predicted)
    shrinking = margin < 0
    best = torch.where(shrinking, 1.0, 2.0).to(torch.float64)  # 2: not flipped yet
    first = torch.ones(count, dtype=torch.bool)
    recorded = {spent + 1: best}
    for query, window in enumerate(windows, start=spent + 2):
        factor = torch.where(first, _FIRST_SHRINK, _SHRINK).to(torch.float64)
        radius = torch.where(shrinking, radius * factor, radius)
        hold = shrinking.to(signs.device)[:, None, None, None]
        asked = torch.where(hold, signs, _proposed(signs, window))
        found, known = _moved_margins(ask, images, asked, radius, predicted)
        finite &= known
        flipped = found < 0
        better = ~shrinking & (found < margin)
        signs = torch.where(better.to(signs.device)[:, None, None, None], asked, signs)
        margin = torch.where(shrinking | better, found, margin)
        best = torch.where(flipped, torch.minimum(best, radius), best)
        first &= ~shrinking | flipped
        shrinking = flipped
        recorded[query] = best
    radii = torch.stack([recorded[query] for query in checkpoints], dim=1)
    return radii.clamp(_SMALLEST, 1.0), finite


def _proposed(signs: Tensor, window: _Window) -> Tensor:
    """Return `signs` with the window's own inside it, or with it flipped where they are equal."""
    rows = slice(window.row, window.row + window.side)
    columns = slice(window.column, window.column + window.side)
    inside = signs[:, :, rows, columns]
    fresh = window.signs.to(signs.device).expand_as(inside)
    same = (inside == fresh).flatten(1).all(1)[:, None, None, None]
    proposed = signs.clone()
    proposed[:, :, rows, columns] = torch.where(same, -fresh, fresh)
    return proposed


def _moved_margins(
    ask: _Asker, images: Tensor, signs: Tensor, radius: Tensor, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """Return margins [N] at the moved images, and whether each answer was free of NaN [N]."""
    steps = radius.to(images.device, images.dtype)[:, None, None, None]
    answers = ask.filled((images + steps * signs).clamp(0, 1))
    return _margins(answers, predicted), ~answers.isnan().any(1)


def _margins(scores: Tensor, predicted: Tensor) -> Tensor:
    """Return [N]: the score of the class `predicted` minus the largest other score."""
    own = scores.gather(1, predicted[:, None])[:, 0]
    return own - scores.scatter(1, predicted[:, None], -torch.inf).amax(1)


def _extrapolate(radii: Tensor, checkpoints: tuple[int, ...]) -> Tensor:
    """Return [N]: the least-squares line of log radius on log queries, at four times the queries.

    Radii are capped before the fit: what happens beyond the cap is not part of the trend.
    """
    capped = radii.clamp(max=CAP)
    # Relative to the last, so that radii that did not move have a slope of zero to the bit.
    logs = (capped / capped[:, -1:]).log()
    positions = torch.tensor(checkpoints, dtype=torch.float64).log()
    positions -= positions.mean()
    slope = (logs * positions).sum(1) / positions.square().sum()
    return (capped[:, -1] * _EXTRAPOLATE**slope).clamp(max=CAP)
