"""What can be named: one line for each model scheme, dataset and reading, loaded only when used.

The tables hold "module:attribute" strings, so that ``import raybench`` and error messages cost
nothing. Packages outside add model schemes through the entry point group ``raybench.models``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from raybench.core.errors import SpecError, near_miss
from raybench.core.spec import Spec, parse
from raybench.core.types import Access, Dataset, Model

__all__ = ["DATASETS", "MODELS", "SUITES", "Entry", "load_model", "model_schemes", "open_dataset"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalog: where it lives, what it is, how it is spelt.

    `access` is the highest level a model of this scheme can offer; None for datasets. `needs` names
    the importable modules without which it cannot work (asked by ``raybench doctor``).
    """

    target: str
    summary: str
    example: str
    access: Access | None = None
    needs: tuple[str, ...] = ()

    def resolve(self) -> Callable[..., Any]:
        """Import and return the attribute that `target` names."""
        module, _, attribute = self.target.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), attribute)
        return found


# Each target is ``load(spec: Spec, *, device: str) -> Model``.
MODELS: Mapping[str, Entry] = {
    "zoo": Entry(
        "raybench.models.zoo:load",
        "the built-in six (mlp2, cnn3, cnn5; each plain and -adv), trained on first use and cached",
        "zoo:cnn3-adv",
        Access.INTERNALS,
    ),
    "control": Entry(
        "raybench.models.controls:load",
        "known-broken defences for checking attacks (zero gradient, distilled, label-only, "
        "randomised, FGSM-trained)",
        "control:zero-gradient",
        Access.INTERNALS,
    ),
    "robustbench": Entry(
        "raybench.models.robustbench:load",
        "RobustBench model zoo, addressed by dataset/threat/name",
        "robustbench:cifar10/Linf/Engstrom2019Robustness",
        Access.INTERNALS,
        ("robustbench",),
    ),
    "torchvision": Entry(
        "raybench.models.hubs:load_torchvision",
        "torchvision classification models with named weights",
        "torchvision:resnet50?weights=IMAGENET1K_V2",
        Access.INTERNALS,
        ("torchvision",),
    ),
    "timm": Entry(
        "raybench.models.hubs:load_timm",
        "timm models by name, pretrained",
        "timm:resnet18.a1_in1k",
        Access.INTERNALS,
        ("timm",),
    ),
    "file": Entry(
        "raybench.models.files:load_file",
        "weights in safetensors or .pt (weights only) for a factory that builds the network",
        "file:model.safetensors?arch=pkg.module:factory",
        Access.INTERNALS,
    ),
    "torchscript": Entry(
        "raybench.models.files:load_torchscript",
        "a TorchScript archive",
        "torchscript:model.pt",
        Access.GRADIENTS,
    ),
    "exported": Entry(
        "raybench.models.files:load_exported",
        "a torch.export program",
        "exported:model.pt2",
        Access.GRADIENTS,
    ),
    "onnx": Entry(
        "raybench.models.onnx:load",
        "an ONNX graph, run by onnxruntime",
        "onnx:model.onnx",
        Access.LOGITS,
        ("onnxruntime",),
    ),
    "python": Entry(
        "raybench.models.files:load_python",
        "a factory in an importable module that returns a torch module or a raybench model",
        "python:pkg.module:factory",
        Access.INTERNALS,
    ),
    "http": Entry(
        "raybench.models.http:load",
        "a model behind an HTTP API: MLflow scoring server, protocol v2 (KServe, Triton, MLServer) "
        "or JSON by a template; see docs/http.md",
        "http://127.0.0.1:5000/invocations?protocol=mlflow&shape=1x8x8&classes=10",
        Access.LOGITS,
    ),
    "https": Entry(
        "raybench.models.http:load",
        "the same, encrypted",
        "https://host/v2/models/NAME?protocol=v2&version=3&budget=1000000",
        Access.LOGITS,
    ),
}

