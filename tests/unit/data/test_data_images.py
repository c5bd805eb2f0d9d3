import importlib
import importlib.util
import io
import re
import struct
import sys
import warnings
import zlib
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from raybench.core.errors import SpecError
from raybench.data.filesystem import Unreadable
from raybench.data.images import (
    Preprocessing,
    Resize,
    assemble,
    common_shape,
    decode,
    resize,
    robustbench_resize,
)

PLAIN = Preprocessing()


def pixels(height: int = 8, width: int = 6, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **settings: object) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **settings)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def jpeg_bomb(width: int, height: int) -> bytes:
    """A small JPEG whose frame header claims a huge picture."""
    data = encoded(np.zeros((8, 8, 3), np.uint8), "JPEG")
    sizes = data.index(b"\xff\xc0") + 5
    return data[:sizes] + struct.pack(">HH", height, width) + data[sizes + 4 :]


# --- colours and bit depths ---


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert np.array_equal(decode(encoded(pixels(), kind), PLAIN), pixels())


def test_lossless_webp_keeps_every_pixel() -> None:
    assert np.array_equal(decode(encoded(pixels(), "WEBP", lossless=True), PLAIN), pixels())


def test_jpeg_agrees_with_pillow() -> None:
    data = encoded(pixels(), "JPEG")
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode(data, PLAIN), np.asarray(image))


def test_grey_becomes_rgb_and_rgb_becomes_grey_only_by_channels() -> None:
    grey = pixels(channels=1)
    assert np.array_equal(decode(encoded(grey), PLAIN), np.repeat(grey[:, :, None], 3, axis=2))
    one = Preprocessing(channels=1)
    assert np.array_equal(decode(encoded(grey), one), grey[:, :, None])
    luma = decode(encoded(pixels()), one)[:, :, 0]
    expected = pixels() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - expected).max() <= 1


def test_palette_and_bilevel_images_are_expanded() -> None:
    image = Image.fromarray(pixels()).quantize(5)
    assert np.array_equal(decode(encoded(image), PLAIN), np.asarray(image.convert("RGB")))
    bits = Image.fromarray(pixels(channels=1) > 127)
    found = decode(encoded(bits), Preprocessing(channels=1))
    assert np.array_equal(found[:, :, 0], (pixels(channels=1) > 127) * 255)


def test_transparent_pixels_show_white_unless_stored_pixels_are_asked_for() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[0, :, 3] = 255
    rgba[1, 0, 3] = 51
    found = decode(encoded(rgba), PLAIN)
    assert found[0, 0].tolist() == [200, 0, 0]
    assert found[1, 1].tolist() == [255, 255, 255]
    assert found[1, 0].tolist() == [244, 204, 204]
    stored = decode(encoded(rgba), Preprocessing(upright=False))
    assert stored[1, 1].tolist() == [200, 0, 0]
    palette = Image.new("P", (1, 1))
    palette.putpalette([9, 9, 9])
    assert decode(encoded(palette, transparency=0), PLAIN).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_sixteen_bits_of_grey_are_rounded_not_clipped(kind: str) -> None:
    values = np.array([[0, 128, 129, 257, 32767, 65535]], dtype=np.uint16)
    found = decode(encoded(values, kind), Preprocessing(channels=1))[0, :, 0]
    assert found.tolist() == np.rint(values[0] / 257).astype(int).tolist() == [0, 0, 1, 1, 127, 255]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(dtype: type) -> None:
    with pytest.raises(Unreadable, match="no range"):
        decode(encoded(np.ones((2, 2), dtype), "TIFF"), PLAIN)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_to_pixels_and_to_the_size(
    kind: str, orientation: int
) -> None:
    scene = np.zeros((16, 32, 3), np.uint8)
    scene[:8, :8] = 255  # bright top left corner
    # What a camera held otherwise stores, by the table of the EXIF standard.
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.swapaxes(0, 1),
        6: np.rot90(scene, 1),
        7: scene[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored), kind, exif=exif)
    found = decode(data, PLAIN)
    assert found.shape == (16, 32, 3)
    assert found[1:7, 1:7].min() > 200
    assert found[9:, 9:].max() < 50
    assert common_shape([("x", data)], PLAIN, where="x") == (3, 16, 32)


# --- what cannot be decoded ---

PNG = encoded(pixels(64, 64))
JPEG = encoded(pixels(64, 64), "JPEG")
BROKEN = {
    "empty": (b"", "0 bytes"),
    "text": (b"<html>quota exceeded</html>", "not an image"),
    "truncated png": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "header only": (PNG[:20], "cannot be decoded|not an image"),
    "flipped byte": (PNG[:100] + bytes([PNG[100] ^ 255]) + PNG[101:], "cannot be decoded"),
    "bomb": (bomb(12_000, 12_000), "12000x12000 pixels, more than max_pixels=100000000"),
    "great bomb": (bomb(60_000, 60_000), "DecompressionBombError"),
    "jpeg bomb": (jpeg_bomb(12_000, 12_000), "12000x12000 pixels, more than max_pixels=100000000"),
    "great jpeg bomb": (jpeg_bomb(65_000, 65_000), "DecompressionBombError"),
    "another format": (encoded(pixels(), "GIF"), "not an image in a known format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_becomes_a_failure_and_the_others_are_read(name: str) -> None:
    data, message = BROKEN[name]
    good = encoded(pixels())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        batch = assemble(
            [("a", "dir/a", good), ("b", "dir/b", data), ("c", "dir/c", good)], PLAIN, (3, 8, 6)
        )
    assert batch.ids == ("a", "c")
    assert batch.sources == ("dir/a", "dir/c")
    assert batch.images.shape == (2, 3, 8, 6)
    (failure,) = batch.failures
    assert (failure.id, failure.source) == ("b", "dir/b")
    assert re.search(message, failure.error)
    assert " at 0x" not in failure.error
    assert not seen


def test_pixels_below_the_limit_but_above_pillows_warning_are_decoded_silently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Unreadable, match="cannot be decoded"):
            decode(bomb(9_500, 10_000), PLAIN)
    with pytest.raises(Unreadable, match="has 6x8 pixels, more than max_pixels=47"):
        decode(encoded(pixels()), Preprocessing(max_pixels=47))
    assert decode(encoded(pixels()), Preprocessing(max_pixels=48)).shape == (8, 6, 3)


def test_a_line_of_pixels_cannot_grow_without_bound() -> None:
    with pytest.raises(Unreadable, match="would be resized"):
        decode(encoded(np.zeros((1, 50_000, 3), np.uint8)), Preprocessing(resize=resize("224")))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([PNG, JPEG]), st.data())
