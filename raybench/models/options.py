"""The options every torch-like model scheme takes, read and checked in one place.

``access=labels|scores|logits|gradients|internals`` lowers what the model offers.
``mean=0.5,0.5,0.5&std=0.2,0.2,0.2`` normalises pixels inside the model; one value serves all
channels. ``shape=CxHxW`` is the input shape, with 0 for any height or width.
``output=logits|probabilities`` says what the network returns, ``classes=K`` how many classes it
knows, ``name=`` what tables call it. ``precision=bfloat16`` computes in half the bits: another
model, whose answers are near those of the first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raybench.core.errors import SpecError
from raybench.core.spec import Spec
from raybench.core.types import Access

__all__ = ["Options", "floats", "positive", "read", "shape", "whole"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The shared options of one spec; None or empty where it gives none.

    `extra` holds the converted options that only its scheme knows.
    """

    access: Access | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    shape: tuple[int, int, int] | None = None
    output: str = "logits"
    classes: int | None = None
    name: str | None = None
    precision: str = "float32"
    extra: Mapping[str, Any] = field(default_factory=dict)


def floats(raw: str) -> tuple[float, ...]:
    """Convert ``0.5,0.25`` to finite floats."""
    try:
        values = tuple(float(piece) for piece in raw.split(","))
    except ValueError:
        raise ValueError("expected numbers with commas between, such as 0.5,0.5,0.5") from None
    if not all(abs(value) < float("inf") for value in values):
        raise ValueError("expected finite numbers")
    return values


def positive(raw: str) -> int:
    """Convert a whole number of at least 1."""
    if not raw.isascii() or not raw.isdigit() or int(raw) < 1:
        raise ValueError("expected a whole number of at least 1")
    return int(raw)


def whole(raw: str) -> int:
    """Convert a whole number of at least 0."""
    if not raw.isascii() or not raw.isdigit():
        raise ValueError("expected a whole number of at least 0")
    return int(raw)


def shape(raw: str) -> tuple[int, int, int]:
    """Convert ``3x32x32``; H and W may be 0 for any size."""
    pieces = raw.lower().split("x")
    if len(pieces) != 3 or not all(piece.isascii() and piece.isdigit() for piece in pieces):
        raise ValueError("expected channels x height x width, such as 3x32x32 or 1x28x28")
    channels, height, width = map(int, pieces)
    if channels not in (1, 3):
        raise ValueError("expected 1 (grey) or 3 (RGB) channels")
    return channels, height, width


def _output(raw: str) -> str:
    if raw not in ("logits", "probabilities"):
        raise ValueError("expected logits or probabilities")
    return raw


def _precision(raw: str) -> str:
    if raw not in ("float32", "bfloat16"):
        raise ValueError("expected float32 or bfloat16")
    return raw


def _stds(raw: str) -> tuple[float, ...]:
    values = floats(raw)
    if min(values) <= 0:
        raise ValueError("expected numbers above 0")
    return values


COMMON: Mapping[str, Callable[[str], Any]] = {
    "access": Access.named,
    "mean": floats,
    "std": _stds,
    "shape": shape,
    "output": _output,
    "classes": positive,
    "name": str,
    "precision": _precision,
}


def read(
    spec: Spec,
    extra: Mapping[str, Callable[[str], Any]] | None = None,
    *,
    common: tuple[str, ...] = tuple(COMMON),
) -> Options:
    """Return the options of `spec`: those of `COMMON` named in `common`, and the scheme's `extra`.

    Raises:
        SpecError: an unknown option, a value that is refused, or a mean without a std.
    """
    known = {**{name: COMMON[name] for name in common}, **(extra or {})}
    values = spec.read_options(known)
    mean, std = values.get("mean", ()), values.get("std", ())
    if bool(mean) != bool(std):
        raise SpecError(f"{spec}: mean and std go together; give both or neither")
    if len(mean) != len(std):
        raise SpecError(f"{spec}: mean has {len(mean)} values and std has {len(std)}")
    shared = {name: value for name, value in values.items() if name in COMMON}
    own = {name: value for name, value in values.items() if name not in COMMON}
    return Options(**shared, extra=own)