# Each target is ``open_(spec: Spec) -> Dataset``.
DATASETS: Mapping[str, Entry] = {
    "digits": Entry(
        "raybench.data.arrays:open_digits",
        "scikit-learn's 1,797 real handwritten digits, 8x8 grey, embedded (train 1000, test 797)",
        "digits?split=test",
    ),
    "mnist": Entry(
        "raybench.data.arrays:open_mnist",
        "MNIST, 28x28 grey (root: a folder that holds the idx files, gzipped or not)",
        "mnist?root=/data/mnist&split=test",
    ),
    "fashion-mnist": Entry(
        "raybench.data.arrays:open_fashion_mnist",
        "Fashion-MNIST, 28x28 grey",
        "fashion-mnist?root=/data/fashion-mnist",
    ),
    "cifar10": Entry(
        "raybench.data.arrays:open_cifar10", "CIFAR-10, 32x32 RGB", "cifar10?root=/data"
    ),
    "cifar100": Entry(
        "raybench.data.arrays:open_cifar100", "CIFAR-100, 32x32 RGB", "cifar100?root=/data"
    ),
    "imagenet": Entry(
        "raybench.data.folders:open_imagenet",
        "ImageNet validation images, ImageFolder layout or a flat folder",
        "imagenet:/data/val?preprocess=Res256Crop224",
    ),
    "folder": Entry(
        "raybench.data.folders:open_folder",
        "any folder of images, local or s3:// or gs://, resized by an explicit option",
        "folder:/data/photos?resize=224",
    ),
    "parquet": Entry(
        "raybench.data.tables:open_parquet",
        "Parquet files in the Hugging Face image layout",
        "parquet:/data/images?image=image&label=label",
    ),
    "npz": Entry(
        "raybench.data.tables:open_npz",
        "a NumPy archive with images (and optionally labels)",
        "npz:/data/test.npz?images=images&labels=labels",
    ),
}


SUITES: Mapping[str, tuple[str, ...]] = {
    "autoattack": ("autoattack",),
    "autoattack-plus": ("autoattack?version=plus",),
    "autoattack-rand": ("autoattack?version=rand",),
    "fast": ("apgd-ce?steps=20", "apgd-t?steps=20&num_targets=3"),
    "checklist": ("pgd", "apgd-ce", "apgd-t", "square", "noise"),
}
"""Named lists of attacks for ``raybench robust-acc --suite``."""


def model_schemes() -> dict[str, Entry]:
    """Return the built-in model schemes and those of installed entry points (built-in ones win)."""
    schemes = {
        point.name: Entry(point.value, f"from the installed package {point.module}", point.name)
        for point in entry_points(group="raybench.models")
    }
    schemes.update(MODELS)
    return schemes


def _entry(kind: str, spec: Spec, known: Mapping[str, Entry]) -> Entry:
    if spec.scheme not in known:
        raise SpecError(
            f"{spec}: no {kind} scheme is named {spec.scheme!r}{near_miss(spec.scheme, known)}"
        )
    return known[spec.scheme]


SPEED = "raybench.models.speed:speed_up"


def load_model(
    spec: str | Spec, *, device: str = "cpu", fast: bool = False, compiled: bool = False
) -> Model:
    """Return the model that `spec` names, in evaluation mode on `device`.

    `fast` brings the network into the form that answers soonest on that device, and `compiled`
    compiles it besides; answers then differ by rounding.

    Raises:
        SpecError: unknown scheme or option, a file that is absent or refused, a failed download.
        InputError: the network was to be compiled and cannot be.
    """
    parsed = parse(spec) if isinstance(spec, str) else spec
    model: Model = _entry("model", parsed, model_schemes()).resolve()(parsed, device=device)
    if fast:
        Entry(SPEED, "", "").resolve()(model, compiled=compiled)
    return model


def open_dataset(spec: str | Spec) -> Dataset:
    """Return the selection of images that `spec` names, without decoding any.

    Raises:
        SpecError: unknown dataset or option, or a root that does not hold it.
    """
    parsed = parse(spec) if isinstance(spec, str) else spec
    dataset: Dataset = _entry("dataset", parsed, DATASETS).resolve()(parsed)
    return dataset
