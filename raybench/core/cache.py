"""Where this machine keeps what can be had again: weights, ledgers, mirrors of object stores."""

import os
from pathlib import Path

from raybench.core.errors import InputError

__all__ = ["cache_folder", "cache_path"]


def cache_path(*parts: str) -> Path:
    """Return a path in the cache, ``RAYBENCH_CACHE`` or ~/.cache/raybench; nothing is made."""
    root = os.environ.get("RAYBENCH_CACHE")
    top = Path(root).expanduser() if root else Path.home() / ".cache" / "raybench"
    return top.joinpath(*parts)


def cache_folder(*parts: str) -> Path:
    """Return a folder of the cache, made where absent; see `cache_path`.

    Raises:
        InputError: it cannot be made.
    """
    folder = cache_path(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder {folder} cannot be made ({error.strerror}); set RAYBENCH_CACHE to a "
            "folder that can be written"
        ) from error
    return folder
