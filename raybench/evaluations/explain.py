"""One image's explanation: from perturbed copies through the model to weights and their noise."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raybench.core.errors import InputError
from raybench.core.types import Access, Model
from raybench.evaluations.rows import NOT_FINITE
from raybench.kernels.batches import in_batches
from raybench.kernels.compose import constant_fill, segment_mean_fill
from raybench.kernels.designs import antithetic_masks, hadamard_masks
from raybench.kernels.draws import bits, stream
from raybench.kernels.fills import blur_fill
from raybench.kernels.gaussian import (
    coarse_gaussian,
    gaussian_fit,
    noise_corrected,
    normals,
    pixel_gaussian,
)
from raybench.kernels.lime import bernoulli_masks, perturbed_scores, proximity
from raybench.kernels.noise import noise_floor, sandwich, split_half, unfolded_l1
from raybench.kernels.ridge import weighted_ridge
from raybench.kernels.surrogate import fit_surrogate
from raybench.kernels.targets import TARGETS, TEMPERATURES, margin_pred, prob_at, prob_pred
from raybench.metrics.sparsity import mask_values

if TYPE_CHECKING:
    from raybench.evaluations.lime import LimeEvaluation

__all__ = ["Asked", "Explanation", "ask_image", "explain_answers", "scores_of"]

# Noise is estimated for the target and the margin, the first two responses.
_WITH_NOISE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What one image's row holds of its explanation; see the README for every column.

    Attributes:
        predicted: class of the unperturbed image.
        probability: its probability; None for a model that gives labels only.
        margin: its logit less the largest other; None where it is not known or not finite.
        weights: [d] float32 for one response; for several, the root mean square over them.
        intercept: surrogate's answer with everything switched off (no displacement, if Gaussian).
        r2: weighted coefficient of determination of the surrogate.
        num_segments: d.
        l1: ||w||_1, over several responses the mean of theirs.
        score: Eq. 2's term, `l1` over the reading's divisor.
        corrected: the score with its upward noise bias estimated and taken off.
        noise_floor: what the score would be of weights that are pure noise of the size estimated.
        half_a, half_b: the score from each half of the samples; None where a half is too few.
        margin_l1: ||w||_1 of the margin's weights.
        normalised: `margin_l1` over `margin`: no scale of the logits is left in it.
        temperature_l1: ||w||_1 for the probability at each of `TEMPERATURES`.
        temperature_probability: the probability at each of them.
    """

    predicted: int
    probability: float | None
    margin: float | None
    weights: np.ndarray
    intercept: float
    r2: float
    num_segments: int
    l1: float
    score: float
    corrected: float
    noise_floor: float
    half_a: float | None
    half_b: float | None
    margin_l1: float | None
    normalised: float | None
    temperature_l1: np.ndarray | None
    temperature_probability: np.ndarray | None

    def as_row(self) -> dict[str, Any]:
        """Return the columns of the row."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class Asked(NamedTuple):
    """An image's perturbed copies, and the model's answers to them, which may be on their way.

    Attributes:
        features: masks [M, S] on the CPU, or displacements [M, d] where the model is.
        scores: waits for the answers [M, K] and returns them, on the device of `features`.
        segments: [H, W] int64 on the CPU.
    """

    features: Tensor
    scores: Callable[[], Tensor]
    segments: Tensor


class _Fit(NamedTuple):
    """A surrogate for T responses: weights [d, T], and noise of the first two [d, 2]."""

    weights: Tensor
    intercept: Tensor
    r2: Tensor
    variance: Tensor
    halves: Tensor | None


def scores_of(model: Model) -> Callable[[Tensor], Tensor]:
    """Return what answers images with scores [N, K]: logits, else log-probabilities, else one-hot.

    Log-probabilities differ from logits by a constant in each row, which no response here sees.
    """
    if model.info.access >= Access.LOGITS:
        return model.logits
    if model.info.access >= Access.SCORES:
        return lambda images: model.probabilities(images).to(torch.float64).log()
    classes = model.info.num_classes
    return lambda images: torch.nn.functional.one_hot(model.labels(images), classes)


def ask_image(
    reading: "LimeEvaluation",
    model: Model,
    image: Tensor,
    sample_id: str,
    *,
    seed: int,
    batch_size: int,
) -> Asked | str:
    """Ask `model` about copies of `image` [C, H, W] on the CPU, or return why it cannot be.

    On a GPU this returns once all is queued, and the next image can be asked about while this one's
    answers are made and explained: nothing here waits for the device.
    """
    segments = reading.segment(image, sample_id, seed)
    try:
        reading.check_design(int(segments.max()) + 1)
    except InputError as error:
        return str(error)  # this image has more segments than the first ones, which a job tries
    ask = _gaussian if reading.gaussian else _masked
    features, scores = ask(reading, model, image, segments, sample_id, seed, batch_size)
    return Asked(features, scores, segments)


def explain_answers(reading: "LimeEvaluation", model: Model, asked: Asked) -> Explanation | str:
    """Return the explanation that the answers give under `reading`, or why there is none."""
    features, scores, segments = asked.features, asked.scores(), asked.segments
    label = int(scores[0].argmax())
    graded = model.info.access >= Access.SCORES
    target = TARGETS[reading.target](scores, label).reshape(len(scores), -1)
    if not bool(torch.isfinite(target).all()):
        return NOT_FINITE
    columns = [target]
    if graded:
        columns.append(margin_pred(scores, label)[:, None])
        if reading.exact:
            columns += [prob_pred(scores * factor, label)[:, None] for factor in TEMPERATURES]
        else:
            columns.append(prob_at(scores, label, TEMPERATURES))
    responses = torch.cat(columns, dim=1)
    # A probability of exactly zero has no logarithm: that margin is unknown, not zero.
    margin_known = graded and bool(torch.isfinite(responses[:, target.shape[1]]).all())
    fit = _fit(reading, features, responses.nan_to_num(0.0, 0.0, 0.0), target.shape[1])
    return _explanation(
        reading, fit, responses, scores, label, segments, target.shape[1], margin_known
    )


def _masked(
    reading: "LimeEvaluation",
    model: Model,
    image: Tensor,
    segments: Tensor,
    sample_id: str,
    seed: int,
    batch_size: int,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the masks [M, S], and what gives the scores [M, K] of the copies they make."""
    count = int(segments.max()) + 1
    if reading.design == "hadamard":
        masks = hadamard_masks(stream(seed, "hadamard", sample_id), reading.samples, count)
    elif reading.design == "antithetic":
        masks = antithetic_masks(stream(seed, "antithetic", sample_id), reading.samples, count)
    else:
        masks = bernoulli_masks(bits(seed, "masks", sample_id, (reading.samples, count)))
    if reading.fill == "mean":
        fill = segment_mean_fill(image, segments)
    elif reading.fill == "blur":
        # A tenth of the side wipes out what a segment shows and keeps the picture's colours.
        fill = blur_fill(image, min(image.shape[1:]) / 10)
    else:
        fill = constant_fill(image, float(reading.fill or 0))
    # The regression stays on the CPU, which has nothing else to do while a GPU goes on.
    where = [tensor.to(model.device) for tensor in (image, fill, segments, masks)]
    return masks, _to_host(perturbed_scores(scores_of(model), *where, batch=batch_size))


