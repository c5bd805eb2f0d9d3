"""The built-in six: mlp2, cnn3 and cnn5, each plain and ``-adv``, trained on first use and cached.

    zoo:cnn3-adv                                    on the embedded digits
    zoo:cnn5?data=mnist&root=/data/mnist&train_seed=1

``data`` names a dataset with a training split (its other options go inside, percent-encoded);
``root``, ``n`` are passed on to it. ``epochs``, ``batch``, ``lr``, ``train_seed`` and, for
``-adv``, ``eps`` (a fraction such as 8/255) set the training. Weights are kept in the cache folder
under a content key: what they were trained from and how.
"""

import json
import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybench.core import catalog
from raybench.core.errors import InputError, SpecError, near_miss
from raybench.core.keys import digest
from raybench.core.spec import Spec, parse
from raybench.core.types import Access, Dataset, Model
from raybench.models import options as shared
from raybench.models.cache import cache_folder, exclusive
from raybench.models.trained import restore, store
from raybench.models.training import Training, default_epochs, keyed_seed, train
from raybench.models.wrap import Facts, wrap
from raybench.models.zoo_nets import NETWORKS, build

__all__ = ["CODE_VERSION", "NAMES", "load"]

# Part of the content key: raise it when the training or the networks change, so that weights of
# older code are trained anew.
CODE_VERSION = 1

NAMES = tuple(f"{name}{suffix}" for name in NETWORKS for suffix in ("", "-adv"))
DEFAULT_EPS = Fraction(8, 255)
_log = logging.getLogger(__name__)


def load(spec: Spec, *, device: str) -> Model:
    """Return one of `NAMES`, trained now if the cache does not hold it.

    Training runs on `device`: seconds to a minute for the digits on one core. Several processes
    that ask for the same model wait for the first.

    Raises:
        SpecError: unknown name or option, ``eps`` for a plain model, or data without labels.
    """
    if spec.rest not in NAMES:
        raise SpecError(f"{spec}: the zoo has no {spec.rest!r}{near_miss(spec.rest, NAMES)}")
    options = shared.read(
        spec,
        {
            "data": str,
            "root": str,
            "n": shared.positive,
            "epochs": shared.positive,
            "batch": shared.positive,
            "lr": _rate,
            "eps": fraction,
            "train_seed": shared.whole,
        },
        common=("access", "name", "precision"),
    )
    own = options.extra
    adversarial = spec.rest.endswith("-adv")
    if not adversarial and "eps" in own:
        raise SpecError(
            f"{spec}: eps belongs to adversarial training; did you mean {spec.rest}-adv?"
        )
    dataset = _training_data(spec, own)
    info = dataset.info
    batch = own.get("batch", 32)
    try:
        settings = Training(
            epochs=own.get("epochs", default_epochs(info.size, batch)),
            batch=batch,
            lr=own.get("lr", 1e-3),
            eps=own.get("eps", DEFAULT_EPS) if adversarial else None,
            seed=own.get("train_seed", 0),
        )
    except InputError as error:
        raise SpecError(f"{spec}: {error}") from error
    assert info.num_classes is not None
    recipe = {
        "version": CODE_VERSION,
        "network": spec.rest.removesuffix("-adv"),
        "shape": list(info.shape),
        "classes": info.num_classes,
        "data": info.fingerprint,
        "epochs": settings.epochs,
        "batch": settings.batch,
        "lr": settings.lr,
        "eps": None if settings.eps is None else str(settings.eps),
        "seed": settings.seed,
    }
    path = cache_folder("zoo") / f"{spec.rest}-{digest(recipe)[:16]}.safetensors"
    # First without the lock, which a cache that can only be read does not allow.
    network, facts = _cached(path, recipe, logging.DEBUG) or (None, {})
    if network is None:
        with exclusive(path):
            network, facts = _cached(path, recipe, logging.WARNING) or (None, {})
            if network is None:
                network, facts = _train(path, recipe, dataset, settings, spec, device)
    return wrap(
        network,
        spec,
        options,
        Facts(
            access=Access.INTERNALS,
            shape=info.shape,
            num_classes=info.num_classes,
            details=tuple(sorted(facts.items())),
        ),
        device=device,
    )


def fraction(raw: str) -> Fraction:
    """Convert ``8/255`` or ``0.1`` to an exact fraction above 0 and at most 1."""
    try:
        value = Fraction(raw)
    except (ValueError, ZeroDivisionError):
        raise ValueError("expected a fraction such as 8/255") from None
    if not 0 < value <= 1:
        raise ValueError("expected a fraction above 0 and at most 1, such as 8/255")
    return value


def _rate(raw: str) -> float:
    (value,) = shared.floats(raw.replace(",", " "))
    return value


def _training_data(spec: Spec, own: Any) -> Dataset:
    data = parse(own.get("data", "digits")).with_options(split="train")
    passed = {name: own[name] for name in ("root", "n") if name in own}
    dataset = catalog.open_dataset(data.with_options(**passed))
    if not dataset.info.has_labels or dataset.info.num_classes is None:
        raise SpecError(f"{spec}: {dataset.info.name} has no labels to train on")
    return dataset


def _read(dataset: Dataset, spec: Spec) -> tuple[Tensor, Tensor]:
    batch = dataset.read(dataset.ids)
    if batch.failures:
        first = batch.failures[0]
        raise SpecError(
            f"{spec}: {len(batch.failures)} training images cannot be read, first "
            f"{first.source}: {first.error}"
        )
    labels = dataset.labels(batch.ids)
    assert labels is not None
    return batch.images, torch.from_numpy(labels).long()


def _build(recipe: dict[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(recipe["seed"], "weights", recipe["network"]))
        return build(recipe["network"], tuple(recipe["shape"]), recipe["classes"])


def _train(
    path: Path,
    recipe: dict[str, Any],
    dataset: Dataset,
    settings: Training,
    spec: Spec,
    device: str,
) -> tuple[nn.Module, dict[str, str]]:
    images, labels = _read(dataset, spec)
    _log.info(
        "training %s on %s (%d images, %d epochs)",
        spec.rest,
        dataset.info.name,
        len(images),
        settings.epochs,
    )
    network = _build(recipe)
    loss, accuracy = train(network, images, labels, settings, device=device)
    network.cpu().eval()
    facts = {
        "trained_on": dataset.info.spec,
        "training": json.dumps(recipe, sort_keys=True),
        "training_defaults": "raybench [D], spec 01 section 1.4",
        "train_loss": f"{loss:.6f}",
        "train_accuracy": f"{accuracy:.6f}",
        "torch": torch.__version__,
    }
    store(network, path, facts)
    return network, facts


def _cached(
    path: Path, recipe: dict[str, Any], level: int
) -> tuple[nn.Module, dict[str, str]] | None:
    """Return what `path` holds, or None where it is absent or, logged at `level`, damaged."""
    if not path.exists():
        return None
    network = _build(recipe)
    facts = restore(network, path, level)
    return None if facts is None else (network, facts)
