"""What LIME costs beyond the model's own forward passes, and beside the lime and captum packages.

`run()` returns ratios of CPU time on one thread. Images are scored as a worker does it: the network
in the form `raybench.models.speed` gives it.

- ``lime_over_forward_CASE``: scoring images from pixels to rows, over the bare forward passes of
  the same perturbed copies (already in memory, at the fastest of a few batch sizes) in that form;
- ``forward_best_batch_CASE``: that batch size;
- ``lime_over_own_forward_CASE``: the same scoring over the part of it spent inside the network,
  which leaves out the choice of batch size and is steady even on a busy machine;
- ``exact_over_lime_CASE``: the plain way (``--exact``) over the fast one;
- ``lime_package_batchB_over_ours_CASE``: `LimeImageExplainer` with batch size B over raybench, same
  segments, k and network, one label explained by both;
- ``captum_batchB_over_ours_CASE``: captum's `Lime`, likewise, where it can be imported: it pins an
  older NumPy and cannot stand in the lock (``PYTHONPATH`` may name a folder with it).
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType

import lime.lime_image
import numpy as np
import torch
from paired import Spread, cpu_seconds, paired_ratio, spread
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from raybench.core.plan import Plan
from raybench.core.types import Access, Batch, ModelInfo
from raybench.evaluations.lime import LimeEvaluation
from raybench.models.speed import speed_up
from raybench.models.torch_model import TorchModel
from raybench.models.zoo_nets import build
from raybench.runners.worker import WorkerFactory, choose_batch_size

BATCH_SIZES = (64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network on pieces of a photograph of one size under one reading."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    reading: str = "grid"
    cells: int | None = None
    samples: int = 1000
    repeats: int
    images: int = 2
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
        images=1,
        batch_sizes=(13, 16),
    ),
    Case(
        name="resnet50_224",
        make=resnet50,
        shape=LARGE,
        cells=7,
        samples=64,
        repeats=3,
        images=1,
        batch_sizes=(13, 16),
    ),
)

BESIDE_PACKAGE = (
    Case(name="free_32", make=OnePixel, shape=COLOUR, repeats=7),
    Case(name="cnn3_32", make=lambda: build("cnn3", COLOUR, 10), shape=COLOUR, repeats=3),
    Case(name="free_224", make=OnePixel, shape=LARGE, samples=250, repeats=5, images=1),
)
PACKAGE_BATCHES = (10, 250)  # lime's default, and one that suits a network
CAPTUM_BATCHES = (1, 100)  # its default, and the best of 10 to 250 for the small networks


def run() -> dict[str, object]:
    """Return the ratios named in the module's docstring, each with its range."""
    before = torch.get_num_threads()
    captum = _captum()
    # A worker's process, as a run makes it: one thread, and whatever else it sets for speed.
    WorkerFactory(Plan(out="", measurements=(), shard_size=1))()
    try:
        results: dict[str, object] = {}
        for case in OVER_FORWARD:
            results |= over_forward(case)
        for case in BESIDE_PACKAGE:
            results |= beside_packages(case, captum)
        return results
    finally:
        torch.set_num_threads(before)


