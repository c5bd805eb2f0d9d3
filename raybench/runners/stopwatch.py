"""A model whose own forward and backward passes are timed.

    timed = TimedModel(model)
    rows = evaluation(timed, batch, seed=0, batch_size=64)
    timed.seconds                                  # of the model itself, of all that this took

Answers are the model's own, bit for bit. On a GPU the device's clock counts, by events in its
stream: calls return there long before they are done.
"""

import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raybench.core.types import Model

__all__ = ["TimedModel"]

_PENDING = 1024  # pairs of events kept before they are added up, which waits for the device


class TimedModel:
    """The model inside, with `seconds` spent in it.

    A backward pass counts from the gradient of the model's output to that of its input, where a
    kernel takes gradients with respect to the images. Gradients of anything else are not counted.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._clock: Any = _Events() if model.device.startswith("cuda") else _Wall()
        self._since: Any = None
        # Tensors that have their hook already: an attack asks about the same one at every step.
        self._watched: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self.device = model.device
        self.info = model.info

    @property
    def seconds(self) -> float:
        """Return the seconds so far; on a GPU, once it is through with them."""
        return float(self._clock.total())

    def labels(self, images: Tensor) -> Tensor:
        """Return the predicted classes [N] int64."""
        with self._forward():
            return self._model.labels(images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities [N, K] float64 (SCORES)."""
        with self._forward():
            answer = self._model.probabilities(images)
        return self._watch(images, answer)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, K] (LOGITS); differentiable from GRADIENTS up."""
        with self._forward():
            answer = self._model.logits(images)
        return self._watch(images, answer)

    def activations(self, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
        """Return the outputs of the named layers (INTERNALS), batch first."""
        with self._forward():
            answer = self._model.activations(images, layers)
        for tensor in answer.values():
            self._watch(images, tensor)
        return answer

    @contextmanager
    def _forward(self) -> Iterator[None]:
        self._since = None
        begun = self._clock.mark()
        try:
            yield
        finally:
            self._clock.add(begun)

    def _watch(self, images: Tensor, answer: Tensor) -> Tensor:
        """Have the backward pass from `answer` to `images` timed, if there is one; return it."""
        if images.requires_grad and answer.requires_grad:
            answer.register_hook(self._enter)  # type: ignore[no-untyped-call]
            if self._watched.get(id(images)) is not images:
                self._watched[id(images)] = images
                images.register_hook(self._leave)  # type: ignore[no-untyped-call]
        return answer

    def _enter(self, gradient: Tensor) -> None:
        del gradient
        if self._since is None:  # of several answers in one pass, the first
            self._since = self._clock.mark()

    def _leave(self, gradient: Tensor) -> None:
        del gradient
        if self._since is not None:
            self._clock.add(self._since)
            self._since = None


class _Wall:
    """The clock of a device that is done when the call returns."""

    def __init__(self) -> None:
        self._total = 0.0

    def mark(self) -> float:
        return time.perf_counter()

    def add(self, since: float) -> None:
        self._total += time.perf_counter() - since

    def total(self) -> float:
        return self._total


class _Events:
    """The clock of a CUDA device, read in its stream and added up now and then."""

    def __init__(self) -> None:
        self._total = 0.0
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def add(self, since: torch.cuda.Event) -> None:
        self._pending.append((since, self.mark()))
        if len(self._pending) >= _PENDING:
            self.total()

    def total(self) -> float:
        if self._pending:
            self._pending[-1][1].synchronize()
            self._total += sum(begun.elapsed_time(end) for begun, end in self._pending) / 1e3
            self._pending.clear()
        return self._total
