"""From an encoded image to pixels, by declared steps only; what cannot be decoded is a Failure.

    >>> steps = Preprocessing(resize=resize("224"), channels=3)
    >>> decode(Path("cat.jpg").read_bytes(), steps).shape
    (224, 224, 3)

Formats: PNG, JPEG, BMP, WebP, TIFF, PPM and PGM, told by content; of several frames the first is
taken. Grey of 16 bits is rounded to 8; floating-point and 32-bit pixels have no range of their own
and are refused.
"""

import io
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import (
    InterpolationMode,
    functional,
)

from raybench.core.errors import SpecError
from raybench.core.types import Batch, Failure
from raybench.data.filesystem import Unreadable

__all__ = [
    "IMAGE_OPTIONS",
    "SUFFIXES",
    "Preprocessing",
    "Resize",
    "assemble",
    "common_shape",
    "decode",
    "resize",
    "robustbench_resize",
]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
_MAX_PIXELS = 100_000_000
# Pillow refuses larger ones itself, whatever it is told here.
_PILLOW_LIMIT = 178_956_970
_MAX_SIDE = 8192
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)

Encoded = tuple[str, str, "bytes | Unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """How an image comes to its final size; the default leaves it as it is.

    Attributes:
        text: canonical spelling.
        shorter: length the shorter side is brought to, or None.
        exact: (height, width) the image is stretched to, or None.
        crop: side of the square cut from the middle afterwards, padded with black where the image
            is smaller (as torchvision's CenterCrop), or None.
        bicubic: whether to interpolate bicubically instead of bilinearly.
    """

    text: str = "none"
    shorter: int | None = None
    exact: tuple[int, int] | None = None
    crop: int | None = None
    bicubic: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every result, or None where it depends on the image."""
        return (self.crop, self.crop) if self.crop else self.exact

    def __call__(self, image: Image.Image, max_pixels: int) -> Image.Image:
        """Return the resized image, exactly as torchvision does it on Pillow images."""
        mode = InterpolationMode.BICUBIC if self.bicubic else InterpolationMode.BILINEAR
        if self.shorter:
            # A line of one pixel would grow without bound.
            pixels = self.shorter**2 * max(image.size) // min(image.size)
            if pixels > max_pixels:
                raise Unreadable(f"{_size(image)} pixels would be resized to {pixels:,} pixels")
            image = functional.resize(image, self.shorter, mode)
        elif self.exact:
            image = functional.resize(image, list(self.exact), mode)
        return functional.center_crop(image, self.crop) if self.crop else image


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """All that happens to an image between its file and the batch.

    Attributes:
        resize: the change of size.
        channels: 3 (RGB; grey is repeated) or 1 (ITU-R 601 luma).
        upright: whether to turn the image as its EXIF orientation says, and to lay transparent
            pixels over white, which is what viewers show. Without it the file's own pixels are
            taken and transparency is dropped, which is what torchvision and RobustBench do.
        max_pixels: an image of more pixels is refused before it is decoded.
    """

    resize: Resize = Resize()
    channels: int = 3
    upright: bool = True
    max_pixels: int = _MAX_PIXELS

    @property
    def text(self) -> str:
        """Everything above in one line, for the fingerprint."""
        shown = "exif-upright alpha-over-white" if self.upright else "as-stored alpha-dropped"
        return (
            f"resize={self.resize.text} channels={self.channels} {shown} "
            f"max_pixels={self.max_pixels}"
        )

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of every result, or None where it depends on the image."""
        return (self.channels, *self.resize.size) if self.resize.size else None


def _side(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit()) or not 1 <= int(raw) <= _MAX_SIDE:
        raise ValueError(f"expected sides from 1 to {_MAX_SIDE} pixels")
    return int(raw)


def resize(raw: str) -> Resize:
    """Convert ``224`` (shorter side, then centre crop), ``224x320`` (height x width), ``none``."""
    if raw == "none":
        return Resize()
    pieces = raw.split("x")
    if len(pieces) > 2 or not all(piece.isascii() and piece.isdigit() for piece in pieces):
        raise ValueError(
            "expected 224 (shorter side, then centre crop), 224x224 (height x width) or none"
        )
    sides = [_side(piece) for piece in pieces]
    if len(sides) == 2:
        return Resize(text=f"{sides[0]}x{sides[1]}", exact=(sides[0], sides[1]))
    return Resize(text=str(sides[0]), shorter=sides[0], crop=sides[0])


def robustbench_resize(raw: str) -> Resize:
    """Convert RobustBench's names: Res256Crop224, BicubicRes256Crop224, Crop288, Res224.

    ``Res{a}Crop{b}`` brings the shorter side to a and cuts a square of b; ``Crop{b}`` only cuts;
    ``Res{a}`` alone stretches to a square, as RobustBench's own does.
    """
    found = re.fullmatch(r"(Bicubic(?=Res))?(?:Res([1-9]\d{0,4}))?(?:Crop([1-9]\d{0,4}))?", raw)
    if not raw or found is None:
        raise ValueError(
            "expected Res256Crop224, BicubicRes256Crop224, Crop288 or Res224 (any numbers)"
        )
    bicubic, *numbers = found.groups()
    side, crop = (_side(number) if number else None for number in numbers)
    if side and crop and crop > side:
        raise ValueError(f"the crop of {crop} does not fit in an image resized to {side}")
    if side and not crop:
        return Resize(text=raw, exact=(side, side), bicubic=bool(bicubic))
    return Resize(text=raw, shorter=side, crop=crop, bicubic=bool(bicubic))


def _channels(raw: str) -> int:
    if raw not in ("1", "3"):
        raise ValueError("expected 1 (grey) or 3 (RGB)")
    return int(raw)


def _max_pixels(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit()) or not 1 <= int(raw) <= _PILLOW_LIMIT:
        raise ValueError(f"expected a whole number from 1 to {_PILLOW_LIMIT}")
    return int(raw)


# The options of every dataset that decodes images.
IMAGE_OPTIONS: Mapping[str, Any] = {
    "resize": resize,
    "channels": _channels,
    "max_pixels": _max_pixels,
}


def decode(data: bytes, steps: Preprocessing) -> np.ndarray:
    """Return the pixels of an encoded image, uint8 [H, W, C].

    Raises:
        Unreadable: empty, truncated, damaged, too large, or not an image at all.
    """
    pixels: np.ndarray = _opened(data, steps, partial(_pixels, steps=steps))
    return pixels


def common_shape(
    samples: Iterable[tuple[str, "bytes | Unreadable"]], steps: Preprocessing, *, where: str
) -> tuple[int, int, int]:
    """Return (C, H, W) of the images, from `steps` where these fix it, else from their headers.

    Args:
        samples: (source, content) of the images to compare; not touched where `steps` fix the size.
        steps: what is to be done to them.
        where: begins every message.

    Raises:
        SpecError: they differ in size, or none can be read.
    """
    if steps.shape:
        return steps.shape
    first: tuple[str, tuple[int, int]] | None = None
    problem = ""
    for source, data in samples:
        try:
            if isinstance(data, Unreadable):
                raise data
            size = _opened(data, steps, partial(_header, steps=steps))
        except Unreadable as error:
            problem = problem or f"{source}: {error}"
            continue
        if first is None:
            first = source, size
        elif size != first[1]:
            raise SpecError(
                f"{where}: images differ in size: {first[0]} has {_shown(first[1])} pixels, "
                f"{source} has {_shown(size)} (height x width). Say how to bring them to one size: "
                "?resize=224 (shorter side, then centre crop) or ?resize=224x224 (stretched)"
            )
    if first is None:
        raise SpecError(f"{where}: no image could be read to learn the size ({problem})")
    return (steps.channels, *first[1])


def assemble(
    samples: Iterable[Encoded], steps: Preprocessing, shape: tuple[int, int, int]
) -> Batch:
    """Return the images of `samples` as one batch, and a Failure for each that cannot be read.

    Args:
        samples: (id, source, content) in order; an `Unreadable` content says why there is none.
        steps: what is done to each.
        shape: (C, H, W) each must then have.
    """
    ids: list[str] = []
    sources: list[str] = []
    images: list[np.ndarray] = []
    failures: list[Failure] = []
    for name, source, data in samples:
        try:
            if isinstance(data, Unreadable):
                raise data
            pixels = decode(data, steps)
            if pixels.shape[:2] != shape[1:]:
                raise Unreadable(
                    f"the image has {_shown(pixels.shape)} pixels (height x width), the others "
                    f"{_shown(shape[1:])}; resize= would bring them to one size"
                )
        except Unreadable as error:
            failures.append(Failure(name, source, str(error)))
            continue
        ids.append(name)
        sources.append(source)
        images.append(pixels)
    return Batch(tuple(ids), tuple(sources), _tensor(images, shape), tuple(failures))


def _tensor(images: list[np.ndarray], shape: tuple[int, int, int]) -> torch.Tensor:
    if not images:
        return torch.empty((0, *shape), dtype=torch.float32)
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _opened(data: bytes, steps: Preprocessing, use: Any) -> Any:
    """Return ``use(image)`` for the encoded image; whatever goes wrong is `Unreadable`."""
    if not data:
        raise Unreadable("the file is empty (0 bytes)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > steps.max_pixels:
                    raise Unreadable(
                        f"the image has {_size(image)} pixels, more than max_pixels="
                        f"{steps.max_pixels}; it may be a decompression bomb"
                    )
                return use(image)
        except (Unreadable, MemoryError):
            raise
        except UnidentifiedImageError as error:
            # Pillow's own text holds a memory address, which would differ from run to run.
            raise Unreadable(f"not an image in a known format ({', '.join(_FORMATS)})") from error
        except Exception as error:
            # Anything at all: decoders were not written with damaged bytes in mind.
            text = re.sub(r" at 0x[0-9a-f]+", "", str(error))
            raise Unreadable(f"cannot be decoded ({type(error).__name__}: {text})") from error


def _header(image: Image.Image, *, steps: Preprocessing) -> tuple[int, int]:
    # Pillow turns a TIFF by itself and reports its size so.
    turns = steps.upright and image.format != "TIFF"
    turned = turns and image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    return (image.width, image.height) if turned else (image.height, image.width)


def _pixels(image: Image.Image, *, steps: Preprocessing) -> np.ndarray:
    image.load()
    _refuse_rangeless(image)
    if steps.upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow's own conversion would clip 16 bits of grey at 255.
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    elif steps.upright and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if steps.channels == 1 else "RGB")
    pixels = np.asarray(steps.resize(image, steps.max_pixels))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _refuse_rangeless(image: Image.Image) -> None:
    # Mode I of a PGM file is 16 bits of grey; elsewhere it is 32 bits of anything.
    if image.mode == "F" or (image.mode == "I" and image.format != "PPM"):
        raise Unreadable(
            f"its pixels are of Pillow's mode {image.mode}, which has no range; store 8 or 16 bits"
        )


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _shown(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