def test_damaged_bytes_never_raise_anything_else(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(1, len(data)))])
    for _ in range(draw.draw(st.integers(0, 4))):
        damaged[draw.draw(st.integers(0, len(damaged) - 1))] = draw.draw(st.integers(0, 255))
    batch = assemble([("a", "a", bytes(damaged))], Preprocessing(resize=resize("8x8")), (3, 8, 8))
    assert len(batch.ids) + len(batch.failures) == 1


def test_a_batch_of_failures_only_is_empty_and_well_shaped() -> None:
    batch = assemble([("a", "a", Unreadable("gone"))], PLAIN, (3, 4, 5))
    assert batch.images.shape == (0, 3, 4, 5)
    assert batch.images.dtype == torch.float32
    assert batch.failures[0].error == "gone"


# --- sizes ---


@pytest.mark.parametrize("raw", ["224", "100x70", "1"])
def test_resize_is_torchvisions(raw: str) -> None:
    data = pixels(120, 90)
    if "x" in raw:
        reference = transforms.Resize([int(side) for side in raw.split("x")])
    else:
        reference = transforms.Compose(
            [transforms.Resize(int(raw)), transforms.CenterCrop(int(raw))]
        )
    expected = np.asarray(reference(Image.fromarray(data)))
    assert np.array_equal(decode(encoded(data), Preprocessing(resize=resize(raw))), expected)


@pytest.fixture
def robustbench_data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """robustbench.data; its package imports autoattack, published as pyautoattack."""
    if importlib.util.find_spec("autoattack") is None:
        for name in ("autoattack", "autoattack.state"):
            module = importlib.import_module(f"py{name}")
            monkeypatch.setitem(sys.modules, name, module)
    return importlib.import_module("robustbench.data")


@pytest.mark.filterwarnings("ignore:.*(pkg_resources|timm|deprecated)")
@pytest.mark.parametrize("name", ["Res256Crop224", "Crop288", "BicubicRes256Crop224", "Res224"])
@pytest.mark.parametrize("size", [(300, 400), (375, 500), (601, 300), (256, 256), (90, 75)])
def test_preprocessing_equals_robustbenchs(
    robustbench_data: ModuleType, name: str, size: tuple[int, int]
) -> None:
    data = encoded(pixels(*size), "JPEG", quality=90)
    steps = Preprocessing(resize=robustbench_resize(name), upright=False)
    with Image.open(io.BytesIO(data)) as image:
        expected = robustbench_data.PREPROCESSINGS[name](image.convert("RGB"))
    assert steps.shape == tuple(expected.shape)
    batch = assemble([("a", "a", data)], steps, steps.shape)
    assert torch.equal(batch.images[0], expected)
    assert batch.images.is_contiguous()


@pytest.mark.parametrize(
    "raw", ["", "224x", "x", "224x224x3", "-1", "0", "9000", "1e3", "²", "None", "big"]
)
def test_resize_refuses_what_it_does_not_know(raw: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        resize(raw)


@pytest.mark.parametrize("raw", ["", "res256", "Res0Crop5", "Bicubic", "BicubicCrop5", "Res99999"])
def test_preprocess_refuses_what_it_does_not_know(raw: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        robustbench_resize(raw)
    with pytest.raises(ValueError, match="does not fit"):
        robustbench_resize("Res224Crop256")


def test_one_size_is_learnt_from_headers_and_another_is_named() -> None:
    small, large = encoded(pixels(8, 6)), encoded(pixels(9, 6))
    assert common_shape([("a", small), ("b", b"junk"), ("c", small)], PLAIN, where="x") == (3, 8, 6)
    with pytest.raises(SpecError, match=r"folder:x: .* a has 8x6 .* b has 9x6 .*\?resize=224"):
        common_shape([("a", small), ("b", large)], PLAIN, where="folder:x")
    with pytest.raises(SpecError, match=r"no image could be read.*a: not an image"):
        common_shape([("a", b"junk")], PLAIN, where="folder:x")
    fixed = Preprocessing(resize=Resize(text="5x4", exact=(5, 4)), channels=1)
    assert common_shape(iter(()), fixed, where="x") == (1, 5, 4)


def test_an_image_that_differs_later_is_a_failure() -> None:
    batch = assemble([("a", "a", encoded(pixels(9, 6)))], PLAIN, (3, 8, 6))
    assert "9x6 pixels (height x width), the others 8x6" in batch.failures[0].error


def test_every_step_is_in_the_text() -> None:
    texts = {
        Preprocessing().text,
        Preprocessing(channels=1).text,
        Preprocessing(upright=False).text,
        Preprocessing(max_pixels=5).text,
        Preprocessing(resize=resize("5")).text,
        Preprocessing(resize=resize("5x5")).text,
    }
    assert len(texts) == 6
