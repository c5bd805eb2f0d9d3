"""Which images are taken, under which names, and the one spelling of that choice.

    >>> pick(["test/0", "test/1", "test/2"], n=2)
    [0, 1]

Every dataset takes ``n=`` and ``sample_seed=``. Without a seed the first n in source order are
taken; with one, ids are ordered by the SHA-256 of ``seed|id``, which depends on no library, so
that the selection of 100 is the beginning of the selection of 1000.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raybench.core.errors import SpecError
from raybench.core.keys import digest
from raybench.core.spec import Spec

__all__ = ["COMMON", "fingerprint", "path_of", "pick", "positive", "respell", "seed", "split"]


def positive(raw: str) -> int:
    """Convert a whole number of at least 1."""
    if not (raw.isascii() and raw.isdigit()) or int(raw) < 1:
        raise ValueError("expected a whole number of at least 1")
    return int(raw)


def seed(raw: str) -> int:
    """Convert a whole number of at least 0."""
    if not (raw.isascii() and raw.isdigit()):
        raise ValueError("expected a whole number of at least 0")
    return int(raw)


def split(raw: str) -> str:
    """Convert ``test`` or ``train``; ``val`` is another name of ``test``."""
    names = {"test": "test", "val": "test", "train": "train"}
    if raw not in names:
        raise ValueError("expected test (also called val) or train")
    return names[raw]


# The options every dataset takes.
COMMON: Mapping[str, Callable[[str], Any]] = {"n": positive, "sample_seed": seed, "root": str}


def pick(ids: Sequence[str], *, n: int | None = None, sample_seed: int | None = None) -> list[int]:
    """Return the positions in `ids` of the selected ones, in the order of the selection.

    Args:
        ids: every id of the source, in source order.
        n: how many; None, or more than there are, takes all.
        sample_seed: None keeps source order; a number orders by keyed hash first.
    """
    order: Sequence[int] = range(len(ids))
    if sample_seed is not None:
        keys = [hashlib.sha256(f"{sample_seed}|{name}".encode()).digest() for name in ids]
        order = sorted(order, key=keys.__getitem__)
    return list(order[:n])


def respell(spec: Spec, options: Mapping[str, object | None], *, rest: str = "", total: int) -> str:
    """Return the canonical spec of an opened selection.

    Args:
        spec: as the user gave it.
        options: converted options by name; None leaves one out (a default), and so does an ``n``
            that takes all `total` images, since that is the same selection.
        rest: what stands after the scheme.
        total: how many images the source has.
    """
    kept = {name: str(value) for name, value in options.items() if value is not None}
    if int(kept.get("n", total)) >= total:
        kept.pop("n", None)
    return Spec(spec.scheme, rest, tuple(sorted(kept.items()))).canonical()


def path_of(spec: Spec, values: Mapping[str, Any]) -> str:
    """Return the path of a spec that is about one: ``scheme:path`` or ``scheme?root=path``.

    Raises:
        SpecError: none is given, or both are.
    """
    root = values.get("root")
    if bool(root) == bool(spec.rest):
        raise SpecError(
            f"{spec.scheme}: expected one path, as in {spec.scheme}:/data/images, "
            + ("found both a path and root=" if root else "found none")
        )
    path = str(root or spec.rest)
    return path.rstrip("/") or "/"


def fingerprint(content: object, ids: Sequence[str], preprocessing: str) -> str:
    """Return the SHA-256 hex digest that identifies selected images, however they were named.

    Args:
        content: JSON value that changes whenever a selected image does; labels are no part of it.
        ids: selected ids, in order.
        preprocessing: everything done to an image between its source and the batch, as text.
    """
    return digest({"content": content, "ids": list(ids), "preprocessing": preprocessing})
