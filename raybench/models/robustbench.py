"""The RobustBench model zoo: ``robustbench:DATASET/THREAT/NAME?model_dir=folder``.

Architectures, names and file ids are those of the robustbench package; the fetching is ours,
since its own keeps quota pages as checkpoints and checks no hash, and so is the loading, always
with ``weights_only``. ``model_dir`` has robustbench's layout, DATASET/THREAT/NAME.pt, and defaults
to the cache folder. Normalisation is inside every network.
"""

import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raybench.core.errors import SpecError, near_miss
from raybench.core.spec import Spec
from raybench.core.types import Access, Model
from raybench.models import options as shared
from raybench.models.cache import cache_folder
from raybench.models.downloads import GOOGLE_DRIVE, fetch, google_drive, stated_hash
from raybench.models.hubs import fetch_published, timm_preprocess
from raybench.models.weights import load_strictly, read_pickle, read_state
from raybench.models.wrap import Facts, wrap

__all__ = ["listing", "load"]

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}

# What follows repeats robustbench 1.1.1, utils.load_model: which checkpoints hold two models, ...
_LAST_OF_TWO = ("Kireev2021Effectiveness", "Andriushchenko2020Understanding")
# ... which need timm's renaming of Swin weights, ...
_SWIN = frozenset(
    {
        "Liu2023Comprehensive_Swin-B",
        "Liu2023Comprehensive_Swin-L",
        "Mo2022When_Swin-B",
        "RodriguezMunoz2024Characterizing_Swin-B",
        "RodriguezMunoz2024Characterizing_Swin-L",
    }
)
# ... and which ImageNet networks have no normalising layer around them.
_BARE = frozenset(
    {
        "Singh2023Revisiting_ConvNeXt-T-ConvStem",
        "Singh2023Revisiting_ViT-B-ConvStem",
        "Singh2023Revisiting_ConvNeXt-S-ConvStem",
        "Singh2023Revisiting_ConvNeXt-B-ConvStem",
        "Singh2023Revisiting_ConvNeXt-L-ConvStem",
        "Peng2023Robust",
        "Chen2024Data_WRN_50_2",
        "Xu2024MIMIR_Swin-B",
        "Xu2024MIMIR_Swin-L",
    }
)
# Constants that constructors set; a checkpoint may lack them. Nothing else may be missing.
_CONSTANTS = frozenset({"mu", "sigma", "mean", "std", "num_batches_tracked"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One line of the RobustBench zoo, found from a spec."""

    spec: Spec
    dataset: str
    threat: str
    name: str
    fields: Mapping[str, Any]
    folder: Path
    drive: str

    def file(self, index: int | None = None) -> Path:
        """Return where the checkpoint lies; ensembles have one file for each member."""
        tail = "" if index is None else f"_m{index}.pt"
        return self.folder / self.dataset / self.threat / f"{self.name}.pt{tail}"

    def state(self, file_id: str, index: int | None = None) -> Any:
        """Return what the checkpoint holds, fetched where it is absent."""
        path = self.file(index)
        fetch(
            google_drive(file_id, self.drive),
            path,
            what=self.spec,
            manual=f"open https://drive.google.com/file/d/{file_id}/view, download the file",
        )
        return read_pickle(path, self.spec)


def load(spec: Spec, *, device: str, drive: str = GOOGLE_DRIVE) -> Model:
    """Return a model of the RobustBench zoo; `drive` is where Google Drive ids are asked for.

    Raises:
        SpecError: unknown dataset, threat or name; a failed download (with the manual steps); a
            checkpoint that needs code, or does not fit its architecture.
    """
    options = shared.read(spec, {"model_dir": str}, common=("access", "name", "precision"))
    folder = options.extra.get("model_dir")
    entry = _find(spec, Path(folder).expanduser() if folder else cache_folder("robustbench"), drive)
    with _quiet():
        network, ignored = _network(entry)
    preprocess = entry.fields.get("preprocessing") or _timm_preprocess(entry)
    details = [("robustbench_name", entry.name), ("threat", entry.threat)]
    if preprocess:
        details.append(("preprocess", preprocess))
    if ignored:
        details.append(("ignored_weights", str(ignored)))
    side = 32
    if entry.dataset == "imagenet":
        side = 288 if preprocess == "Crop288" else 224
    facts = Facts(
        access=Access.INTERNALS,
        shape=(3, side, side),
        num_classes=_CLASSES[entry.dataset],
        normalisation="inside the RobustBench network",
        details=tuple(details),
    )
    return wrap(network, spec, options, facts, device=device)


def listing() -> dict[str, list[str]]:
    """Return the names of all models by ``dataset/threat``, in RobustBench's order.

    Raises:
        SpecError: the package cannot be imported.
    """
    with _quiet():
        zoo = _import("robustbench.model_zoo").model_dicts
    return {
        f"{dataset.value}/{threat.value}": list(models)
        for dataset, threats in zoo.items()
        for threat, models in threats.items()
    }


def _find(spec: Spec, folder: Path, drive: str) -> _Entry:
    pieces = spec.rest.split("/")
    if len(pieces) != 3:
        raise SpecError(
            f"{spec}: expected robustbench:DATASET/THREAT/NAME, such as "
            "robustbench:cifar10/Linf/Engstrom2019Robustness"
        )
    dataset, threat, name = pieces
    with _quiet():
        zoo = _import("robustbench.model_zoo").model_dicts
    datasets = {key.value: value for key, value in zoo.items()}
    if dataset not in datasets:
        raise SpecError(
            f"{spec}: RobustBench has no dataset {dataset!r}{near_miss(dataset, datasets)}"
        )
    threats = {key.value: value for key, value in datasets[dataset].items()}
    if threat not in threats:
        raise SpecError(
            f"{spec}: RobustBench has no threat {threat!r} for {dataset}"
            f"{near_miss(threat, threats)}"
        )
    if name not in threats[threat]:
        raise SpecError(
            f"{spec}: RobustBench has no {dataset}/{threat} model named {name!r}"
            f"{near_miss(name, threats[threat])}"
        )
    return _Entry(
        spec=spec,
        dataset=dataset,
        threat=threat,
        name=name,
        fields=threats[threat][name],
        folder=folder,
        drive=drive,
    )


def _network(entry: _Entry) -> tuple[nn.Module, int]:
    """Return the network with its weights, and how many entries of the file it has no use for.

    Files are fetched before the network is built, so that a missing one is told in seconds.
    """
    ids = entry.fields["gdrive_id"]
    if isinstance(ids, list):
        parts = [entry.state(file_id, index) for index, file_id in enumerate(ids)]
        return _ensemble(entry, parts)
    if entry.dataset == "imagenet" and "Standard" in entry.name:
        return _standard(entry), 0
    if ids is None:
        return _timm(entry), 0
    checkpoint = entry.state(ids)
    if entry.name.startswith(_LAST_OF_TWO[0]) or entry.name == _LAST_OF_TWO[1]:
        checkpoint = checkpoint["last"]
    network: nn.Module = entry.fields["model"]()
    utils = _import("robustbench.utils")
    state = _clean(checkpoint, ("module.", "model."), entry)
    if entry.dataset == "imagenet":
        if entry.name in _SWIN:
            swin = importlib.import_module("timm.models.swin_transformer")
            state = swin.checkpoint_filter_fn(state, network.model)
        if entry.name not in _BARE:
            state = utils.add_substr_to_state_dict(state, "model.")
    return network, _fill(network, state, entry)


def _ensemble(entry: _Entry, checkpoints: list[Any]) -> tuple[nn.Module, int]:
    network: Any = entry.fields["model"]()
    utils = _import("robustbench.utils")
    ignored = 0
    for index, checkpoint in enumerate(checkpoints):
        state: Any = _clean(checkpoint, ("module.",), entry)
        if entry.name.startswith("Bai2023Improving"):
            inner = network.comp_model
            if index < 2:
                ignored += _fill(inner.models[index], state, entry)
            else:
                ignored += _fill(inner.policy_net, state["model"], entry)
                ignored += _fill(inner.bn, state["bn"], entry)
        elif entry.name.startswith("Bai2024MixedNUTS"):
            if index == 1 and entry.dataset == "imagenet":
                swin = importlib.import_module("timm.models.swin_transformer")
                state = swin.checkpoint_filter_fn(state, network.rob_model.model)
                state = utils.add_substr_to_state_dict(state, "model.")
            part = network.std_model if index == 0 else network.rob_model
            ignored += _fill(part, state, entry)
        else:
            ignored += _fill(network.models[index], state, entry)
    return network, ignored


def _standard(entry: _Entry) -> nn.Module:
    """Return RobustBench's undefended ImageNet network: torchvision's ResNet-50, first weights.

    Its entry fetches while it builds, by a deprecated call; this is the same network without.
    """
    torchvision: Any = importlib.import_module("torchvision")

    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    path = fetch_published(weights.url, entry.spec)
    inner = torchvision.models.resnet50(weights=None)
    load_strictly(inner, read_state(path, entry.spec), entry.spec)
    zoo = _import("robustbench.model_zoo.imagenet")
    network: nn.Module = zoo.normalize_model(inner, zoo.mu, zoo.sigma)
    return network


def _timm_name(entry: _Entry) -> str:
    """Return the name under which RobustBench registers a network with timm."""
    return f"{entry.name.lower().replace('-', '_')}_{entry.dataset}_{entry.threat.lower()}"


def _timm(entry: _Entry) -> nn.Module:
    """Return a network that RobustBench registers with timm, whose weights have a plain address."""
    import timm

    registered = _timm_name(entry)
    if not timm.is_model(registered):
        raise SpecError(
            f"{entry.spec}: RobustBench gives neither a file id nor a timm model ({registered}) "
            "for this entry, so its weights cannot be had; name a file:... instead"
        )
    config = timm.get_pretrained_cfg(registered)
    path = entry.file().with_suffix(_suffix(config.url))
    fetch(
        config.url,
        path,
        what=entry.spec,
        manual=f"download {config.url}",
        sha256_prefix=stated_hash(config.url),
    )
    state = read_state(path, entry.spec)
    network: nn.Module = timm.create_model(
        registered,
        num_classes=_CLASSES[entry.dataset],
        pretrained=False,
    )
    # RobustBench puts a normalising layer around some of them after timm has loaded the weights.
    wrapped = isinstance(network, nn.Sequential)
    load_strictly(network.get_submodule("model") if wrapped else network, state, entry.spec)
    return network


def _timm_preprocess(entry: _Entry) -> str | None:
    """Return the preprocessing of a timm entry, which robustbench takes from timm; else None."""
    if entry.dataset != "imagenet" or entry.fields["gdrive_id"] is not None:
        return None
    import timm

    return timm_preprocess(timm.get_pretrained_cfg(_timm_name(entry)))


def _suffix(url: str) -> str:
    return ".pth.tar" if url.endswith(".pth.tar") else Path(url).suffix


def _clean(checkpoint: Any, prefixes: tuple[str, ...], entry: _Entry) -> dict[str, Any]:
    """Return the state dictionary in `checkpoint` with wrappers' prefixes removed."""
    utils = _import("robustbench.utils")
    state = checkpoint
    if isinstance(checkpoint, Mapping) and isinstance(checkpoint.get("state_dict"), Mapping):
        state = checkpoint["state_dict"]
    if not isinstance(state, Mapping):
        raise SpecError(
            f"{entry.spec}: the checkpoint holds a {type(state).__name__}, expected weights"
        )
    for prefix in prefixes:
        state = utils.rm_substr_from_state_dict(state, prefix)
    return dict(state)


def _fill(module: nn.Module, state: Mapping[str, Any], entry: _Entry) -> int:
    """Load `state` as strictly as RobustBench does; return how many entries `module` lacks.

    RobustBench lets some models load loosely. A loose load could leave layers at random, so on top
    of its rule nothing but constants may be missing.
    """
    utils = _import("robustbench.utils")
    zoo = _import("robustbench.model_zoo.enums")
    missing = [
        name
        for name in module.state_dict()
        if name not in state and name.rpartition(".")[2] not in _CONSTANTS
    ]
    if missing:
        raise SpecError(
            f"{entry.spec}: the checkpoint lacks {len(missing)} weights of its network: "
            f"{', '.join(missing[:8])}"
        )
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    try:
        utils._safe_load_state_dict(
            module, entry.name, dict(tensors), zoo.BenchmarkDataset(entry.dataset)
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise SpecError(
            f"{entry.spec}: the checkpoint does not fit its network: {reason}"
        ) from error
    return sum(name not in module.state_dict() for name in state)


def _import(name: str) -> Any:
    """Import a part of robustbench, which asks for AutoAttack under the name its fork dropped."""
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        with contextlib.suppress(ImportError):
            sys.modules["autoattack"] = importlib.import_module("pyautoattack")
            sys.modules["autoattack.state"] = importlib.import_module("pyautoattack.state")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SpecError(
            f"robustbench models need the robustbench package and what it imports: {error}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's prints off stdout, and silence the deprecations it is known for."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        for text, kind in (
            (r".*torch\.jit\.", FutureWarning),
            (r".*torch\.jit\.", DeprecationWarning),
            (r"Importing from timm\.models", FutureWarning),
            (r"Importing from timm\.models", DeprecationWarning),
            (r"pkg_resources is deprecated", UserWarning),
            (r"pkg_resources is deprecated", DeprecationWarning),
            (r"Overwriting .* in registry", UserWarning),
        ):
            warnings.filterwarnings("ignore", text, kind)
        yield
