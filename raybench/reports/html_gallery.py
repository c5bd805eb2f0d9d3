"""The explanations of the HTML report: small pictures inside the page, as data URIs.

    gallery = picture_gallery(panels)
    gallery[0].shots[0].weights        # data:image/png;base64,...

Colours are those of fig2: weights red (for the prediction) and blue (against it), masks pink, blue
and yellow; captions say in numbers what a mask's colours show.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raybench.metrics.sparsity import area_fractions, mask_values
from raybench.reports.figures import MASK_COLOURS, Panel

__all__ = ["Picture", "Shot", "picture_gallery"]

_TOP, _LEAST = 10, 0.01  # lime's mask, as in fig2
_SIDE = 96  # pixels; larger pictures are made smaller


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One model's explanation of an image: two data URIs and what they show in words."""

    model: str
    predicted: int
    weights: str
    mask: str
    shares: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image, `scale` being the weight of the strongest colour in its row."""

    id: str
    image: str
    scale: float
    shots: tuple[Shot, ...]


def picture_gallery(panels: Sequence[Panel]) -> list[Picture]:
    """Return the images and their explanations as pictures that a page can hold."""
    return [_picture(panel) for panel in panels]


def _picture(panel: Panel) -> Picture:
    pixels = np.moveaxis(panel.image, 0, 2)
    colour = pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
    largest = max(float(np.abs(weights).max()) for weights in panel.weights.values())
    return Picture(
        id=panel.id,
        image=_png(np.clip(colour, 0, 1), smooth=True),
        scale=largest,
        shots=tuple(_shot(panel, name, largest or 1.0) for name in panel.weights),
    )


def _shot(panel: Panel, name: str, largest: float) -> Shot:
    weights = panel.weights[name]
    mask = mask_values(weights, _TOP, _LEAST, None)
    # RdBu's red end is for the prediction; 0 is white.
    shaded = mpl.colormaps["RdBu_r"](0.5 + 0.5 * weights / largest)[:, :3]
    colours = np.array([MASK_COLOURS[sign] for sign in (-1, 0, 1)])
    negative, zero, positive = area_fractions(mask, panel.segments)
    return Shot(
        model=name,
        predicted=panel.predicted[name],
        weights=_png(shaded[panel.segments]),
        mask=_png(colours[mask[panel.segments] + 1]),
        shares=f"for {positive:.0%}, none {zero:.0%}, against {negative:.0%}",
    )


def _png(pixels: NDArray[np.floating], *, smooth: bool = False) -> str:
    """Return pixels [H, W, 3] in [0, 1] as the data URI of a PNG, the same bytes every time."""
    image = Image.fromarray(np.round(255 * pixels).astype(np.uint8), "RGB")
    if max(image.size) > _SIDE:
        share = _SIDE / max(image.size)
        size = max(1, round(image.width * share)), max(1, round(image.height * share))
        image = image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    if not smooth:
        image = image.quantize(64, dither=Image.Dither.NONE)
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
