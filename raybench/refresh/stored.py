"""What of a measurement is stored already, told without reading its rows.

A folder stands when its manifest is complete and every part has the size that the manifest says: a
file system that loses or cuts files shows, a flipped bit does not. Whatever publishes numbers reads
the rows anyway, hashes them all, and refuses a part whose bytes have changed; ``--rehash`` reads
every byte of every part, as does ``raybench verify``.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybench.core.errors import StoreError
from raybench.core.keys import digest
from raybench.core.plan import Measurement, cut_shards
from raybench.sinks.mirror import fetch, push
from raybench.sinks.parts import commit_part, hash_file, read_part
from raybench.sinks.store import Manifest, new_manifest, read_manifest, save_manifest

__all__ = ["content_token", "refile", "standing"]


def standing(out: Path, measurement: Measurement, *, rehash: bool) -> bool:
    """Return whether `measurement` is stored whole below `out`, so that nothing is to be computed.

    Args:
        out: the output folder.
        measurement: the work.
        rehash: hash every part, instead of trusting its size.
    """
    folder = out / measurement.folder
    try:
        manifest = read_manifest(folder)
        whole = not manifest.missing and manifest.stop is None
        if manifest.measurement["key"] != measurement.key or not whole:
            return False
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
        for shard in manifest.shards:
            part = manifest.parts[shard.file]
            if sizes.get(shard.file) != part["size"]:
                return False
            if rehash and hash_file(folder / shard.file) != part["sha256"]:
                return False
    except (StoreError, OSError, KeyError):
        return False
    return True


def content_token(out: Path, folders: Iterable[str]) -> str:
    """Return a digest of what the manifests in `folders` say is stored: tables are made of that."""
    content: list[list[Any]] = []
    for folder in folders:
        try:
            manifest = read_manifest(out / folder)
        except StoreError as error:
            content.append([folder, str(error)])
            continue
        parts = sorted(part["sha256"] for part in manifest.parts.values())
        content.append([folder, len(manifest.shards), parts, manifest.failures])
    return digest(content)


def refile(out: Path, measurement: Measurement, ids: Sequence[str], earlier: Iterable[str]) -> bool:
    """File the rows of a renamed model again, under its new name; return whether they were there.

    A model's name is part of a measurement's key, its rows do not depend on it: what is written is
    what computing it under the new name would write. The old rows stay.

    Args:
        out: the output folder.
        measurement: the work under the new name.
        ids: sample ids of its images.
        earlier: folders below `out` that may hold the same work under another name.
    """
    for name in earlier:
        try:
            manifest = read_manifest(out / name)
            if not manifest.missing and _same_work(manifest.measurement, measurement):
                _copy(out / name, manifest, out / measurement.folder, measurement, ids)
                return True
        except (StoreError, OSError, ValueError):
            continue  # damaged, or an older schema: it is computed instead
    return False


def _same_work(stored: dict[str, Any], measurement: Measurement) -> bool:
    """Whether a stored measurement is this one, names of the model aside."""
    wanted = measurement.identity()
    known = {name: stored.get(name) for name in wanted}
    model = {name: stored["model"][name] for name in wanted["model"] if name != "name"}
    dataset = {name: stored["dataset"][name] for name in wanted["dataset"]}
    nameless = {name: value for name, value in wanted["model"].items() if name != "name"}
    return known | {"model": model, "dataset": dataset} == wanted | {"model": nameless} and (
        "labels" in stored
    ) == ("labels" in wanted)


def _copy(
    source: Path, manifest: Manifest, target: Path, measurement: Measurement, ids: Sequence[str]
) -> None:
    size = manifest.shard_size
    made = new_manifest(measurement, cut_shards(tuple(ids), size), size, manifest.environment)
    parts = {}
    fetch(source, {name: part["sha256"] for name, part in manifest.parts.items()})
    for old, new in zip(manifest.shards, made.shards, strict=True):
        known = manifest.parts[old.file]
        if old.ids != new.ids or hash_file(source / old.file) != known["sha256"]:
            raise StoreError(f"{old.file} is not what its manifest says")
        # Parquet calls the items of a list otherwise than an evaluation does; the bytes would tell.
        rows = read_part(source / old.file).cast(measurement.evaluation.schema())
        batch = pa.RecordBatch.from_arrays(
            [column.combine_chunks() for column in rows.columns], schema=rows.schema
        )
        metadata: dict[str, object] = {
            "measurement": measurement.describe(),
            "shard": new.index,
        }
        info = commit_part(target, new.file, batch, metadata)
        push(target / new.file)
        parts[new.file] = asdict(info) | {
            "queries": known["queries"],
            "seconds": known["seconds"],
        }
    save_manifest(
        target,
        replace(
            made, parts=parts, baseline=manifest.baseline, twins=manifest.twins, run=manifest.run
        ),
    )
