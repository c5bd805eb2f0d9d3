"""Torch networks behind the `Model` protocol, and the lowering of any model's access level.

    >>> model = TorchModel(network, info, device="cpu")
    >>> black_box = limit(model, Access.LABELS)

Shape legend: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from raybench.core.errors import AccessError, InputError, OutputError, near_miss
from raybench.core.spec import parse
from raybench.core.types import Access, Model, ModelInfo

__all__ = [
    "LimitedModel",
    "TorchModel",
    "check_images",
    "freeze",
    "limit",
    "require",
    "resolve_device",
    "unlimited",
]


def resolve_device(device: str) -> str:
    """Return `device` where torch can use it here.

    Raises:
        InputError: not a device name, or one that this machine lacks.
    """
    try:
        wanted = torch.device(device)
        if wanted.type != "cpu":
            torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used here: {reason}; try cpu") from error
    return device


def require(info: ModelInfo, needed: Access, what: str) -> None:
    """Raise AccessError unless the model described by `info` offers `needed`."""
    if info.access < needed:
        raise AccessError(
            f"{info.name}: {what} needs access level {needed.name.lower()}, the model offers "
            f"{info.access.name.lower()}"
        )


def freeze(module: nn.Module) -> nn.Module:
    """Return `module` in evaluation mode, its parameters closed to gradients."""
    module.eval()
    # One by one: a TorchScript module has no requires_grad_ of its own.
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


@final
class TorchModel:
    """A classifier made of a torch module, frozen and in evaluation mode.

    Args:
        module: maps normalised images [N, C, H, W] to [N, K].
        info: what is known of it; ``info.access`` is enforced.
        device: where the module is moved.
        output: "logits", or "probabilities" for a module that ends in a softmax; such a model
            offers at most SCORES, since its logits cannot be had back exactly.
        mean: subtracted from the pixels of each channel before the module sees them; empty: none.
        std: then divides them.
        precision: dtype of the module's weights; normalised pixels are brought to it, scores come
            back as float32.

    Raises:
        InputError: probabilities declared with an access level above SCORES.
    """

    __slots__ = ("_mean", "_module", "_output", "_precision", "_runs", "_std", "device", "info")

    def __init__(
        self,
        module: nn.Module,
        info: ModelInfo,
        *,
        device: str = "cpu",
        output: str = "logits",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        precision: torch.dtype = torch.float32,
    ) -> None:
        assert output in ("logits", "probabilities"), output
        assert len(mean) == len(std), (mean, std)
        if output == "probabilities" and info.access > Access.SCORES:
            raise InputError(
                f"{info.name}: a model that outputs probabilities offers at most access level "
                f"scores, {info.access.name.lower()} was declared"
            )
        self.info = info
        self.device = resolve_device(device)
        self._module = self._runs = freeze(module.to(device))
        self._output = output
        self._precision = precision
        self._mean = torch.tensor(mean, device=device).view(1, -1, 1, 1) if mean else None
        self._std = torch.tensor(std, device=device).view(1, -1, 1, 1) if std else None

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    def swap(self, module: nn.Module) -> None:
        """Ask `module` from now on, another form of the same network on the same device.

        Activations are still those of the network as it was, whose layers have names.
        """
        self._runs = module

    def labels(self, images: Tensor) -> Tensor:
        """Return the predicted classes [N] int64; ties go to the lower class."""
        with torch.no_grad():
            return self.forward(images).argmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities [N, K] float64 without gradient: softmax, in float64.

        A module that outputs probabilities is taken at its word; `check_outputs` tests them.
        """
        require(self.info, Access.SCORES, "probabilities")
        with torch.no_grad():
            scores = self.forward(images).double()
        return scores.softmax(1) if self._output == "logits" else scores

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, K], differentiable in `images` from GRADIENTS up."""
        require(self.info, Access.LOGITS, "logits")
        if self.info.access >= Access.GRADIENTS:
            return self.forward(images)
        with torch.no_grad():
            return self.forward(images)

    def activations(self, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
        """Return the outputs of the sub-modules named in `layers`, differentiable in `images`.

        Raises:
            AccessError: the model offers less than INTERNALS.
            InputError: a name that is no sub-module, one that does not run exactly once for an
                image, or one whose output is not a tensor.
        """
        require(self.info, Access.INTERNALS, "activations")
        modules = dict(self._module.named_modules())
        modules.pop("", None)
        for layer in layers:
            if layer not in modules:
                raise InputError(
                    f"{self.info.name}: no layer is named {layer!r}{near_miss(layer, modules)}"
                )
        seen: dict[str, list[Any]] = {layer: [] for layer in layers}

        def keep(layer: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            seen[layer].append(output)

        handles = [modules[layer].register_forward_hook(partial(keep, layer)) for layer in seen]
        try:
            self._through(self._module, images)
        finally:
            for handle in handles:
                handle.remove()
        for layer, outputs in seen.items():
            if len(outputs) != 1:
                raise InputError(
                    f"{self.info.name}: layer {layer!r} runs {len(outputs)} times in one forward "
                    "pass, so its activation is not defined; name a layer that runs once"
                )
            if not isinstance(outputs[0], Tensor):
                raise InputError(
                    f"{self.info.name}: layer {layer!r} returns a {type(outputs[0]).__name__}, "
                    "not a tensor; name a layer inside it"
                )
        return {layer: outputs[0] for layer, outputs in seen.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network says of images [N, C, H, W], [N, K], as its output kind is.

        Raises:
            InputError: images of another type or shape than declared.
            OutputError: the network returns anything but one tensor.
        """
        return self._through(self._runs, images)

    def _through(self, module: nn.Module, images: Tensor) -> Tensor:
        check_images(self.info, images)
        if self._mean is not None and self._std is not None:
            images = (images - self._mean) / self._std
        scores = module(images.to(self._precision))
        if not isinstance(scores, Tensor):
            raise OutputError(
                f"{self.info.name}: the network returns a {type(scores).__name__}, expected one "
                "tensor [N, K]; wrap it so that forward returns the scores alone"
            )
        return scores if self._precision == torch.float32 else scores.float()


