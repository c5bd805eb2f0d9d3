"""State dictionaries: read from safetensors or .pt without running code, loaded strictly."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raybench.core.errors import SpecError
from raybench.models.archives import refuse_claims, refuse_declared
from raybench.models.touched import note_file

__all__ = ["PICKLE_SUFFIXES", "load_strictly", "read_pickle", "read_state", "unwrap_state"]

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")

# Where training scripts put the weights inside what they save, in order of precedence.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
_LISTED = 8


def read_state(path: Path, what: object) -> dict[str, Tensor]:
    """Return the state dictionary kept in `path`, on the CPU; `what` begins every message.

    ``.safetensors`` holds it plainly; the pickles of `PICKLE_SUFFIXES` are read by `read_pickle`
    and unwrapped by `unwrap_state`.

    Raises:
        SpecError: absent, of another kind, damaged, or a pickle that needs code.
    """
    if not path.is_file():
        raise SpecError(f"{what}: there is no file {path}")
    if path.suffix == ".safetensors":
        note_file(path)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SpecError(
                f"{what}: {path} is not a readable safetensors file: {error}"
            ) from error
    if path.suffix not in PICKLE_SUFFIXES:
        raise SpecError(
            f"{what}: {path.name} must end in .safetensors, {', '.join(PICKLE_SUFFIXES)}"
        )
    return unwrap_state(read_pickle(path, what), f"{what}: {path.name}")


def read_pickle(path: Path, what: object) -> Any:
    """Return what torch saved in `path`, of plain values and tensors alone (``weights_only``).

    There is no way round: a file that names any other class or function is refused, since loading
    it would run code from the file.

    Raises:
        SpecError: a pickle that needs code (naming what it asked for), a file that would take more
            memory than `raybench.core.limits` allows, or a damaged file.
    """
    note_file(path)
    try:
        refuse_claims(path, what)
        with warnings.catch_warnings():
            # Of a file that plain pickle wrote; what matters of it is in the error that follows.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            saved = torch.load(path, map_location="cpu", weights_only=True)
        refuse_declared(saved, path, what)
        return saved
    except SpecError:
        raise
    except pickle.UnpicklingError as error:
        text = str(error)
        asked = next(
            (
                line.strip()
                for line in text.splitlines()
                if "GLOBAL" in line or "Unsupported" in line
            ),
            text.splitlines()[0] if text else repr(error),
        )
        raise SpecError(
            f"{what}: {path.name} is refused: it is a pickle that holds more than tensors, and "
            f"loading it would run code from the file ({asked}). Open it where you trust it and "
            "save its weights alone: safetensors.torch.save_file(model.state_dict(), "
            "'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise SpecError(
            f"{what}: {path.name} is damaged or not a file saved by torch ({reason})"
        ) from error


def unwrap_state(saved: Any, what: object) -> dict[str, Tensor]:
    """Return the state dictionary inside what a training script saved.

    It may lie under one of the keys ``state_dict``, ``model_state_dict``, ``model``, ``net`` or
    ``weights``, and all its names may begin with ``module.`` (DataParallel) or ``_orig_mod.``
    (torch.compile); both are taken off.

    Raises:
        SpecError: there is none; the keys found are listed.
    """
    if not isinstance(saved, Mapping):
        raise SpecError(f"{what} holds a {type(saved).__name__}, expected a state dictionary")
    state: Mapping[Any, Any] = saved
    if not _is_state(state):
        for key in _WRAPPERS:
            inner = saved.get(key)
            if isinstance(inner, Mapping) and _is_state(inner):
                state = inner
                break
        else:
            keys = ", ".join(str(key) for key in list(saved)[:_LISTED]) or "nothing"
            raise SpecError(
                f"{what} holds no state dictionary: expected tensors, or one of the keys "
                f"{', '.join(_WRAPPERS)}; found {keys}"
            )
    plain = dict(state)
    for prefix in ("module.", "_orig_mod."):
        if plain and all(name.startswith(prefix) for name in plain):
            plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: object) -> None:
    """Load `state` into `module`; every name and shape must agree.

    A missing ``num_batches_tracked`` is no fault: nothing in evaluation mode reads it. A tensor
    without values (torch's meta device) is one: torch would leave the network's own in place.

    Raises:
        SpecError: names the missing, the unexpected and the misshapen.
    """
    own = module.state_dict()
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    empty = [name for name in own if name in state and state[name].is_meta]
    faults = [
        f"{label} {len(names)}: {', '.join(names[:_LISTED])}{' ...' * (len(names) > _LISTED)}"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
            ("without values", empty),
        )
        if names
    ]
    if faults:
        raise SpecError(f"{what}: the weights do not fit the network; {'; '.join(faults)}")
    module.load_state_dict(dict(state), strict=False)


def _is_state(value: Mapping[Any, Any]) -> bool:
    return bool(value) and all(
        isinstance(name, str) and isinstance(inner, Tensor) for name, inner in value.items()
    )
