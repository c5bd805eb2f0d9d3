"""Attacks by gradients estimated from scores: finite differences, NES, SPSA (spec 03 s. 3.1-3.3).

    >>> result = nes(model.logits, images, labels, keys=keys, eps=0.1, queries=2000)
    >>> result.found, result.found_queries

One loop climbs a loss; what estimates the gradient (`estimators`) and what makes a step of it are
its arguments. Where all differences of an image are exactly zero, the interface rounds or the
gradient is masked: the image stays where it is, the distance of its copies doubles for the next
estimate, and `zero_gradient` tells.

Legend: N images, B of them active, C channels, H height, W width, K classes, D = C*H*W.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from raybench.kernels.attacks.common import (
    LOSSES,
    AttackResult,
    Scores,
    check_inputs,
    expand,
    project,
    succeeded,
)
from raybench.kernels.attacks.estimators import WIDEST, estimate

__all__ = ["finite_differences", "nes", "spsa"]

_NORMS = ("linf", "l2")
_PLATEAU, _DROP, _LEAST_LR = 5, 2.0, 5e-5  # labsix/limited-blackbox-attacks, as spec 03 quotes it
_DECAY1, _DECAY2, _TINY = 0.9, 0.999, 1e-8  # Adam (Kingma and Ba 2015)

# (index of the images [B], gradient [B, C, H, W], losses [B]) -> moves [B, C, H, W]
_Steps = Callable[[Tensor, Tensor, Tensor], Tensor]


def finite_differences(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    steps: int,
    step_size: float,
    h: float = 1e-2,
    coordinates: int | None = 256,
    loss: str = "margin",
    targeted: bool = False,
    batch: int = 512,
) -> AttackResult:
    """Return projected ascent on central differences of random coordinates (spec 03 section 3.1).

    Each step asks about two copies for each coordinate and one image for the step's outcome.

    Args:
        scores: images to logits; no gradient is asked of it. See `common` for the contract.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64.
        keys: [N] int64, of the draws of each image.
        norm: linf (steps of the sign) or l2 (normalised steps).
        eps: radius in pixel units.
        steps: steps at most.
        step_size: in pixel units; the length of a step in `norm`.
        h: distance of a copy from its image, at most 0.5; at least 1/255 for an 8-bit interface.
        coordinates: chosen anew for each step; None for all D.
        loss: one of `LOSSES`.
        targeted: `labels` are the wanted classes.
        batch: images asked about at once, at least 2.

    Raises:
        ValueError: a setting out of range.
    """
    _check(norm=norm, spread=("h", h), batch=batch)
    check_inputs(images, labels, steps=steps, step_size=step_size)
    if coordinates is not None and coordinates < 1:
        raise ValueError(f"coordinates must be at least 1, or None; found {coordinates}")
    size = images.shape[1:].numel()
    pairs = size if coordinates is None else min(coordinates, size)

    def plain(_index: Tensor, gradient: Tensor, _losses: Tensor) -> Tensor:
        return step_size * _unit(gradient, norm)

    return _climb(
        scores,
        images,
        labels,
        keys=keys,
        norm=norm,
        eps=eps,
        queries=1 + steps * (2 * pairs + 1),
        pairs=pairs,
        h=h,
        loss=loss,
        targeted=targeted,
        batch=batch,
        kind="coordinates",
        steps=plain,
    )


def nes(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    queries: int = 10_000,
    samples: int = 50,
    sigma: float = 1e-3,
    lr: float = 1e-2,
    momentum: float = 0.9,
    loss: str = "margin",
    targeted: bool = False,
    batch: int = 512,
) -> AttackResult:
    """Return NES ascent (Ilyas et al. 2018, https://arxiv.org/abs/1804.08598; spec 03 s. 3.2).

    The rate of an image halves (to no less than 5e-5) when the last of five losses is no better
    than their first. The paper's backtracking belongs to its partial-information attack, where a
    step can lose the target class from the list; here every step is valid.

    Args:
        scores: images to logits; no gradient is asked of it. See `common` for the contract.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64.
        keys: [N] int64, of the draws of each image.
        norm: linf (steps of the sign) or l2 (normalised steps).
        eps: radius in pixel units.
        queries: images asked about at most, for each image.
        samples: copies for each estimate, an even number; the last takes what is left.
        sigma: standard deviation of the copies, at most 0.5.
        lr: first step size in pixel units; the length of a step in `norm`.
        momentum: share of the earlier estimates in the direction, in [0, 1).
        loss: one of `LOSSES`.
        targeted: `labels` are the wanted classes.
        batch: images asked about at once, at least 2.

    Raises:
        ValueError: a setting out of range.
    """
    _check(norm=norm, spread=("sigma", sigma), batch=batch, samples=samples)
    check_inputs(images, labels, queries=queries, lr=lr)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in [0, 1); found {momentum}")
    return _climb(
        scores,
        images,
        labels,
        keys=keys,
        norm=norm,
        eps=eps,
        queries=queries,
        pairs=samples // 2,
        h=sigma,
        loss=loss,
        targeted=targeted,
        batch=batch,
        kind="gaussian",
        steps=_momentum_steps(images, lr=lr, momentum=momentum, norm=norm),
    )


def spsa(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str = "linf",
    eps: float,
    queries: int = 10_000,
    samples: int = 128,
    delta: float = 0.01,
    lr: float = 0.01,
    loss: str = "margin",
    targeted: bool = False,
    batch: int = 512,
) -> AttackResult:
    """Return SPSA with Adam (Uesato et al. 2018, https://arxiv.org/abs/1802.05666; spec 03 s. 3.3).

    Many samples (up to 8192) make it a detector of masked gradients.

    Args:
        scores: images to logits; no gradient is asked of it. See `common` for the contract.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64.
        keys: [N] int64, of the draws of each image.
        norm: of the ball that Adam's steps are projected into, linf or l2.
        eps: radius in pixel units.
        queries: images asked about at most, for each image.
        samples: copies for each estimate, an even number; the last takes what is left.
        delta: distance of a copy from its image in every pixel, at most 0.5.
        lr: Adam's rate, in pixel units.
        loss: one of `LOSSES`.
        targeted: `labels` are the wanted classes.
        batch: images asked about at once, at least 2.

    Raises:
        ValueError: a setting out of range.
    """
    _check(norm=norm, spread=("delta", delta), batch=batch, samples=samples)
    check_inputs(images, labels, queries=queries, lr=lr)
    return _climb(
        scores,
        images,
        labels,
        keys=keys,
        norm=norm,
        eps=eps,
        queries=queries,
        pairs=samples // 2,
        h=delta,
        loss=loss,
        targeted=targeted,
        batch=batch,
        kind="signs",
        steps=_adam_steps(images, lr=lr),
    )


def _climb(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    keys: Tensor,
    norm: str,
    eps: float,
    queries: int,
    pairs: int,
    h: float,
    loss: str,
    targeted: bool,
    batch: int,
    kind: str,
    steps: _Steps,
) -> AttackResult:
    """Climb `loss` by `steps` on estimates of one `kind`, each image within its `queries`."""
    check_inputs(images, labels, norm=norm, eps=eps)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}; found {loss!r}")
    images = images.detach()
    count, device = len(images), images.device

    def judge(copies: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            parts = range(0, len(copies), batch)
            answer = torch.cat([scores(copies[part : part + batch]) for part in parts])
        answer = answer.to(torch.float64)
        wanted = labels[index]
        return (
            LOSSES[loss](answer, wanted, targeted=targeted),
            succeeded(answer, wanted, targeted=targeted),
        )

    def losses_of(index: Tensor, copies: Tensor, row: Tensor) -> Tensor:
        return judge(copies, index[row])[0]

    current, best = images.clone(), images.clone()
    best_loss = torch.full((count,), -torch.inf, dtype=torch.float64, device=device)
    found_at = torch.full((count,), -1, dtype=torch.int64, device=device)
    found_queries, asked = found_at.clone(), torch.zeros_like(found_at)
    spread = torch.full((count,), h, device=device)
    silent = torch.zeros(count, dtype=torch.bool, device=device)
    active = torch.arange(count, device=device)
    # All that are active have asked equally often: every pass of the loop costs each the same.
    spent, iteration = 0, 0
    while len(active):
        values, won = judge(current[active], active)
        spent += 1
        asked[active] = spent
        better = won | (values > best_loss[active])
        best[active[better]] = current[active[better]]
        best_loss[active[better]] = values[better]
        found_at[active[won]], found_queries[active[won]] = iteration, spent
        active, values = active[~won], values[~won]
        # One query stays for the outcome of the step.
        pairs_now = min(pairs, (queries - spent - 1) // 2)
        if not len(active) or pairs_now < 1:
            break
        guess = estimate(
            partial(losses_of, active),
            current[active],
            kind,
            keys=keys[active],
            step=iteration,
            pairs=pairs_now,
            spread=spread[active],
            batch=batch,
        )
        spent, iteration = spent + 2 * pairs_now, iteration + 1
        asked[active] = spent
        deaf = active[guess.silent]
        silent[deaf] = True
        spread[deaf] = (2 * spread[deaf]).clamp_max(WIDEST)
        heard = active[~guess.silent]
        moves = steps(heard, guess.gradient[~guess.silent], values[~guess.silent])
        delta = project(current[heard] + moves - images[heard], norm, eps)
        current[heard] = (images[heard] + delta).clamp(0, 1)
    return AttackResult(
        images=best,
        found=found_at >= 0,
        found_at=found_at,
        found_queries=found_queries,
        queries=asked,
        gradients=torch.zeros_like(asked),
        zero_gradient=silent,
    )


def _unit(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    size = gradient.flatten(1).square().sum(1).sqrt()
    return gradient / expand(size.clamp_min(1e-30))


def _momentum_steps(images: Tensor, *, lr: float, momentum: float, norm: str) -> _Steps:
    trace = torch.zeros_like(images)
    rate = torch.full((len(images),), lr, device=images.device)
    window = torch.zeros(len(images), _PLATEAU, dtype=torch.float64, device=images.device)
    seen = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step(index: Tensor, gradient: Tensor, losses: Tensor) -> Tensor:
        window[index] = torch.cat([window[index, 1:], losses[:, None]], dim=1)
        seen[index] += 1
        stuck = index[(seen[index] >= _PLATEAU) & (window[index, -1] <= window[index, 0])]
        rate[stuck] = (rate[stuck] / _DROP).clamp_min(min(_LEAST_LR, lr))
        seen[stuck] = 0
        trace[index] = momentum * trace[index] + (1 - momentum) * gradient
        return expand(rate[index]) * _unit(trace[index], norm)

    return step


def _adam_steps(images: Tensor, *, lr: float) -> _Steps:
    first, second = torch.zeros_like(images), torch.zeros_like(images)
    seen = torch.zeros(len(images), dtype=torch.int64, device=images.device)

    def step(index: Tensor, gradient: Tensor, _losses: Tensor) -> Tensor:
        seen[index] += 1
        first[index] = _DECAY1 * first[index] + (1 - _DECAY1) * gradient
        second[index] = _DECAY2 * second[index] + (1 - _DECAY2) * gradient.square()
        mean = first[index] / expand(1 - _DECAY1 ** seen[index])
        power = second[index] / expand(1 - _DECAY2 ** seen[index])
        return lr * mean / (power.sqrt() + _TINY)

    return step


def _check(*, norm: str, spread: tuple[str, float], batch: int, samples: int | None = None) -> None:
    name, value = spread
    rules = (
        (norm in _NORMS, f"norm must be one of {', '.join(_NORMS)}; found {norm!r}"),
        (0 < value <= WIDEST, f"{name} must be above 0 and at most {WIDEST}; found {value}"),
        (batch >= 2, f"batch must be at least 2, a pair; found {batch}"),
        (
            samples is None or (samples >= 2 and samples % 2 == 0),
            f"samples must be an even number of at least 2; found {samples}",
        ),
    )
    for holds, text in rules:
        if not holds:
            raise ValueError(text)
