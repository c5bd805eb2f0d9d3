"""Another form of the same network that answers sooner, on the device it is on.

    speed_up(model, compiled=False)

What it changes moves scores by rounding alone, and each change is tried on two images first: a
network that does not bear it, or answers otherwise, is left as it was. Which form is taken depends
on the network and the device, never on a timing, so that every worker takes the same.
"""

import torch
from torch import Tensor, nn

from raybench.core.errors import InputError
from raybench.core.types import Model
from raybench.models.torch_model import TorchModel, unlimited

__all__ = ["speed_up"]

_SIDE = 64  # of the images tried where a network takes any size
_AGREE = 1e-3  # of the largest score; rounding is a hundredth of it, another answer far above


def speed_up(model: Model, *, compiled: bool = False) -> tuple[str, ...]:
    """Bring the network inside `model` into its fastest form, in place; return what was done.

    - ``channels_last``: weights of convolutions are stored channel by channel of each pixel, the
      order that oneDNN and cuDNN compute in. A small CNN takes half the time on a CPU.
    - ``compiled``: only where asked for, for compiling takes up to a minute: `torch.compile`, with
      CUDA graphs on a GPU.

    Nothing is done to programs of ONNX and torch.export, which come with a form of their own.

    Raises:
        InputError: the network was to be compiled and cannot be.
    """
    inner = unlimited(model)
    if not isinstance(inner, TorchModel) or not _plain(inner.module):
        return ()
    done = []
    images = _images(inner)
    if any(parameter.ndim == 4 for parameter in inner.module.parameters()):
        before = _answers(inner, images)
        inner.module.to(memory_format=torch.channels_last)
        if _agree(before, _answers(inner, images)):
            done.append("channels_last")
        else:
            inner.module.to(memory_format=torch.contiguous_format)
    if compiled:
        _compile(inner, images)
        done.append("compiled")
    return tuple(done)


def _plain(module: nn.Module) -> bool:
    # Programs of torch.export may hold strides as constants.
    return not any(isinstance(each, torch.fx.GraphModule) for each in module.modules())


def _images(model: TorchModel) -> Tensor:
    """Return two different images [2, C, H, W] in [0, 1] for the model's input."""
    channels, height, width = model.info.input_shape
    shape = (2, channels, height or _SIDE, width or _SIDE)
    count = shape[0] * shape[1] * shape[2] * shape[3]
    waves = torch.arange(count, dtype=torch.float64).mul_(0.7).sin_().add_(1).div_(2)
    return waves.to(torch.float32).reshape(shape).to(model.device)


def _answers(model: TorchModel, images: Tensor) -> Tensor | None:
    """Return the raw scores [2, K] float64 on the CPU, or None where the network fails on them."""
    try:
        with torch.no_grad():
            return model.forward(images).to("cpu", torch.float64)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):
        # ``x.view(len(x), -1)`` after a convolution is the usual one.
        return None


def _agree(before: Tensor | None, after: Tensor | None) -> bool:
    if before is None or after is None or before.shape != after.shape:
        return False
    if not bool(torch.isfinite(before).all()):
        return False
    bound = _AGREE * max(1e-6, float(before.abs().max()))
    return bool(((before - after).abs() <= bound).all())


class _Copied(nn.Module):
    """Copies what a CUDA graph answers, whose memory the next call writes to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Return scores [N, K] of their own."""
        scores: Tensor = self.inner(images)
        return scores.clone()


def _compile(model: TorchModel, images: Tensor) -> None:
    plain, before = model.module, _answers(model, images)
    graphs = model.device.startswith("cuda")
    mode = "reduce-overhead" if graphs else "default"
    try:
        faster: nn.Module = torch.compile(plain, mode=mode, dynamic=False)  # type: ignore[assignment]
        model.swap(_Copied(faster) if graphs else faster)
        after = model.forward(images).detach().to("cpu", torch.float64)
    except Exception as error:
        model.swap(plain)
        text = " ".join(str(error).split())[:300]
        raise InputError(
            f"{model.info.spec}: the network cannot be compiled here ({type(error).__name__}: "
            f"{text}); run without --compile"
        ) from error
    if not _agree(before, after):
        model.swap(plain)
        raise InputError(
            f"{model.info.spec}: compiled, the network answers otherwise; run without --compile"
        )
