"""ONNX graphs, run by onnxruntime: ``onnx:model.onnx?mean=...&std=...`` (access up to LOGITS).

Shape legend: N images, C channels, H height, W width, K classes.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import onnxruntime
import torch
from torch import Tensor

from raybench.core.errors import AccessError, SpecError
from raybench.core.spec import Spec
from raybench.core.types import Access, Model, ModelInfo
from raybench.models import options as shared
from raybench.models.fingerprints import fingerprint_file
from raybench.models.torch_model import check_images, limit, require, resolve_device
from raybench.models.wrap import num_classes, short_name

__all__ = ["OnnxModel", "load"]


@final
class OnnxModel:
    """A classifier made of an onnxruntime session with one input and one output.

    `output` is "logits" or "probabilities"; pixels have `mean` subtracted and are divided by
    `std` (empty: none) before the graph sees them. Answers are copied to `device`.
    """

    __slots__ = ("_mean", "_output", "_session", "_std", "device", "info")

    def __init__(
        self,
        session: Any,
        info: ModelInfo,
        *,
        device: str = "cpu",
        output: str = "logits",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        self._session = session
        self._output = output
        self._mean = torch.tensor(mean).view(1, -1, 1, 1) if mean else None
        self._std = torch.tensor(std).view(1, -1, 1, 1) if std else None
        self.info = info
        self.device = device

    def labels(self, images: Tensor) -> Tensor:
        """Return the predicted classes [N] int64; ties go to the lower class."""
        return self._forward(images).argmax(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities [N, K] float64: softmax, in float64, where it gives logits."""
        require(self.info, Access.SCORES, "probabilities")
        scores = self._forward(images).double()
        return scores.softmax(1) if self._output == "logits" else scores

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, K] without gradient."""
        require(self.info, Access.LOGITS, "logits")
        return self._forward(images)

    def activations(self, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
        """Raise AccessError: onnxruntime shows nothing between input and output."""
        require(self.info, Access.INTERNALS, "activations")
        raise AccessError(f"{self.info.name}: onnxruntime shows no activations")

    def _forward(self, images: Tensor) -> Tensor:
        check_images(self.info, images)
        pixels = images.detach().cpu()
        if self._mean is not None and self._std is not None:
            pixels = (pixels - self._mean) / self._std
        name = self._session.get_inputs()[0].name
        (scores,) = self._session.run(None, {name: pixels.contiguous().numpy()})
        return torch.from_numpy(scores).to(self.device)


def load(spec: Spec, *, device: str) -> Model:
    """Return the model of an ONNX file; its fingerprint is that of the file and its data files.

    It runs on as many threads as torch may use at load time; on CUDA where `device` says so and
    onnxruntime has it.

    Raises:
        SpecError: absent, not an ONNX graph, one without exactly one float32 image input and one
            output, or one with a fixed batch size.
        InputError: a device that cannot be used here.
    """
    # A graph's precision is fixed when it is written.
    options = shared.read(spec, common=tuple(name for name in shared.COMMON if name != "precision"))
    path = Path(spec.rest).expanduser()
    if not path.is_file():
        raise SpecError(f"{spec}: there is no file {path}")
    session = _session(path, spec, resolve_device(device))
    declared = _graph_shape(session, spec)
    shape = options.shape or declared
    clash = [a for a, b in zip(shape, declared, strict=True) if b and a != b]
    if clash:
        raise SpecError(
            f"{spec}: shape={'x'.join(map(str, shape))} contradicts the graph's input "
            f"{'x'.join(map(str, declared))} (0: any)"
        )
    if len(options.mean) not in (0, 1, shape[0]):
        raise SpecError(f"{spec}: mean and std need 1 or {shape[0]} values")
    name = session.get_inputs()[0].name
    classes = num_classes(
        lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0]),
        shape,
        spec,
        options.classes,
    )
    text = "none"
    if options.mean:
        text = f"mean {','.join(map(repr, options.mean))} std {','.join(map(repr, options.std))}"
    offered = Access.SCORES if options.output == "probabilities" else Access.LOGITS
    if options.access is not None and options.access > offered:
        raise SpecError(
            f"{spec}: access={options.access.name.lower()} is above what this model offers "
            f"({offered.name.lower()})"
        )
    info = ModelInfo(
        spec=spec.canonical(),
        name=options.name or short_name(spec),
        access=offered,
        input_shape=shape,
        num_classes=classes,
        fingerprint=fingerprint_file(path, f"{text}; {options.output}", others=_data_files(path)),
        normalisation=text,
        details=(("file", path.name), ("onnxruntime", onnxruntime.__version__)),
    )
    model: Model = OnnxModel(
        session,
        info,
        device=device,
        output=options.output,
        mean=options.mean,
        std=options.std,
    )
    return model if options.access is None else limit(model, options.access)


def _session(path: Path, spec: Spec, device: str) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device.startswith("cuda"):
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise SpecError(
                f"{spec}: this onnxruntime cannot use {device}; install onnxruntime-gpu, or use "
                "device cpu"
            )
        index = torch.device(device).index or 0
        providers = [("CUDAExecutionProvider", {"device_id": index}), *providers]  # type: ignore[list-item]
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SpecError(f"{spec}: {path.name} cannot be run by onnxruntime: {reason}") from error


def _graph_shape(session: Any, spec: Spec) -> tuple[int, int, int]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
        raise SpecError(
            f"{spec}: the graph takes {found}; expected one tensor(float) of images [N, C, H, W]"
        )
    if len(outputs) != 1 or outputs[0].type != "tensor(float)":
        found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in outputs)
        raise SpecError(
            f"{spec}: the graph gives {found}; expected one tensor(float) of scores [N, K]"
        )
    batch, *image = inputs[0].shape
    if isinstance(batch, int):
        raise SpecError(
            f"{spec}: the graph takes batches of exactly {batch}; export it again with a dynamic "
            "batch (torch.onnx.export(..., dynamic_shapes=({0: torch.export.Dim('N')},)))"
        )
    channels, height, width = (size if isinstance(size, int) else 0 for size in image)
    if channels not in (1, 3):
        raise SpecError(
            f"{spec}: the graph takes {channels or 'any number of'} channels; expected 1 or 3"
        )
    return channels, height, width


def _data_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the graph's large tensors, where it keeps them outside itself.

    They are named by StringStringEntryProto messages with key "location" (onnx.proto3,
    TensorProto.external_data), searched as bytes so that the onnx package is not needed.
    """
    names = set()
    data = path.read_bytes()
    for match in re.finditer(rb"\x0a\x08location\x12", data):
        size, at, shift = 0, match.end(), 0
        while True:
            byte = data[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80 or shift > 28:
                break
        names.add(data[at : at + size].decode(errors="replace"))
    files = [path.parent / name for name in sorted(names)]
    return tuple(each for each in files if each.is_file())
