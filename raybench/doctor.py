"""What this machine offers and lacks: versions, devices, Ray, write access, schemes."""

import os
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from raybench.core.catalog import model_schemes
from raybench.core.errors import InputError
from raybench.core.mirrors import local_name, shown
from raybench.job import library_versions
from raybench.sinks.mirror import ready_to_write

__all__ = ["Check", "examine"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's report; `ok` is False where something a run needs is missing."""

    subject: str
    ok: bool
    text: str


def examine(out: Path) -> list[Check]:
    """Return what was found; Ray is looked at, not started."""
    checks = [Check("versions", True, ", ".join(f"{k} {v}" for k, v in library_versions().items()))]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    checks.append(Check("cpu", True, f"{cores} cores"))
    checks.append(_devices())
    checks.append(_ray())
    checks.append(_output(out))
    cache = Path(os.environ.get("RAYBENCH_CACHE", Path.home() / ".cache" / "raybench"))
    checks.append(_writable("cache folder", cache))
    for name, entry in sorted(model_schemes().items()):
        missing = [module for module in entry.needs if find_spec(module) is None]
        text = f"missing: {', '.join(missing)}" if missing else f"ready ({entry.example})"
        checks.append(Check(f"scheme {name}", not missing, text))
    return checks


def _devices() -> Check:
    if not torch.cuda.is_available():
        return Check("gpu", True, "none: models run on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("gpu", True, ", ".join(names))


def _ray() -> Check:
    if find_spec("ray") is None:
        return Check("ray", False, "not installed; only --runner local works")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return Check("ray", True, f"will join the cluster at {address} (RAY_ADDRESS)")
    return Check("ray", True, "a local cluster is started for each run that has work to do")


def _output(out: Path) -> Check:
    """Look whether results can be written; an object store is asked."""
    try:
        folder = local_name(out)
        if not ready_to_write(folder):
            return _writable("output folder", folder)
    except InputError as error:
        return Check("output folder", False, str(error))
    return Check("output folder", True, f"{shown(folder)} can be written; its mirror is {folder}")


def _writable(what: str, folder: Path) -> Check:
    """Look whether a file can be made in `folder`, or in its nearest parent that exists."""
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    try:
        with tempfile.NamedTemporaryFile(dir=nearest):
            return Check(what, True, f"{folder} can be written")
    except OSError as error:
        return Check(what, False, f"{folder} cannot be written: {error}")