def over_forward(case: Case) -> dict[str, Spread]:
    module, score = prepare(case)
    _, plainly = prepare(case, exact=True)
    # The very images the model is asked about: max pooling is a tenth slower on noise.
    copies = asked_of(module, score)
    assert len(copies) == case.samples * case.images

    def forward(size: int) -> None:
        with torch.inference_mode():
            for part in copies.split(size):
                module(part)

    # Every size is tried in every round, so that a noisy choice of the best cannot tilt the ratio.
    rounds = [
        [
            *timed_inside(module, score),
            cpu_seconds(plainly),
            *(cpu_seconds(partial(forward, n)) for n in case.batch_sizes),
        ]
        for _ in range(case.repeats)
    ]
    scored, inside, exactly, *forwards = zip(*rounds, strict=True)
    best = min(range(len(forwards)), key=lambda index: statistics.median(forwards[index]))
    return {
        f"lime_over_forward_{case.name}": ratios(scored, forwards[best]),
        f"forward_best_batch_{case.name}": spread([float(case.batch_sizes[best])]),
        f"lime_over_own_forward_{case.name}": ratios(scored, inside),
        f"exact_over_lime_{case.name}": ratios(exactly, scored),
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


def beside_packages(case: Case, captum: ModuleType | None) -> dict[str, Spread]:
    _, score = prepare(case)
    plain = given(case)  # as its user has it
    images = photographs(case)
    segments = [case.evaluation.segment(image, "photo", 0) for image in images]

    def with_lime(batch: int) -> None:
        explainer = lime.lime_image.LimeImageExplainer(random_state=0)
        for image, cells in zip(images, segments, strict=True):
            explainer.explain_instance(
                image.permute(1, 2, 0).contiguous().numpy(),
                partial(probabilities, plain),
                top_labels=1,
                num_samples=case.samples,
                batch_size=batch,
                segmentation_fn=lambda _, cells=cells: cells.numpy(),
            )

    def with_captum(batch: int) -> None:
        assert captum is not None
        explainer = captum.Lime(lambda copies: plain(copies).softmax(1))
        with torch.inference_mode():
            for image, cells in zip(images, segments, strict=True):
                label = int(plain(image[None]).argmax())
                explainer.attribute(
                    image[None],
                    target=label,
                    feature_mask=cells[None],
                    n_samples=case.samples,
                    perturbations_per_eval=batch,
                )

    found = {
        f"lime_package_batch{batch}_over_ours_{case.name}": paired_ratio(
            partial(with_lime, batch), score, case.repeats
        )
        for batch in PACKAGE_BATCHES
    }
    for batch in CAPTUM_BATCHES if captum else ():
        with_ours = paired_ratio(partial(with_captum, batch), score, case.repeats)
        found[f"captum_batch{batch}_over_ours_{case.name}"] = with_ours
    return found


def probabilities(module: nn.Module, copies: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        images = torch.from_numpy(copies).permute(0, 3, 1, 2).contiguous()
        found: np.ndarray = module(images).softmax(1).numpy()
        return found


def _captum() -> ModuleType | None:
    # lime's progress bar is no part of the comparison.
    lime.lime_image.tqdm = iter
    try:
        return importlib.import_module("captum.attr")
    except ImportError:
        print("captum cannot be imported, and is not compared ...", end=" ", file=sys.stderr)
        return None


def given(case: Case) -> nn.Module:
    """Return the case's network as its user has it."""
    torch.manual_seed(0)
    return case.make().eval()


def prepare(case: Case, *, exact: bool = False) -> tuple[nn.Module, Callable[[], object]]:
    """Return the network, and the action that scores the case's images from pixels to rows."""
    module = given(case)
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
    if not exact:
        speed_up(model)
    evaluation = replace(case.evaluation, exact=exact)
    images = photographs(case)
    names = tuple(f"photo-{index}" for index in range(len(images)))
    batch = Batch(names, names, images)
    batch_size = choose_batch_size(case.shape, "cpu")
    return module, lambda: evaluation(model, batch, seed=0, batch_size=batch_size)


def photographs(case: Case) -> Tensor:
    """Return the case's images: one photograph, and its mirror images."""
    image = photograph(case.shape)
    flips = [image, image.flip(2), image.flip(1), image.flip(1, 2)]
    return torch.stack(flips[: case.images])


def photograph(shape: tuple[int, int, int]) -> Tensor:
    """Return a square cut of scikit-learn's photograph of a temple, scaled to `shape`."""
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255
    scaled = nn.functional.interpolate(photo[None, :, 60:316, 192:448], shape[1:], mode="area")[0]
    return scaled.mean(0, keepdim=True) if shape[0] == 1 else scaled


if __name__ == "__main__":
    for key, value in run().items():
        print(key, value)
