"""What identifies a network: a hash of its weights, its structure and its own code."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raybench.core.keys import canonical_json
from raybench.models.touched import note_file

__all__ = ["LIBRARIES", "file_sha256", "fingerprint_file", "fingerprint_module"]

# Their classes are named, not hashed: a comment changed in a new release is no new model.
LIBRARIES = frozenset({"torch", "torchvision", "timm", "robustbench", "raybench"})
_PLAIN = (bool, int, float, str, type(None))


def fingerprint_module(module: nn.Module, extra: str = "") -> str:
    """Return the SHA-256 hex digest (64 characters) that identifies `module`.

    It covers every parameter and buffer (name, dtype, shape, bytes; also buffers that are not
    saved), the printed structure, plain settings held as attributes, the source text of module
    classes from outside the well-known libraries, and `extra` (normalisation, output kind). It
    does not depend on the device, nor on the file format the weights came from.
    """
    total = hashlib.sha256()
    tensors: dict[str, Any] = {
        **dict(module.named_buffers(remove_duplicate=False)),
        **module.state_dict(),
    }
    for name in sorted(tensors):
        value = tensors[name]
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            total.update(f"{name} {_stable(repr(value))}\n".encode())
    total.update(_stable(repr(module)).encode())
    total.update(_settings(module).encode())
    total.update(_sources(module).encode())
    total.update(extra.encode())
    return total.hexdigest()


def fingerprint_file(path: Path, extra: str = "", *, others: tuple[Path, ...] = ()) -> str:
    """Return the digest that identifies a model kept in one file (and `others` it refers to)."""
    for each in (path, *others):
        note_file(each)
    parts = [file_sha256(path), *(file_sha256(other) for other in others), extra]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 hex digest of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _stable(text: str) -> str:
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(inner) for key, inner in value.items())
    return (
        isinstance(value, _PLAIN)
        and value == value
        and value
        not in (
            float("inf"),
            float("-inf"),
        )
    )


def _settings(module: nn.Module) -> str:
    found = {
        f"{name}.{key}": value
        for name, inner in module.named_modules()
        for key, value in vars(inner).items()
        if not key.startswith("_") and key != "training" and _plain(value)
    }
    return canonical_json(found)


def _sources(module: nn.Module) -> str:
    classes = {type(inner) for inner in module.modules()}
    texts = []
    for kind in sorted(classes, key=lambda kind: (kind.__module__, kind.__qualname__)):
        name = f"{kind.__module__}.{kind.__qualname__}"
        if kind.__module__.partition(".")[0] not in LIBRARIES:
            try:
                name = inspect.getsource(kind)
                note_file(inspect.getfile(kind))
            except (OSError, TypeError):
                # Classes made at run time have no source; their name has to do.
                name = kind.__qualname__
        texts.append(name)
    return "\n".join(texts)
