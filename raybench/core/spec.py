"""The one spec syntax, ``scheme:rest?option=value&option=value``, for everything that is named.

    >>> parse("mnist?split=test&n=100").canonical()
    'mnist?n=100&split=test'
    >>> parse("file:net.safetensors?arch=pkg.nets:make").rest
    'net.safetensors'

Models, datasets and readings all use it. Options are literals: parsed, never evaluated. A ``?``,
``&`` or ``%`` that belongs to a path or a value is percent-encoded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from raybench.core.errors import SpecError, near_miss

__all__ = ["Spec", "boolean", "parse"]

_SAFE = "/:.,@~*+=!$'()[] -_"


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed spec; `options` are (name, value) pairs sorted by name, without repeats."""

    scheme: str
    rest: str = ""
    options: tuple[tuple[str, str], ...] = ()

    def canonical(self) -> str:
        """Return the one spelling of this spec, fit to be a key; `parse` gives it back."""
        head = f"{self.scheme}:{quote(self.rest, safe=_SAFE)}" if self.rest else self.scheme
        tail = "&".join(
            f"{quote(k, safe=_SAFE)}={quote(v, safe=_SAFE.replace('=', ''))}"
            for k, v in self.options
        )
        return f"{head}?{tail}" if tail else head

    def __str__(self) -> str:
        """Return the canonical spelling."""
        return self.canonical()

    def get(self, name: str) -> str | None:
        """Return the raw value of option `name`, or None where it was not given."""
        return dict(self.options).get(name)

    def with_options(self, **values: object) -> "Spec":
        """Return a copy with `values` set; a value of None removes the option."""
        merged: dict[str, str] = dict(self.options)
        for name, value in values.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = str(value)
        return Spec(self.scheme, self.rest, tuple(sorted(merged.items())))

    def read_options(self, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """Return the options converted by `known` (name -> converter).

        Converters raise ValueError for a value they cannot take, with the accepted values as text.

        Raises:
            SpecError: an unknown option (with near misses) or a value its converter refuses.
        """
        values: dict[str, Any] = {}
        for name, raw in self.options:
            if name not in known:
                raise SpecError(f"{self}: no option is named {name!r}{near_miss(name, known)}")
            try:
                values[name] = known[name](raw)
            except ValueError as error:
                raise SpecError(f"{self}: option {name}={raw!r}: {error}") from error
        return values


def boolean(raw: str) -> bool:
    """Convert ``true/false``, ``yes/no``, ``1/0`` to a bool."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if raw.lower() not in values:
        raise ValueError("expected true or false")
    return values[raw.lower()]


def parse(text: str) -> Spec:
    """Return the `Spec` that `text` spells.

    Raises:
        SpecError: empty text, a scheme with odd characters, an option without ``=``, or one given
            twice.
    """
    head, _, tail = text.strip().partition("?")
    scheme, _, rest = head.partition(":")
    if not scheme or not all(c.isalnum() or c in "-_." for c in scheme):
        raise SpecError(
            f"{text!r} is not a spec: expected scheme:rest?option=value, where the scheme is made "
            "of letters, digits, '-', '_' and '.'"
        )
    options: dict[str, str] = {}
    for piece in filter(None, tail.split("&")):
        name, equals, value = piece.partition("=")
        name = unquote(name)
        if not equals or not name:
            raise SpecError(f"{text!r}: expected option=value after '?', found {piece!r}")
        if name in options:
            raise SpecError(f"{text!r}: option {name!r} is given twice")
        options[name] = unquote(value)
    return Spec(scheme, unquote(rest), tuple(sorted(options.items())))
