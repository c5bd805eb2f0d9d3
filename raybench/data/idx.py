"""The idx format of the MNIST files: a big-endian header, then unsigned bytes.

>>> read_idx(Path("t10k-images-idx3-ubyte.gz"), dims=3).shape
(10000, 28, 28)
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from raybench.core.errors import SpecError
from raybench.core.limits import refuse_bomb

__all__ = ["read_idx"]

_UBYTE = 0x08
_GZIP = b"\x1f\x8b"


def read_idx(path: Path, *, dims: int) -> np.ndarray:
    """Return the array in an idx file, gzipped or not: uint8 with `dims` dimensions.

    Raises:
        SpecError: not an idx file of unsigned bytes, another number of dimensions, fewer or more
            bytes than its header promises, or more than `raybench.core.limits` allows.
    """
    try:
        with path.open("rb") as probe:
            zipped = probe.read(2) == _GZIP
        # Neither stream is asked for more than the header promises, so no file can fill memory.
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if zipped else raw as stream:
            return _read(stream, path, dims)
    except (OSError, EOFError, zlib.error) as error:
        raise SpecError(
            f"{path}: cannot be read ({error}); the file is damaged, fetch it again"
        ) from error


def _read(stream: "IO[bytes] | gzip.GzipFile", path: Path, dims: int) -> np.ndarray:
    header = stream.read(4 + 4 * dims)
    if len(header) < 4 or header[:2] != b"\0\0":
        raise SpecError(f"{path}: not an idx file (it begins {header[:4].hex() or 'empty'})")
    kind, found = header[2], header[3]
    if kind != _UBYTE:
        raise SpecError(f"{path}: holds idx type 0x{kind:02x}, expected unsigned bytes (0x08)")
    if found != dims:
        raise SpecError(
            f"{path}: has {found} dimensions, expected {dims} "
            f"({'images' if dims == 3 else 'labels'}); is it another file under this name?"
        )
    if len(header) < 4 + 4 * dims:
        raise SpecError(f"{path}: ends within its header; fetch it again")
    shape = struct.unpack(f">{dims}I", header[4:])
    size = math.prod(shape)
    refuse_bomb(path, "its array", claimed=size, stored=path.stat().st_size)
    content = stream.read(size + 1)
    if len(content) != size:
        relation = "more" if len(content) > size else f"only {len(content):,}"
        raise SpecError(
            f"{path}: its header promises {size:,} bytes ({'x'.join(map(str, shape))}), "
            f"the file holds {relation}; fetch it again"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