def check_images(info: ModelInfo, images: Tensor) -> None:
    """Raise InputError unless `images` has the type and shape that `info` declares."""
    wanted = info.input_shape
    fits = (
        images.ndim == 4
        and images.dtype == torch.float32
        and all(want in (0, have) for want, have in zip(wanted, images.shape[1:], strict=True))
    )
    if not fits:
        shape = ", ".join(str(size or "any") for size in wanted)
        raise InputError(
            f"{info.name} takes float32 images [N, {shape}]; given {images.dtype} "
            f"{list(images.shape)}"
        )


@final
class LimitedModel:
    """Any model, seen through a lower access level or under another identity (`info`)."""

    __slots__ = ("_model", "device", "info")

    def __init__(self, model: Model, info: ModelInfo) -> None:
        assert info.access <= model.info.access, (info.access, model.info.access)
        self._model = model
        self.device = model.device
        self.info = info

    def labels(self, images: Tensor) -> Tensor:
        """Return the predicted classes [N] int64."""
        return self._model.labels(images)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities [N, K] float64 (SCORES)."""
        require(self.info, Access.SCORES, "probabilities")
        return self._model.probabilities(images)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, K], differentiable from GRADIENTS up (LOGITS)."""
        require(self.info, Access.LOGITS, "logits")
        if self.info.access >= Access.GRADIENTS:
            return self._model.logits(images)
        with torch.no_grad():
            return self._model.logits(images)

    def activations(self, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
        """Return the outputs of the named layers (INTERNALS)."""
        require(self.info, Access.INTERNALS, "activations")
        return self._model.activations(images, layers)


def limit(model: Model, access: Access) -> Model:
    """Return `model` offering no more than `access`: how black-box methods are tested.

    ``info.access`` and the ``access`` option of ``info.spec`` change; the fingerprint does not,
    since the answers that remain are the same.

    Raises:
        InputError: `access` is above what the model offers.
    """
    offered = model.info.access
    if access > offered:
        raise InputError(
            f"{model.info.name}: access={access.name.lower()} is above what the model offers "
            f"({offered.name.lower()})"
        )
    if access == offered:
        return model
    spec = parse(model.info.spec).with_options(access=access.name.lower()).canonical()
    return LimitedModel(unlimited(model), replace(model.info, access=access, spec=spec))


def unlimited(model: Model) -> Model:
    """Return the model inside a `LimitedModel`, else `model`: for checks of a model's honesty."""
    while isinstance(model, LimitedModel):
        model = model._model
    return model
