"""Small models and datasets with known answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from raybench.core.errors import AccessError
from raybench.core.keys import digest
from raybench.core.types import Access, Batch, DatasetInfo, Failure, ModelInfo


@dataclass
class ToyModel:
    """A model made of a function from images [N, C, H, W] to logits [N, K]."""

    function: Callable[[Tensor], Tensor]
    info: ModelInfo
    device: str = "cpu"
    calls: int = 0

    def logits(self, images: Tensor) -> Tensor:
        if self.info.access < Access.LOGITS:
            raise AccessError("logits asked of a lower access level")
        return self._answer(images)

    def probabilities(self, images: Tensor) -> Tensor:
        if self.info.access < Access.SCORES:
            raise AccessError("probabilities asked of a lower access level")
        return self._answer(images).to(torch.float64).softmax(-1)

    def labels(self, images: Tensor) -> Tensor:
        return self._answer(images).argmax(-1)

    def activations(self, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
        raise AccessError("a toy has no layers")

    def _answer(self, images: Tensor) -> Tensor:
        self.calls += len(images)
        return self.function(images)


def toy_model(
    function: Callable[[Tensor], Tensor],
    *,
    shape: tuple[int, int, int] = (1, 8, 8),
    classes: int = 3,
    access: Access = Access.LOGITS,
    name: str = "toy",
) -> ToyModel:
    info = ModelInfo(
        spec=f"python:toy:{name}",
        name=name,
        access=access,
        input_shape=shape,
        num_classes=classes,
        fingerprint=digest(name),
    )
    return ToyModel(function, info)


def linear(shape: tuple[int, int, int] = (1, 8, 8), classes: int = 3, scale: float = 1.0, seed=0):
    """Return a function images -> logits, linear with fixed random weights."""
    generator = torch.Generator().manual_seed(seed)
    size = shape[0] * shape[1] * shape[2]
    matrix = scale * torch.randn(size, classes, generator=generator)
    return lambda images: images.flatten(1) @ matrix.to(images.dtype)


def lower(model: ToyModel, access: Access) -> ToyModel:
    return ToyModel(model.function, replace(model.info, access=access))


def toy_batch(count: int = 3, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0) -> Batch:
    images = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))
    ids = tuple(f"toy/{index}" for index in range(count))
    return Batch(ids, ids, images)


class ToyDataset:
    """Random images by id; ids in `broken` cannot be read."""

    def __init__(self, count: int, shape=(1, 8, 8), broken: Sequence[str] = ()) -> None:
        self.ids = tuple(f"toy/{index}" for index in range(count))
        self.shape, self.broken = shape, set(broken)
        self.info = DatasetInfo(
            spec=f"toy?n={count}",
            name="toy",
            shape=shape,
            num_classes=3,
            size=count,
            has_labels=True,
            fingerprint=digest(["toy", count, list(shape)]),
        )

    def read(self, ids: Sequence[str]) -> Batch:
        good = [sample_id for sample_id in ids if sample_id not in self.broken]
        images = [
            torch.rand(self.shape, generator=torch.Generator().manual_seed(int(i.split("/")[1])))
            for i in good
        ]
        failures = tuple(Failure(i, i, "broken on purpose") for i in ids if i in self.broken)
        stacked = torch.stack(images) if images else torch.empty(0, *self.shape)
        return Batch(tuple(good), tuple(good), stacked, failures)

    def labels(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([int(sample_id.split("/")[1]) % 3 for sample_id in ids])
