"""The box-constrained L-BFGS attack of Szegedy et al. (spec 02 section 2.4).

    >>> near = lbfgs(model.logits, images[:100], labels[:100])

One optimisation for each image, by SciPy on the CPU, since a line search over several would couple
them: for a few hundred images at most.

Legend: N images, C channels, H height, W width, K classes, D = C*H*W.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from raybench.kernels.attacks.common import (
    AttackResult,
    Scores,
    check_inputs,
    gradient_step,
    lp_norm,
    succeeded,
)

__all__ = ["lbfgs"]

Vector = npt.NDArray[np.float64]
Ask = Callable[[Tensor, bool], tuple[bool, float, Tensor]]
"""(image [1, C, H, W], whether with gradient) -> success, loss J to descend, its gradient."""


def lbfgs(
    scores: Scores,
    images: Tensor,
    labels: Tensor,
    *,
    search_steps: int = 5,
    max_iter: int = 1000,
    initial_c: float = 1e-2,
    targeted: bool = False,
) -> AttackResult:
    """Return the nearest successes in L2 (https://arxiv.org/abs/1312.6199; spec 02 section 2.4).

    L-BFGS-B minimises c * J(x + r, label) + ||r||_2^2 in the box [0, 1], with the cross-entropy J
    of the wanted class, or its negative for the true one, from r = 0 for each c: ten times the last
    until the minimum succeeds, then bisection. Objective and gradient are float64; the model is
    asked in float32. Of all points asked about, the nearest success is returned.

    Args:
        scores: differentiable.
        images: [N, C, H, W] float32 in [0, 1].
        labels: [N] int64, true classes, or wanted ones where `targeted`.
        search_steps: values of c tried; at least 1.
        max_iter: iterations of L-BFGS-B for each c; at least 1.
        initial_c: the first c.
        targeted: seek `labels` instead of leaving them.

    Returns:
        An iteration is an evaluation of the objective, one pass forward and back; found_at 0 is the
        original image. The original and each minimum are asked about once more, forward only.

    Raises:
        ValueError: a setting out of range or inputs that do not fit.
    """
    check_inputs(images, labels, search_steps=search_steps, max_iter=max_iter, initial_c=initial_c)
    images = images.detach()
    best = images.clone()
    nearest = torch.full(labels.shape, torch.inf, dtype=torch.float64, device=labels.device)
    found_at, found_queries = torch.full_like(labels, -1), torch.full_like(labels, -1)
    queries, gradients = torch.zeros_like(labels), torch.zeros_like(labels)
    zero_gradient = torch.zeros_like(labels, dtype=torch.bool)

    for row in range(len(labels)):

        def ask(shown: Tensor, back: bool, row: int = row) -> tuple[bool, float, Tensor]:
            success, loss, gradient = _ask(scores, shown, labels[row : row + 1], targeted, back)
            queries[row] += 1
            gradients[row] += back
            zero_gradient[row] |= back and not gradient.any()
            size = lp_norm(shown - images[row : row + 1], "l2")[0]
            if success and found_at[row] < 0:
                found_at[row], found_queries[row] = gradients[row], queries[row]
            if success and size < nearest[row]:
                nearest[row], best[row] = size, shown[0]
            return success, loss, gradient

        image = images[row : row + 1]
        if not ask(image, False)[0]:
            _search(ask, image, search_steps=search_steps, max_iter=max_iter, initial_c=initial_c)
    return AttackResult(
        images=best,
        found=found_at >= 0,
        found_at=found_at,
        found_queries=found_queries,
        queries=queries,
        gradients=gradients,
        zero_gradient=zero_gradient,
    )


def _search(ask: Ask, image: Tensor, *, search_steps: int, max_iter: int, initial_c: float) -> None:
    """Minimise for each c of the outer search; `ask` keeps what is found."""
    lower, upper, c = 0.0, float("inf"), initial_c
    for _ in range(search_steps):
        # Points on the way may overshoot the boundary; only a minimum tells whether c is enough.
        if ask(_minimum(ask, image, c, max_iter), False)[0]:
            upper = c
        else:
            lower = c
        c = 10 * c if upper == float("inf") else (lower + upper) / 2


def _minimum(ask: Ask, image: Tensor, c: float, max_iter: int) -> Tensor:
    """Return the image [1, C, H, W] float32 that minimises c * J + ||r||_2^2 in the box."""
    origin = image.flatten().to("cpu", torch.float64).numpy()

    def objective(point: Vector) -> tuple[float, Vector]:
        _, loss, gradient = ask(_as_image(point, image), True)
        moved = point - origin
        slope = gradient.flatten().to("cpu", torch.float64).numpy()
        return c * loss + float(moved @ moved), c * slope + 2 * moved

    answer = minimize(
        objective,
        origin,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * len(origin),
        options={"maxiter": max_iter},
    )
    return _as_image(answer.x, image)


def _as_image(point: Vector, like: Tensor) -> Tensor:
    """Return a point [D] as an image shaped, typed and placed like `like`."""
    return torch.from_numpy(point).to(like.device, like.dtype).clamp(0, 1).view_as(like)


def _ask(
    scores: Scores, shown: Tensor, label: Tensor, targeted: bool, back: bool
) -> tuple[bool, float, Tensor]:
    """Return, of one image, whether it succeeds, J to descend and, where `back`, J's gradient."""

    def loss(answer: Tensor) -> Tensor:
        entropy = functional.cross_entropy(answer.to(torch.float64), label, reduction="none")
        return entropy if targeted else -entropy

    if back:
        answer, values, gradient = gradient_step(scores, shown, loss)
    else:
        with torch.no_grad():
            answer = scores(shown)
        values, gradient = loss(answer), torch.zeros_like(shown)
    return bool(succeeded(answer, label, targeted=targeted)[0]), values.item(), gradient
