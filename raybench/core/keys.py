"""Content keys: the same value gives the same hex digest on every machine and Python."""

import hashlib
import json
import re
from typing import Any

__all__ = ["canonical_json", "digest", "slug"]


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no spaces; NaN and infinities are refused."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """Return the SHA-256 hex digest (64 characters) of `value`'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def slug(text: str, length: int = 48) -> str:
    """Return `text` as a safe file-name piece: letters, digits, dot, dash; never a path."""
    safe = re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.")
    return safe[:length].strip("-.") or "x"
