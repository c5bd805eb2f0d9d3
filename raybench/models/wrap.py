"""From a torch module and a spec's options to a `Model`: shapes found, access set, hash taken.

Shape legend: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from torch import Tensor, nn

from raybench.core.errors import SpecError
from raybench.core.spec import Spec
from raybench.core.types import Access, Model, ModelInfo
from raybench.models.fingerprints import fingerprint_file, fingerprint_module
from raybench.models.options import Options
from raybench.models.torch_model import TorchModel, freeze, limit, resolve_device

__all__ = ["FITTING", "Facts", "num_classes", "short_name", "size", "wrap"]

_SIDES = (28, 32, 64, 224)

FITTING = "input_sizes_that_work"
"""The detail of a model whose input size was found by trial: the sizes that were tried and fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a scheme knows of the network it has loaded.

    Attributes:
        access: the highest level the scheme can offer.
        shape: (C, H, W) where known; H and W 0 for any size; None to find it out.
        num_classes: K where known; None to find it out with one forward pass.
        mean: for pixels, where the scheme says it (an option of the spec has precedence).
        std: likewise.
        normalisation: text for a normalisation that is part of the network itself.
        files: the files that are the model, where their bytes identify it; empty: the module does.
        details: further facts for the record.
    """

    access: Access
    shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    normalisation: str = "none"
    files: tuple[Path, ...] = ()
    details: tuple[tuple[str, str], ...] = ()


def wrap(module: nn.Module, spec: Spec, options: Options, facts: Facts, *, device: str) -> Model:
    """Return `module` as a `Model` on `device`, as `spec` and its `options` declare it.

    Raises:
        SpecError: a shape or number of classes that cannot be found out, or that the options
            contradict; an access level above what the scheme or the output kind offers.
        InputError: a device that cannot be used here.
    """
    resolve_device(device)
    freeze(module.cpu())
    mean, std = options.mean or facts.mean, options.std or facts.std
    shape, found = options.shape or facts.shape, tuple[tuple[str, str], ...]()
    if shape is None:
        fitting = find_shapes(module, spec)
        shape = fitting[0]
        found = (
            ("input_shape", "found by trial, not declared"),
            (FITTING, ", ".join(map(size, fitting))),
        )
    if len(mean) not in (0, 1, shape[0]):
        raise SpecError(
            f"{spec}: mean and std need 1 or {shape[0]} values (one for each channel), "
            f"found {len(mean)}"
        )
    classes = num_classes(module, shape, spec, options.classes or facts.num_classes)
    text = facts.normalisation
    if mean:
        values = f"mean {','.join(map(repr, mean))} std {','.join(map(repr, std))}"
        text = values if text == "none" else f"{text}, then {values}"
    kind = f"{text}; {options.output}"
    name = options.name or short_name(spec)
    precision = torch.float32
    if options.precision == "bfloat16":
        precision, kind = torch.bfloat16, f"{kind}; bfloat16"
        name = options.name or f"{name}-bf16"
    offered = (
        min(facts.access, Access.SCORES) if options.output == "probabilities" else facts.access
    )
    if options.access is not None and options.access > offered:
        raise SpecError(
            f"{spec}: access={options.access.name.lower()} is above what this model offers "
            f"({offered.name.lower()})"
        )
    info = ModelInfo(
        spec=spec.canonical(),
        name=name,
        access=offered,
        input_shape=shape,
        num_classes=classes,
        fingerprint=(
            fingerprint_file(facts.files[0], kind, others=facts.files[1:])
            if facts.files
            else fingerprint_module(module, kind)
        ),
        normalisation=text,
        details=(("parameters", str(count_parameters(module))), *found, *facts.details),
    )
    if precision != torch.float32:
        _lower(module, precision, shape, spec, classes)
    model: Model = TorchModel(
        module,
        info,
        device=device,
        output=options.output,
        mean=mean,
        std=std,
        precision=precision,
    )
    return model if options.access is None else limit(model, options.access)


def _lower(
    module: nn.Module,
    precision: torch.dtype,
    shape: tuple[int, int, int],
    spec: Spec,
    classes: int,
) -> None:
    """Bring the weights of `module` to `precision`, and try it."""
    module.to(precision)
    try:
        num_classes(lambda images: module(images.to(precision)), shape, spec, classes)
    except SpecError as error:
        raise SpecError(
            f"{spec}: the network does not work in {str(precision).removeprefix('torch.')} "
            f"({error}); leave precision out"
        ) from error


def short_name(spec: Spec) -> str:
    """Return what tables call `spec` unless its ``name`` option says otherwise."""
    name = spec.rest
    if spec.scheme in ("file", "torchscript", "exported", "onnx"):
        path = PurePath(name)
        # Archives are often all called model.pt, in a folder that tells them apart.
        generic = path.stem.partition(".")[0].lower() in ("model", "weights", "checkpoint")
        name = path.parent.name if generic and path.parent.name else path.stem
    elif spec.scheme == "robustbench":
        name = name.rpartition("/")[2]
    return name or spec.scheme


def count_parameters(module: nn.Module) -> int:
    """Return the number of values in the parameters of `module`."""
    return sum(parameter.numel() for parameter in module.parameters())


def size(shape: tuple[int, int, int]) -> str:
    """Return `shape` as specs spell it; ``any`` for what may be of any size."""
    return "x".join(str(side) if side else "any" for side in shape)


def find_shapes(module: nn.Module, spec: Spec) -> list[tuple[int, int, int]]:
    """Return the input shapes that `module` takes of those tried, the likeliest first.

    Its first weight says what to try. A first linear layer of D inputs takes a square grey or RGB
    image; a first convolution fixes the channels, and the sizes of `_SIDES` are tried with images
    of zeros: where 64 and another work, any size does; of 28 and 32, grey networks are taken to
    want the first, RGB the second. A network for a size that is not tried may pass for one of
    another; the images of a job have the last word (`raybench.job`).

    Raises:
        SpecError: nothing fits; it says what the last trial came to and asks for ``shape``.
    """
    first = next((w for w in module.state_dict().values() if w.ndim in (2, 4)), None)
    fitting: list[tuple[int, int, int]] = []
    reason = ""
    for shape in _candidates(first):
        misfit = _misfit(module, shape)
        if misfit is None:
            fitting.append(shape)
        else:
            reason = f" ({size(shape)} was the last tried: {misfit})"
    if not fitting:
        raise SpecError(
            f"{spec}: the input shape cannot be found out from the network{reason}; give it as "
            "shape=CxHxW, such as shape=3x32x32"
        )
    channels, sides = fitting[0][0], [shape[1] for shape in fitting]
    # 28 and 32 may both fit a network for one of them, since strides round; 64 tells.
    if 64 in sides and len(sides) > 1:
        return [(channels, 0, 0)]
    usual = 28 if channels == 1 else 32
    return sorted(fitting, key=lambda shape: shape[1] != usual)


def _candidates(first: Tensor | None) -> list[tuple[int, int, int]]:
    if first is not None and first.ndim == 2:
        squares = [(c, round((first.shape[1] // c) ** 0.5)) for c in (1, 3)]
        return [(c, side, side) for c, side in squares if c * side * side == first.shape[1]]
    if first is not None and first.shape[1] in (1, 3):
        return [(int(first.shape[1]), side, side) for side in _SIDES]
    return []


def num_classes(
    forward: Callable[[Tensor], object],
    shape: tuple[int, int, int],
    spec: Spec,
    declared: int | None,
) -> int:
    """Return K, from one forward pass of two images of zeros; `declared` must agree with it.

    Raises:
        SpecError: the network fails on `shape`, does not return [2, K], or K is not as declared.
    """
    # Two images, since a graph traced with one may hold a batch size of one in its constants.
    channels, height, width = (size or 64 for size in shape)
    try:
        with torch.no_grad():
            scores = forward(torch.zeros(2, channels, height, width))
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise SpecError(
            f"{spec}: the network fails on two images of shape {channels}x{height}x{width}: "
            f"{reason}; if the shape is wrong, give it as shape=CxHxW"
        ) from error
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != 2:
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise SpecError(
            f"{spec}: for two images the network returns {found}, expected a tensor [2, K]"
        )
    classes = int(scores.shape[1])
    if classes < 2:
        raise SpecError(f"{spec}: the network returns {classes} score; expected two or more")
    if declared is not None and declared != classes:
        raise SpecError(f"{spec}: classes={declared} was declared, the network returns {classes}")
    return classes


def _misfit(module: nn.Module, shape: tuple[int, int, int]) -> str | None:
    """Return why `module` does not give scores [2, K] of two images of zeros; None if it does."""
    try:
        with torch.no_grad():
            scores = module(torch.zeros(2, *shape))
    except Exception as error:  # noqa: BLE001 - a size that does not fit may raise anything
        return (str(error).strip() or repr(error)).splitlines()[-1]
    if isinstance(scores, Tensor) and scores.ndim == 2 and len(scores) == 2:
        return None
    found = list(scores.shape) if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
    return f"it returns {found}, expected a tensor [2, K]"
