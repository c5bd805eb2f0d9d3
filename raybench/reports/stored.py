"""What is stored below an output folder: whose it is, what it is called, how fast it was made."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybench.core.decisions import Decisions, decisions_of
from raybench.core.errors import StoreError
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.sinks.store import Manifest, describe_folder, find_folders, read_manifest

__all__ = [
    "StoredFolders",
    "dataset_info",
    "distinct_names",
    "model_info",
    "queries_made",
    "stored_decisions",
    "stored_folders",
    "worker_speed",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFolders:
    """The measurement folders below an output folder.

    Attributes:
        scores: those of scores; where the manifest cannot be read but a part says what it is, too.
        attacks: those of attacks with a readable manifest; they have tables of their own.
        damaged: those whose manifest is absent or damaged, each with what is wrong.
    """

    scores: tuple[Path, ...]
    attacks: tuple[Path, ...]
    damaged: tuple[tuple[Path, str], ...]


def stored_folders(out: Path) -> StoredFolders:
    """Return what is stored below `out`, each manifest read once."""
    scores: list[Path] = []
    attacks: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for folder in find_folders(out):
        try:
            family = read_manifest(folder).measurement["family"]
        except StoreError as error:
            damaged.append((folder, str(error)))
            with contextlib.suppress(StoreError):
                if describe_folder(folder)["family"] != "attack":
                    scores.append(folder)
        else:
            (attacks if family == "attack" else scores).append(folder)
    return StoredFolders(scores=tuple(scores), attacks=tuple(attacks), damaged=tuple(damaged))


def dataset_info(measurement: Mapping[str, Any]) -> DatasetInfo:
    """Return the selection of images of a stored measurement."""
    shape = {"shape": tuple(measurement["dataset"]["shape"])}
    return DatasetInfo(**(measurement["dataset"] | shape))


def distinct_names(measurements: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the models' names, with what tells them apart behind those that two share.

    That is the access level where one model is seen through several, else part of the key.
    """
    namesakes: dict[str, list[Mapping[str, Any]]] = {}
    for one in measurements:
        namesakes.setdefault(one["model"]["name"], []).append(one)
    return [_distinct_name(one, namesakes[one["model"]["name"]]) for one in measurements]


def _distinct_name(one: Mapping[str, Any], namesakes: Sequence[Mapping[str, Any]]) -> str:
    model = one["model"]
    if len(namesakes) == 1:
        return str(model["name"])
    levels = {other["model"]["access"] for other in namesakes}
    models = {other["model"]["fingerprint"] for other in namesakes}
    if len(models) == 1 and len(levels) == len(namesakes):
        return f"{model['name']} ({model['access']})"
    return f"{model['name']}@{model['fingerprint'][:8]}-{one['key'][:4]}"


def model_info(measurement: Mapping[str, Any]) -> ModelInfo:
    """Return the model of a stored measurement."""
    facts = dict(measurement["model"])
    facts["access"] = Access.named(facts["access"])
    facts["input_shape"] = tuple(facts["input_shape"])
    facts["details"] = tuple(facts["details"].items())
    return ModelInfo(**facts)


def stored_decisions(out: Path, manifests: Sequence[Manifest]) -> Decisions | None:
    """Return what the latest sequential run over `manifests` decided.

    None where none stopped any of them, or where its record has gone.
    """
    stopped = [one for one in manifests if one.stop is not None]
    latest = max(stopped, key=lambda one: one.run, default=None)
    if latest is None or latest.stop is None:
        return None
    try:
        return decisions_of(json.loads((out / latest.stop.record).read_bytes()))
    except (OSError, ValueError, StoreError):
        return None


def worker_speed(manifest: Manifest) -> float | None:
    """Return images per second of worker time, over the parts whose time is known."""
    timed = [part for part in manifest.parts.values() if part["seconds"]]
    seconds = sum(part["seconds"] for part in timed)
    return sum(part["rows"] for part in timed) / seconds if seconds else None


def queries_made(manifest: Manifest, samples: int) -> int:
    """Return how many images the model was asked about for the parts of a measurement.

    A part whose count a crash lost counts with `samples` for each image scored, the least it took.
    """
    return sum(
        (part["rows"] - part["errors"]) * samples if part["queries"] is None else part["queries"]
        for part in manifest.parts.values()
    )
