"""The three networks of spec 01 section 1.4, for any image size and number of classes.

Widths are raybench's choice, since the papers give none [D]; layer names (conv1, relu1, ...) are
what ``activations`` takes.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from torch import nn

from raybench.core.errors import InputError

__all__ = ["NETWORKS", "build"]

_HIDDEN = 256


def _mlp2(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    channels, height, width = shape
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(channels * height * width, _HIDDEN),
            relu1=nn.ReLU(),
            fc2=nn.Linear(_HIDDEN, classes),
        )
    )


def _convolutional(widths: tuple[tuple[int, ...], ...]) -> "_Build":
    """Return the builder of blocks of 3x3 convolutions, each block ending in 2x2 pooling."""

    def build_it(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
        channels, height, width = shape
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        index = 0
        for block, block_widths in enumerate(widths, 1):
            for features in block_widths:
                index += 1
                layers[f"conv{index}"] = nn.Conv2d(channels, features, 3, padding=1)
                layers[f"relu{index}"] = nn.ReLU()
                channels = features
            layers[f"pool{block}"] = nn.MaxPool2d(2)
            height, width = height // 2, width // 2
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(channels * height * width, classes)
        return nn.Sequential(layers)

    return build_it


_Build = Callable[[tuple[int, int, int], int], nn.Sequential]

NETWORKS: Mapping[str, _Build] = {
    "mlp2": _mlp2,
    "cnn3": _convolutional(((32,), (64,))),
    "cnn5": _convolutional(((32, 32), (64, 64))),
}


def build(name: str, shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """Return the network `name` with torch's default initial weights (from the global generator).

    Raises:
        InputError: images too small to be pooled twice.
    """
    if name != "mlp2" and min(shape[1:]) < 4:
        raise InputError(f"{name} needs images of at least 4x4, found {shape[1]}x{shape[2]}")
    return NETWORKS[name](shape, classes)
