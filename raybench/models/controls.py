"""Known-broken defences of the digits, to check that attacks and masking tests see through them.

    control:zero-gradient     rounds its input: every gradient is exactly zero, scores are intact
    control:distilled         defensive distillation: the softmax of its logits is saturated
    control:label-only        a plain network that answers with labels alone
    control:randomised        noise on its input, drawn anew for every different image
    control:fgsm-trained      trained on single large steps, which it resists, and no others

Each is a real cnn3 trained on the digits' training split at its first use and cached as the zoo's
networks are. At L-infinity radii of 0.2 to 0.3, descent of the cross-entropy fails on the first
two for want of a gradient; scores (Square, NES, SPSA with copies 0.05 apart) break the first, a
margin or DLR loss the second, HopSkipJump the third, PGD the last. The fourth spoils single
gradients and all estimates from differences of scores, which are differences of noise; PGD, whose
path is a mean, an average of gradients, and Square break it.

Legend: N images, C channels, H height, W width, K classes.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from raybench.core import catalog
from raybench.core.errors import SpecError, near_miss
from raybench.core.keys import digest
from raybench.core.spec import Spec
from raybench.core.types import Access, Dataset, Model
from raybench.models import options as shared
from raybench.models.cache import cache_folder, exclusive
from raybench.models.controls_nets import ContentNoise, Rounded
from raybench.models.trained import restore, store
from raybench.models.training import keyed_seed, one_thread
from raybench.models.wrap import Facts, wrap
from raybench.models.zoo_nets import build

__all__ = ["CODE_VERSION", "NAMES", "load"]

# Part of the content key: raise it when the training changes, so that older weights are not used.
CODE_VERSION = 1
_DATA = "digits?split=train"
_NETWORK = "cnn3"
_LEVELS = 16  # the grey levels of the digits, whose scores rounding to them leaves as they are
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How one network is trained, with Adam.

    Attributes:
        epochs: passes over the images.
        batch: images in each step.
        lr: the learning rate.
        temperature: divides the logits in the loss (Papernot et al. 2016); above 1 a teacher is
            trained with it first, whose probabilities at this temperature are the targets.
        eps: of one gradient-sign step that every training image takes; 0 for none.
        noise: of `ContentNoise`, in training too.
    """

    epochs: int = 40
    batch: int = 64
    lr: float = 2e-3
    temperature: float = 1.0
    eps: float = 0.0
    noise: float = 0.0


_PLAIN = _Recipe()
_RECIPES: Mapping[str, _Recipe] = {
    "zero-gradient": _PLAIN,
    # Spec 05 section 5.9 has T = 100, batches of 128, 50 epochs. At T = 50 the logits of 8x8 images
    # already lie so far apart that float32 has no probability left for the other classes.
    "distilled": _Recipe(epochs=50, batch=128, lr=3e-3, temperature=50.0),
    "label-only": _PLAIN,
    "randomised": _Recipe(noise=0.5),
    # Steps without a random start, long and often: catastrophic overfitting (Wong et al. 2020).
    "fgsm-trained": _Recipe(epochs=120, lr=3e-3, eps=0.4),
}
NAMES = tuple(_RECIPES)


def load(spec: Spec, *, device: str) -> Model:
    """Return one of `NAMES`, trained now on one core if the cache does not hold it (seconds).

    ``train_seed`` sets the seed of weights and order; ``access`` and ``name`` are the usual ones.

    Raises:
        SpecError: unknown name or option.
    """
    if spec.rest not in NAMES:
        raise SpecError(f"{spec}: no control is named {spec.rest!r}{near_miss(spec.rest, NAMES)}")
    options = shared.read(spec, {"train_seed": shared.whole}, common=("access", "name"))
    recipe = _RECIPES[spec.rest]
    dataset = catalog.open_dataset(_DATA)
    key = {
        "version": CODE_VERSION,
        "network": _NETWORK,
        "data": dataset.info.fingerprint,
        "seed": options.extra.get("train_seed", 0),
        **asdict(recipe),
    }
    # By the content of the recipe alone: those trained alike share one file.
    path = cache_folder("controls") / f"{_NETWORK}-{digest(key)[:16]}.safetensors"
    network = _build(dataset, recipe, key["seed"], "student")
    facts = restore(network, path, logging.DEBUG)
    if facts is None:
        with exclusive(path):
            facts = restore(network, path, logging.WARNING)
            if facts is None:
                facts = _make(network, path, dataset, recipe, key, spec)
    if spec.rest == "zero-gradient":
        network = Rounded(network, levels=_LEVELS)
    return wrap(
        network,
        spec,
        options,
        Facts(
            access=Access.LABELS if spec.rest == "label-only" else Access.INTERNALS,
            shape=dataset.info.shape,
            num_classes=dataset.info.num_classes,
            details=tuple(sorted(facts.items())),
        ),
        device=device,
    )


def _build(dataset: Dataset, recipe: _Recipe, seed: int, role: str) -> nn.Module:
    shape, classes = dataset.info.shape, dataset.info.num_classes
    assert classes is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(seed, "control weights", role))
        network = build(_NETWORK, shape, classes)
    return ContentNoise(network, shape, level=recipe.noise) if recipe.noise else network


def _make(
    network: nn.Module,
    path: Path,
    dataset: Dataset,
    recipe: _Recipe,
    key: Mapping[str, object],
    spec: Spec,
) -> dict[str, str]:
    """Train `network` in place, write it to `path` and return the facts written with it."""
    _log.info("training %s on %s, %d epochs", spec, dataset.info.name, recipe.epochs)
    read = dataset.read(dataset.ids)
    labels = dataset.labels(read.ids)
    assert labels is not None
    classes = dataset.info.num_classes
    assert classes is not None
    targets = functional.one_hot(torch.from_numpy(labels).long(), classes).float()
    seed = int(str(key["seed"]))
    with one_thread():
        if recipe.temperature > 1:
            teacher = _build(dataset, recipe, seed, "teacher")
            _fit(teacher, read.images, targets, recipe, seed)
            with torch.no_grad():
                soft = (teacher(read.images) / recipe.temperature).softmax(1)
            loss = _fit(network, read.images, soft, recipe, seed)
        else:
            loss = _fit(network, read.images, targets, recipe, seed)
    facts = {
        "trained_on": dataset.info.spec,
        "training": json.dumps(key, sort_keys=True),
        "train_loss": f"{loss:.6f}",
        "torch": torch.__version__,
    }
    store(network, path, facts)
    return facts


def _fit(network: nn.Module, images: Tensor, targets: Tensor, recipe: _Recipe, seed: int) -> float:
    """Train `network` in place on `targets` [N, K], probabilities; return the last epoch's loss."""
    network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    mean = 0.0
    for epoch in range(recipe.epochs):
        generator = torch.Generator().manual_seed(keyed_seed(seed, "control order", epoch))
        order, total = torch.randperm(len(images), generator=generator), 0.0
        for start in range(0, len(images), recipe.batch):
            chosen = order[start : start + recipe.batch]
            inputs, wanted = images[chosen], targets[chosen]
            if recipe.eps:
                inputs = _signed_step(network, inputs, wanted, recipe.eps)
            loss = functional.cross_entropy(network(inputs) / recipe.temperature, wanted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += float(loss.detach()) * len(chosen)
        mean = total / len(images)
    network.eval()
    return mean


def _signed_step(network: nn.Module, images: Tensor, targets: Tensor, eps: float) -> Tensor:
    leaf = images.clone().requires_grad_(True)
    loss = functional.cross_entropy(network(leaf), targets, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    return (images + eps * gradient.sign()).clamp(0, 1)
