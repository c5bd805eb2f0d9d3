"""Mirrors: the local folders that stand for results in an object store.

    >>> out = local_name("s3://bucket/runs/1")     # ~/.cache/raybench/stores/bucket-runs-1-0c65...
    >>> address_of(out)
    Address(scheme='s3', path='bucket/runs/1', options={})

The code reads and writes local folders only. Results whose name is an address have one below the
cache folder, named by bucket, prefix and endpoint, with a note in it that says whose mirror it is.
A note is heeded in the folder that its address leads to and nowhere else, so that no copied folder
can send anyone to somebody's store. Whatever is in a mirror can be had again from its store, but
for MLflow's own database.
"""

import json
import os
import re
import uuid
from dataclasses import replace
from pathlib import Path

from raybench.core.cache import cache_folder, cache_path
from raybench.core.keys import digest, slug
from raybench.core.objects import Address, is_address, read_address

__all__ = ["address_of", "local_name", "mirror_root", "shown"]

_NOTE = ".raybench-store.json"
_STORES = "stores"


def local_name(text: str | Path) -> Path:
    """Return the local folder that `text` names: itself, or for an address its mirror, made.

    Raises:
        InputError: an address that cannot be one of results; a cache folder that cannot be made.
    """
    if not is_address(str(text)):
        return Path(text)
    address = read_address(str(text))
    if address.endpoint:
        options = {"endpoint_override": address.endpoint} | address.options
        address = replace(address, options=options)
    folder = cache_folder(_STORES, _mirror(address).name).absolute()
    note = json.dumps({"schema": 1, "address": str(address)})
    path = folder / _NOTE
    if not path.exists() or path.read_text(encoding="utf-8") != note:
        temporary = path.with_name(f"{_NOTE}.{uuid.uuid4().hex}.tmp")
        temporary.write_text(note, encoding="utf-8")
        temporary.replace(path)
    return folder


def mirror_root(path: Path) -> Path | None:
    """Return the mirror that `path` is or lies in, or None for any other path; looks at no file."""
    stores = _stores()
    absolute = Path(os.path.abspath(path))
    if stores not in absolute.parents:
        return None
    return stores / absolute.relative_to(stores).parts[0]


def address_of(path: Path) -> Address | None:
    """Return the address whose mirror `path` is or lies in; None for any other path."""
    root = mirror_root(path)
    if root is None:
        return None
    try:
        address = read_address(json.loads((root / _NOTE).read_bytes())["address"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if _mirror(address) == root else None


def shown(path: Path, text: str | None = None) -> str:
    """Return `text` (by default `path` itself) with the store's address in place of its mirror."""
    root, address = mirror_root(path), address_of(path)
    text = str(path) if text is None else text
    if root is None or address is None:
        return text
    return re.sub(re.escape(str(root)) + r"(?![\w-])", address.short, text)


def _stores() -> Path:
    return Path(os.path.abspath(cache_path(_STORES)))


def _mirror(address: Address) -> Path:
    endpoint = address.options.get("endpoint_override", "")
    endpoint = re.sub(r"^https?:/+", "", endpoint).rstrip("/")
    key = digest([address.scheme, address.path, endpoint])
    return _stores() / f"{slug(address.path)}-{key[:16]}"
