"""What LIME costs beyond the model's own forward passes, and beside the lime package.

`run()` returns ratios of CPU time on one thread:

- ``lime_over_forward_CASE``: scoring an image from pixels to its row, over the bare forward passes
  of the same perturbed copies (already in memory, at the fastest of a few batch sizes);
- ``forward_best_batch_CASE``: that batch size;
- ``lime_over_own_forward_CASE``: the same scoring over the part of it spent inside the network,
  which leaves out the choice of batch size and is steady even on a busy machine;
- ``lime_package_batchB_over_ours_CASE``: `LimeImageExplainer` with batch size B over raybench, same
  segments, k and model, one label explained by both.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import lime.lime_image
import numpy as np
import torch
from paired import Spread, cpu_seconds, paired_ratio, spread
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchvision.models import resnet18

from raybench.core.plan import Plan
from raybench.core.types import Access, Batch, ModelInfo
from raybench.evaluations.lime import LimeEvaluation
from raybench.models.torch_model import TorchModel
from raybench.models.zoo_nets import build
from raybench.runners.worker import WorkerFactory, choose_batch_size

BATCH_SIZES = (64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network on a photograph of one size under one reading."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    reading: str = "grid"
    cells: int | None = None
    samples: int = 1000
    repeats: int
    batch_sizes: tuple[int, ...] = BATCH_SIZES

    @property
    def evaluation(self) -> LimeEvaluation:
        settings = LimeEvaluation(reading=self.reading, samples=self.samples, cells=self.cells)
        return settings.resolved(self.shape)


class OnePixel(nn.Module):
    """Logits [N, C] that cost nothing: the first pixel of each image."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


GREY, COLOUR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)

OVER_FORWARD = (
    Case(name="cnn3_28", make=lambda: build("cnn3", GREY, 10), shape=GREY, repeats=9),
    Case(name="cnn3_32", make=lambda: build("cnn3", COLOUR, 10), shape=COLOUR, repeats=9),
    Case(
        name="cnn3_32_superpixel",
        make=lambda: build("cnn3", COLOUR, 10),
        shape=COLOUR,
        reading="superpixel",
        repeats=9,
    ),
    # 64 queries cannot fit the default 8x8 cells; 13 is the batch size scoring takes.
    Case(
        name="resnet18_224",
        make=resnet18,
        shape=LARGE,
        cells=7,
        samples=64,
        repeats=3,
        batch_sizes=(13, 16),
    ),
)

BESIDE_PACKAGE = (
    Case(name="free_32", make=OnePixel, shape=COLOUR, repeats=7),
    Case(name="cnn3_32", make=lambda: build("cnn3", COLOUR, 10), shape=COLOUR, repeats=3),
    Case(name="free_224", make=OnePixel, shape=LARGE, samples=250, repeats=5),
)
PACKAGE_BATCHES = (10, 250)  # lime's default, and one that suits a network


def run() -> dict[str, object]:
    """Return the ratios named in the module's docstring, each with its range."""
    before = torch.get_num_threads()
    # A worker's process, as a run makes it: one thread, and whatever else it sets for speed.
    WorkerFactory(Plan(out="", measurements=(), shard_size=1))()
    try:
        results: dict[str, object] = {}
        for case in OVER_FORWARD:
            results |= over_forward(case)
        for case in BESIDE_PACKAGE:
            results |= beside_package(case)
        return results
    finally:
        torch.set_num_threads(before)


def over_forward(case: Case) -> dict[str, Spread]:
    module, score = prepare(case)
    # The very images the model is asked about: max pooling is a tenth slower on noise.
    copies = asked_of(module, score)
    assert len(copies) == case.samples

    def forward(size: int) -> None:
        with torch.inference_mode():
            for part in copies.split(size):
                module(part)

    # Every size is tried in every round, so that a noisy choice of the best cannot tilt the ratio.
    rounds = [
        [
            *timed_inside(module, score),
            *(cpu_seconds(partial(forward, n)) for n in case.batch_sizes),
        ]
        for _ in range(case.repeats)
    ]
    scored, inside, *forwards = zip(*rounds, strict=True)
    best = min(range(len(forwards)), key=lambda index: statistics.median(forwards[index]))
    return {
        f"lime_over_forward_{case.name}": ratios(scored, forwards[best]),
        f"forward_best_batch_{case.name}": spread([float(case.batch_sizes[best])]),
        f"lime_over_own_forward_{case.name}": ratios(scored, inside),
    }


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    return spread([one / other for one, other in zip(above, below, strict=True)])


def timed_inside(module: nn.Module, score: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU seconds of `score`, and those of them spent inside `module`."""
    marks: list[float] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: marks.append(-time.process_time())),
        module.register_forward_hook(lambda *_: marks.append(time.process_time())),
    ]
    total = cpu_seconds(score)
    for handle in handles:
        handle.remove()
    return total, sum(marks)


def asked_of(module: nn.Module, score: Callable[[], object]) -> Tensor:
    """Return every image [N, C, H, W] that `score` passes through `module`."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    score()
    handle.remove()
    return torch.cat(seen)


def beside_package(case: Case) -> dict[str, Spread]:
    module, score = prepare(case)
    image = photograph(case.shape)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    segments = case.evaluation.segment(image, "photo", 0).numpy()

    def probabilities(copies: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = torch.from_numpy(copies).permute(0, 3, 1, 2).contiguous()
            return module(images).softmax(1).numpy()

    def package(batch: int) -> None:
        explainer = lime.lime_image.LimeImageExplainer(random_state=0)
        explainer.explain_instance(
            pixels,
            probabilities,
            top_labels=1,
            num_samples=case.samples,
            batch_size=batch,
            segmentation_fn=lambda _: segments,
        )

    # Its progress bar is no part of the comparison.
    bar, lime.lime_image.tqdm = lime.lime_image.tqdm, iter
    try:
        return {
            f"lime_package_batch{batch}_over_ours_{case.name}": paired_ratio(
                lambda batch=batch: package(batch), score, case.repeats
            )
            for batch in PACKAGE_BATCHES
        }
    finally:
        lime.lime_image.tqdm = bar


def prepare(case: Case) -> tuple[nn.Module, Callable[[], object]]:
    """Return the network, and the action that scores the case's image from pixels to its row."""
    torch.manual_seed(0)
    module = case.make().eval()
    with torch.inference_mode():
        classes = module(torch.zeros(1, *case.shape)).shape[1]
    info = ModelInfo(
        spec=f"python:bench:{case.name}",
        name=case.name,
        access=Access.LOGITS,
        input_shape=case.shape,
        num_classes=classes,
        fingerprint="0" * 64,
    )
    model = TorchModel(module, info)
    evaluation = case.evaluation
    batch = Batch(("photo",), ("china.jpg",), photograph(case.shape)[None])
    batch_size = choose_batch_size(case.shape, "cpu")
    return module, lambda: evaluation(model, batch, seed=0, batch_size=batch_size)


def photograph(shape: tuple[int, int, int]) -> Tensor:
    """Return a square cut of scikit-learn's photograph of a temple, scaled to `shape`."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    scaled = nn.functional.interpolate(photo[None, :, 60:316, 192:448], shape[1:], mode="area")[0]
    return scaled.mean(0, keepdim=True) if shape[0] == 1 else scaled


if __name__ == "__main__":
    for key, value in run().items():
        print(key, value)
