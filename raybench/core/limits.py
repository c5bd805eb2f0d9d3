"""How much memory a file may claim: asked before any is spent, the same for data and models.

>>> refuse_bomb("npz:test.npz", "test.npz", claimed=3 * 2**40, stored=4096)
Traceback (most recent call last):
raybench.core.errors.SpecError: npz:test.npz: test.npz has 4.0 KiB and would take 3072.0 GiB ...

A file may always take what it has on disk; what it unpacks to may be more, within two limits. The
first is `LIMIT` in gibibytes (`DEFAULT_GIB`), which the environment can raise. The second catches
bombs that stay below it: from `_FREE` bytes on, no more than `MAX_RATIO` times the file.
"""

import os

from raybench.core.errors import InputError, SpecError

__all__ = ["DEFAULT_GIB", "LIMIT", "MAX_RATIO", "max_bytes", "refuse_bomb", "shown", "to_raise"]

LIMIT = "RAYBENCH_MAX_GIB"
"""The variable that says how many GiB one file may take once it is unpacked."""

DEFAULT_GIB = 8

MAX_RATIO = 100
"""Deflate reaches 1,032; photographs and weights stay below 3, drawings of digits below 20."""

_FREE = 256 * 2**20
_MOST = 2**20


def max_bytes() -> int:
    """Return how many bytes one file may take once it is unpacked.

    Raises:
        InputError: `LIMIT` is set to something else than a number of GiB.
    """
    given = os.environ.get(LIMIT, "").strip() or str(DEFAULT_GIB)
    try:
        gib = float(given)
    except ValueError:
        gib = 0.0
    # Written so that NaN fails too.
    if not 0 < gib <= _MOST:
        raise InputError(
            f"{LIMIT}={given} is not a number of GiB from above 0 to {_MOST:,}, such as 16"
        )
    return int(gib * 2**30)


def refuse_bomb(what: object, name: object, *, claimed: int, stored: int) -> None:
    """Refuse the file `name` of `stored` bytes where it would take `claimed` bytes unpacked.

    Raises:
        SpecError: more than the limits above allow; says which, and how to raise it.
    """
    claim = f"{what}: {name} has {shown(stored)} and would take {shown(claimed)} unpacked"
    if claimed > max(max_bytes(), stored):
        raise SpecError(
            f"{claim}, more than the limit of {shown(max_bytes())}; {to_raise(claimed)}"
        )
    if claimed > max(_FREE, MAX_RATIO * stored):
        raise SpecError(
            f"{claim}, more than {MAX_RATIO} times as much; it may be a decompression bomb. If you "
            "trust it, unpack it yourself and save it anew without compression"
        )


def to_raise(claimed: int) -> str:
    """Return the tail of an error about a claim beyond `max_bytes`: how to allow it."""
    return (
        f"if you trust it and the memory is there, set {LIMIT}={-(-claimed // 2**30)} wherever it "
        "is read"
    )


def shown(size: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, bytes_of_it in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_of_it:
            return f"{size / bytes_of_it:.1f} {unit}"
    return f"{size} bytes"
