"""Networks trained here, kept as files that prove themselves: weights, facts and their hash."""

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from raybench.models.cache import write_whole
from raybench.models.fingerprints import fingerprint_module

__all__ = ["restore", "store"]

_log = logging.getLogger(__name__)


def store(network: nn.Module, path: Path, facts: Mapping[str, str]) -> None:
    """Write the weights of `network` to `path`, whole or not at all, with `facts` and a hash."""
    metadata = {**facts, "weights": fingerprint_module(network)}
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_whole(path, lambda part: save_file(state, part, metadata=metadata))


def restore(network: nn.Module, path: Path, level: int) -> dict[str, str] | None:
    """Load `path` into `network` and return its facts.

    None where it is absent or, logged at `level`, damaged; `network` is then as it was.
    """
    if not path.exists():
        return None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as stream:
            facts = dict(stream.metadata() or {})
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        network.load_state_dict(state)
    except (SafetensorError, RuntimeError, OSError) as error:
        _log.log(level, "%s is damaged and will be trained again (%s)", path, error)
        network.load_state_dict(before)
        return None
    if facts.pop("weights", None) != fingerprint_module(network):
        _log.log(level, "%s fails its own hash and will be trained again", path)
        # Training must begin from the keyed weights, not from what the file held.
        network.load_state_dict(before)
        return None
    return facts
