"""Models of torchvision and timm with their published weights.

    torchvision:resnet50?weights=IMAGENET1K_V2      named weights; DEFAULT where none are named
    timm:resnet18.a1_in1k                           the tag names the weights
    timm:resnet18?checkpoint=weights.safetensors&classes=10      weights of your own

Published weights are fetched to torch's own hub folder (``TORCH_HOME``), whole and with the hash
that their name states, and are read with ``weights_only``.
"""

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raybench.core.errors import SpecError, near_miss
from raybench.core.spec import Spec
from raybench.core.types import Access, Model
from raybench.models import options as shared
from raybench.models.downloads import fetch, stated_hash
from raybench.models.weights import load_strictly, read_pickle, read_state
from raybench.models.wrap import Facts, wrap

__all__ = ["fetch_published", "load_timm", "load_torchvision", "timm_preprocess"]


def load_torchvision(spec: Spec, *, device: str) -> Model:
    """Return a torchvision classification model.

    ``weights`` names published weights (its enum's member; DEFAULT where absent) or, as
    ``checkpoint=path`` with ``classes=K``, a file of your own. Input size and normalisation are
    those of the weights' own transforms.

    Raises:
        SpecError: unknown model or weights, a failed download, a file that does not fit.
    """
    with _calm():
        torchvision: Any = importlib.import_module("torchvision")

    options = shared.read(spec, {"weights": str, "checkpoint": str})
    names = torchvision.models.list_models(module=torchvision.models)
    if spec.rest not in names:
        raise SpecError(
            f"{spec}: torchvision has no classification model named {spec.rest!r}"
            f"{near_miss(spec.rest, names)}"
        )
    if "checkpoint" in options.extra:
        _not_both(spec, options)
        with _calm():
            module = torchvision.models.get_model(
                spec.rest, weights=None, num_classes=options.classes or 1000
            )
        path = Path(options.extra["checkpoint"]).expanduser()
        load_strictly(module, read_state(path, spec), spec)
        facts = Facts(access=Access.INTERNALS, details=(("file", path.name),))
        return wrap(module, spec, options, facts, device=device)
    published = torchvision.models.get_model_weights(spec.rest)
    wanted = options.extra.get("weights", "DEFAULT")
    if wanted not in published.__members__:
        raise SpecError(
            f"{spec}: {spec.rest} has no weights named {wanted!r}"
            f"{near_miss(wanted, published.__members__)}"
        )
    weights: Any = published[wanted]
    path = fetch_published(weights.url, spec)
    # torchvision reads it once more without weights_only; a pickle that needs code stops here.
    read_pickle(path, spec)
    with _calm():
        module = torchvision.models.get_model(spec.rest, weights=weights, progress=False)
    transform = weights.transforms()
    side = int(transform.crop_size[0])
    facts = Facts(
        access=Access.INTERNALS,
        shape=(3, side, side),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        details=(
            ("weights", weights.name),
            ("preprocess", f"resize {transform.resize_size[0]}, crop {side}"),
            ("torchvision", torchvision.__version__),
        ),
    )
    return wrap(module, spec, options, facts, device=device)


def load_timm(spec: Spec, *, device: str) -> Model:
    """Return a timm model with the weights its tag names, or with those of ``checkpoint=path``.

    Input size and normalisation are those of the weights' configuration.

    Raises:
        SpecError: unknown model, a model without published weights, a failed download, or a file
            that does not fit.
    """
    with _calm():
        timm: Any = importlib.import_module("timm")
    options = shared.read(spec, {"checkpoint": str})
    if not timm.is_model(spec.rest):
        names = timm.list_models()
        raise SpecError(
            f"{spec}: timm has no model named {spec.rest!r}"
            f"{_few(near_miss(spec.rest.partition('.')[0], names))}"
        )
    config = timm.get_pretrained_cfg(spec.rest)
    if config is None:
        raise SpecError(f"{spec}: timm knows no weights with this tag")
    extra: dict[str, Any] = {}
    if "checkpoint" in options.extra:
        path = Path(options.extra["checkpoint"]).expanduser()
        source = ("file", path.name)
        if options.classes is not None:
            extra["num_classes"] = options.classes
        with _calm():
            module = timm.create_model(spec.rest, pretrained=False, **extra)
        load_strictly(module, read_state(path, spec), spec)
    else:
        state, source = _timm_state(config, spec)
        with _calm():
            module = timm.create_model(
                spec.rest,
                pretrained=True,
                # In this order of precedence timm takes the weights handed over.
                pretrained_cfg_overlay={"state_dict": state, "source": ""},
            )
    facts = Facts(
        access=Access.INTERNALS,
        shape=tuple(config.input_size),
        mean=tuple(config.mean),
        std=tuple(config.std),
        details=(source, ("preprocess", timm_preprocess(config)), ("timm", timm.__version__)),
    )
    return wrap(module, spec, options, facts, device=device)


def fetch_published(url: str, what: object) -> Path:
    """Return the file of `url` in torch's hub folder, fetched where absent and checked.

    Raises:
        SpecError: it cannot be had, or lacks the hash its name states.
    """
    name = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    fetch(
        url,
        path,
        what=what,
        manual=f"download {url}",
        sha256_prefix=stated_hash(url),
    )
    return path


def _timm_state(config: Any, spec: Spec) -> tuple[dict[str, Any], tuple[str, str]]:
    if config.custom_load:
        raise SpecError(
            f"{spec}: these weights need timm's custom loader, which is not supported; convert "
            "them and give checkpoint=path"
        )
    if config.hf_hub_id:
        return _hugging_face_state(config, spec), ("source", f"huggingface.co/{config.hf_hub_id}")
    if config.url:
        path = fetch_published(config.url, spec)
        return read_state(path, spec), ("source", config.url)
    raise SpecError(f"{spec}: no weights are published for this model; give checkpoint=path")


def _hugging_face_state(config: Any, spec: Spec) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, _, revision = config.hf_hub_id.partition("@")
    named = config.hf_hub_filename
    names = [named] if named else ["model.safetensors", "pytorch_model.bin"]
    missing: Exception | None = None
    for name in names:
        try:
            return read_state(
                Path(hf_hub_download(repository, name, revision=revision or None)), spec
            )
        except EntryNotFoundError as error:
            missing = error
        except SpecError:
            raise
        except Exception as error:  # noqa: BLE001 - the client raises its network stack's errors
            missing = error
            break
    raise SpecError(
        f"{spec}: the weights could not be had from huggingface.co/{repository} "
        f"({type(missing).__name__}). To go on by hand: download {names[0]} from there and give "
        "checkpoint=path"
    ) from missing


def timm_preprocess(config: Any) -> str:
    """Return what timm's configuration says is done to an image before the network, as text."""
    side = config.input_size[-1]
    resize = int(side / config.crop_pct)
    return f"resize {resize} ({config.interpolation}), crop {side}"


def _not_both(spec: Spec, options: shared.Options) -> None:
    if "weights" in options.extra:
        raise SpecError(f"{spec}: weights and checkpoint exclude each other; give one")


def _few(text: str) -> str:
    """Return a near-miss tail without its list of all names, which run to thousands."""
    return text.partition(" (known:")[0]


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    # Networks print while they are built, and stdout belongs to results.
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.", FutureWarning)
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        yield