def _to_host(values: Tensor) -> Callable[[], Tensor]:
    """Start to copy `values` to the CPU; return what waits until they are there."""
    if values.device.type != "cuda":
        return lambda: values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def _gaussian(
    reading: "LimeEvaluation",
    model: Model,
    image: Tensor,
    segments: Tensor,
    sample_id: str,
    seed: int,
    batch_size: int,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return displacements [M, d], and what gives the scores [M, K]; row 0 is the image itself.

    Both stay where the model is: the displacements may be as many as the pixels.
    """
    del segments
    image = image.to(model.device)
    assert reading.sigma is not None, "call resolved() first"
    sigma, cells = reading.sigma, reading.cells
    columns = image.shape[0] * cells * cells if cells else image.numel()
    noise = normals(stream(seed, "gaussian", sample_id), (reading.samples, columns))
    noise[0] = 0.0
    noise = noise.to(image.device)
    answer = scores_of(model)

    def ask(part: slice) -> tuple[Tensor, Tensor]:
        copies = (
            coarse_gaussian(image, noise[part], sigma, cells)
            if cells
            else pixel_gaussian(image, noise[part], sigma)
        )
        return copies.features, answer(copies.images).to(torch.float64)

    features, scores = zip(*in_batches(reading.samples, batch_size, ask), strict=True)
    together = torch.cat(scores)
    return torch.cat(features), lambda: together


def _fit(reading: "LimeEvaluation", features: Tensor, responses: Tensor, targets: int) -> _Fit:
    noisy = responses[:, : targets + _WITH_NOISE - 1]
    if reading.gaussian:
        fit = gaussian_fit(features, responses)
        residual = responses - features.to(torch.float64) @ fit.weights - fit.intercept
        spread = (responses - responses.mean(0)).square().sum(0)
        r2 = torch.where(spread > 0, 1 - residual.square().sum(0) / spread.clamp_min(1e-300), 1.0)
        variance = fit.variance[:, : noisy.shape[1]]
        return _Fit(fit.weights, fit.intercept, r2, variance, None)
    z, pi = features.to(torch.float64), proximity(features)
    halvable = reading.samples >= 2 * features.shape[1] + 4
    if not reading.exact:
        halved = targets if halvable else 0
        return _Fit(
            *fit_surrogate(z, responses, pi, reading.alpha, noisy=noisy.shape[1], halved=halved)
        )
    ridge = weighted_ridge(z, responses, pi, reading.alpha)
    variance = sandwich(z, noisy, pi, reading.alpha).variance
    halves = split_half(z, responses[:, :targets], pi, reading.alpha) if halvable else None
    return _Fit(ridge.weights, ridge.intercept, ridge.r2, variance, halves)


def _explanation(
    reading: "LimeEvaluation",
    fit: _Fit,
    responses: Tensor,
    scores: Tensor,
    label: int,
    segments: Tensor,
    targets: int,
    margin_known: bool,
) -> Explanation:
    own, own_variance = fit.weights[:, :targets], fit.variance[:, :targets]
    weigh = _weigher(reading, segments, len(own))
    graded = responses.shape[1] > targets
    margin = float(responses[0, targets]) if margin_known else None
    margin_l1 = float(fit.weights[:, targets].abs().sum()) if margin_known else None
    corrected = (
        noise_corrected(own, own_variance).sum(0)
        if reading.gaussian
        else unfolded_l1(weigh(own), weigh(own_variance, 2))
    )
    halves = None if fit.halves is None else [_size(weigh(half)) for half in fit.halves]
    weights = own[:, 0] if targets == 1 else own.square().mean(1).sqrt()
    divisor = 1.0 if reading.reading == "superpixel-sum" else float(len(own))
    if reading.reading == "superpixel-pixel":
        divisor = 1.0  # the areas' shares that `weigh` applied already sum to one
    score = _size(weigh(own)) / divisor
    if reading.reading == "mask":
        score = _mask_share(own[:, 0], segments)
    return Explanation(
        predicted=label,
        probability=float(prob_pred(scores[:1], label)) if graded else None,
        margin=margin,
        weights=weights.to(torch.float32).cpu().numpy(),
        intercept=float(fit.intercept[0]),
        r2=float(fit.r2[:targets].mean()),
        num_segments=len(own),
        l1=_size(own),
        score=score,
        corrected=float(corrected.mean()) / divisor,
        noise_floor=float(noise_floor(weigh(own_variance, 2)).mean()) / divisor,
        half_a=halves[0] / divisor if halves else None,
        half_b=halves[1] / divisor if halves else None,
        margin_l1=margin_l1,
        normalised=margin_l1 / margin if margin_l1 is not None and margin else None,
        temperature_l1=_after(fit.weights.abs().sum(0), targets) if graded else None,
        temperature_probability=_after(responses[0], targets) if graded else None,
    )


def _after(values: Tensor, targets: int) -> np.ndarray:
    """Return the values of the temperatures: they follow the targets and the margin."""
    found: np.ndarray = values[targets + 1 :].cpu().numpy()
    return found


def _weigher(reading: "LimeEvaluation", segments: Tensor, count: int) -> Callable[..., Tensor]:
    """Return what scales weights (power 1) or variances (power 2) [d, T] before their sum."""
    if reading.reading != "superpixel-pixel":
        return lambda values, power=1: values
    area = torch.bincount(segments.flatten(), minlength=count).to(torch.float64)
    share = (area / area.sum())[:, None]
    return lambda values, power=1: values * share**power


def _size(weights: Tensor) -> float:
    """Return the mean over responses of the L1 norm of weights [d, T]."""
    return float(weights.abs().sum(0).mean())


def _mask_share(weights: Tensor, segments: Tensor) -> float:
    """Return the share of pixels in lime's three-valued mask (spec 01 section 1.5 defaults)."""
    mask = mask_values(weights.cpu().numpy())
    return float((mask[segments.cpu().numpy()] != 0).mean())
