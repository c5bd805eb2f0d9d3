"""Training of small classifiers, plain or adversarial (Madry et al.), the same bits every time.

Spec 01 section 1.4: Adam at 1e-3, batches of 32, cross-entropy, no augmentation; adversarially,
PGD-10 with steps of eps/4 from a random start, and only adversarial images in the loss.

Shape legend: N images, C channels, H height, W width, K classes.
"""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybench.core.errors import InputError
from raybench.core.keys import digest
from raybench.kernels.attacks.pgd import inner_maximisation

__all__ = ["Training", "default_epochs", "keyed_seed", "one_thread", "train"]

# 10 epochs are of spec 01 section 1.4 for MNIST; smaller sets get as many as give about 2,000
# steps, since 10 epochs of 1,000 images are too few to learn from [D].
_EPOCHS = 10
_LARGE = 10_000
_STEPS_SMALL = 2_000
_PGD_STEPS = 10
_log = logging.getLogger("raybench.models.zoo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a network is trained; everything that its weights depend on beside data and network.

    Attributes:
        epochs: passes over the images.
        batch: images in each step; the last, smaller batch of an epoch is used too.
        lr: Adam's learning rate.
        eps: L-infinity radius of adversarial training as an exact fraction; None trains plainly.
        seed: of initial weights, order and PGD starts.
    """

    epochs: int
    batch: int = 32
    lr: float = 1e-3
    eps: Fraction | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            (self.epochs >= 1, "epochs", "at least 1"),
            (self.batch >= 1, "batch", "at least 1"),
            (0 < self.lr < math.inf, "lr", "above 0"),
            (self.eps is None or 0 < self.eps <= 1, "eps", "above 0 and at most 1"),
        )
        for holds, name, rule in rules:
            if not holds:
                raise InputError(f"{name} must be {rule}, found {getattr(self, name)!r}")


def default_epochs(num_images: int, batch: int) -> int:
    """Return the epochs used where none are given: 10, or about 2,000 steps for small sets [D]."""
    if num_images >= _LARGE:
        return _EPOCHS
    return max(_EPOCHS, round(_STEPS_SMALL / math.ceil(num_images / batch)))


def keyed_seed(*key: object) -> int:
    """Return a seed in [0, 2**63) that is a hash of `key`, for a torch generator."""
    return int(digest([str(part) for part in key])[:16], 16) >> 1


def train(
    network: nn.Module, images: Tensor, labels: Tensor, settings: Training, *, device: str = "cpu"
) -> tuple[float, float]:
    """Train `network` in place; return its mean loss and accuracy over the last epoch's steps.

    Images are float32 [N, C, H, W] in [0, 1] and labels int64 [N]. The order of each epoch and the
    start of each attack are keyed by the seed and the step, and one thread computes, so that the
    same machine gives the same weights again. Progress is logged to ``raybench.models.zoo``. The
    network comes back on `device`, in training mode.
    """
    network.to(device).train().requires_grad_(True)
    images, labels = images.to(device), labels.to(device)
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.lr)
    began, loss_mean, accuracy = time.perf_counter(), math.nan, math.nan
    with one_thread():
        for epoch in range(settings.epochs):
            order = torch.randperm(len(images), generator=_generator(settings, "order", epoch))
            loss_sum, right = 0.0, 0
            for step, start in enumerate(range(0, len(images), settings.batch)):
                chosen = order[start : start + settings.batch].to(device)
                inputs, wanted = images[chosen], labels[chosen]
                if settings.eps is not None:
                    inputs = _attack(network, inputs, wanted, settings, (epoch, step))
                logits = network(inputs)
                loss = functional.cross_entropy(logits, wanted)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                loss_sum += float(loss.detach()) * len(chosen)
                right += int((logits.detach().argmax(1) == wanted).sum())
            loss_mean, accuracy = loss_sum / len(images), right / len(images)
            _report(epoch, settings.epochs, loss_mean, accuracy, time.perf_counter() - began)
    if not math.isfinite(loss_mean):
        raise InputError(f"training diverged (loss {loss_mean}); lower lr={settings.lr}")
    return loss_mean, accuracy


def _attack(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    settings: Training,
    key: tuple[int, int],
) -> Tensor:
    assert settings.eps is not None
    noise = torch.rand(inputs.shape, generator=_generator(settings, "start", *key)) * 2 - 1
    eps = float(settings.eps)
    return inner_maximisation(
        network,
        inputs,
        labels,
        eps=eps,
        step_size=eps / 4,
        steps=_PGD_STEPS,
        noise=noise.to(inputs.device),
    )


def _generator(settings: Training, *key: object) -> torch.Generator:
    return torch.Generator().manual_seed(keyed_seed(settings.seed, *key))


def _report(epoch: int, epochs: int, loss: float, accuracy: float, seconds: float) -> None:
    every = max(1, epochs // 10)
    if (epoch + 1) % every == 0 or epoch + 1 == epochs:
        _log.info(
            "epoch %d/%d: loss %.4f, accuracy %.3f, %.1f s",
            epoch + 1,
            epochs,
            loss,
            accuracy,
            seconds,
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread inside the block."""
    # Sums split over threads differ in their last bits from one thread count to another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(threads)
