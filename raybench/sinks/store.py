"""A measurement's folder: its parts, and the manifest that says which of them make it whole.

The manifest (``_manifest.json``) is written by the driver alone; parts are written by workers. A
part that the manifest does not list yet (the driver died first) is adopted after all of it has been
read. A score is published only from a complete manifest.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybench.core.errors import StoreError
from raybench.core.keys import digest
from raybench.core.plan import Measurement, part_name
from raybench.core.types import Shard
from raybench.core.work import Receipt
from raybench.sinks.mirror import fetch, locked, push
from raybench.sinks.parts import (
    PartInfo,
    hash_file,
    inspect_part,
    read_footer,
    read_part,
    write_atomically,
)

__all__ = [
    "MANIFEST",
    "Expected",
    "Finding",
    "Manifest",
    "Stop",
    "adopt",
    "describe_folder",
    "find_folders",
    "find_manifests",
    "inspect_shard",
    "load_rows",
    "new_manifest",
    "parts_in",
    "read_manifest",
    "save_manifest",
    "verify",
    "with_receipts",
]

MANIFEST = "_manifest.json"
_LINE = json.JSONEncoder(sort_keys=True)
_PART_NAME = re.compile(r"part-\d{6}-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True, slots=True)
class Expected:
    """A shard the measurement needs: index, part file name, rows, digest of its sample ids."""

    index: int
    file: str
    rows: int
    ids: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """What a sequential run asked of a measurement, in place of all its images.

    Attributes:
        images: the first so many, every comparison being decided by then (or all, and still open).
        of: images of the whole measurement, the fixed-n design.
        queries_of: queries that all of them would take.
        record: file of the decisions, relative to the output folder.
    """

    images: int
    of: int
    queries_of: int
    record: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a measurement consists of and what of it is done.

    Attributes:
        measurement: `Measurement.describe()`.
        shard_size: images in a shard.
        shards: every shard it needs.
        parts: file name -> facts of the committed part, with the queries and seconds it took (null
            where a crash lost them).
        failures: shard index -> last error, of the latest run.
        environment: library versions of the latest run.
        baseline, twins: what the latest run compared models with; see `metrics.brittle`.
        run: when that run began (UTC, ISO 8601 to the microsecond), which tells the latest of
            several measurements' runs; empty where none compared it.
        stop: set by a sequential run that ended before all images; a plain run asks for all again.
        partial: why the latest run left shards undone that it could have done: a spent query
            budget. Empty where it did not.
    """

    measurement: dict[str, Any]
    shard_size: int
    shards: tuple[Expected, ...]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    baseline: str | None = None
    twins: bool = True
    run: str = ""
    stop: Stop | None = None
    partial: str = ""

    @property
    def asked(self) -> tuple[Expected, ...]:
        """The shards that the latest run asked for, in order: those of the first images, or all."""
        if self.stop is None:
            return self.shards
        starts = itertools.accumulate((shard.rows for shard in self.shards), initial=0)
        pairs = zip(starts, self.shards, strict=False)
        return tuple(shard for start, shard in pairs if start < self.stop.images)

    @property
    def owed(self) -> tuple[Expected, ...]:
        """The shards asked for without a committed part, in order."""
        return tuple(shard for shard in self.asked if shard.file not in self.parts)

    @property
    def missing(self) -> tuple[Expected, ...]:
        """The shards without a committed part, in order."""
        return tuple(shard for shard in self.shards if shard.file not in self.parts)

    @property
    def complete(self) -> bool:
        """Whether every shard that was asked for is committed."""
        return not self.owed


def new_manifest(
    measurement: Measurement, shards: Sequence[Shard], shard_size: int, environment: dict[str, str]
) -> Manifest:
    """Return the manifest of a measurement of which nothing is done yet."""
    key = measurement.key
    expected = tuple(
        Expected(
            shard.index,
            part_name(key, shard),
            len(shard.ids),
            digest(list(shard.ids)),
        )
        for shard in shards
    )
    return Manifest(
        measurement=measurement.describe(),
        shard_size=shard_size,
        shards=expected,
        environment=environment,
    )


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically; in a mirror it counts once it is in the store, too.

    Raises:
        StoreError: the object store does not take it. The mirror has it.
    """
    content = _encoded(manifest)
    with locked(folder):
        write_atomically(folder / MANIFEST, content)
        push(folder / MANIFEST)


def _encoded(manifest: Manifest) -> bytes:
    """Return the manifest as JSON, with a line for each shard and each part.

    Line by line: a large one is written many times in a run, and this takes a quarter of the time
    and of the memory that a deep copy and `json.dumps` with an indent take.
    """
    small = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    shards, parts = small.pop("shards"), small.pop("parts")
    small |= {"schema": 1, "complete": manifest.complete}
    small["stop"] = None if manifest.stop is None else asdict(manifest.stop)
    content = bytearray(json.dumps(small, indent=1, sort_keys=True).removesuffix("\n}").encode())
    content += b',\n "shards": ['
    for index, shard in enumerate(shards):
        facts = {"index": shard.index, "file": shard.file, "rows": shard.rows, "ids": shard.ids}
        content += f"{',' if index else ''}\n  {_LINE.encode(facts)}".encode()
    content += b'\n ],\n "parts": {'
    for index, file in enumerate(sorted(parts)):
        line = f"{_LINE.encode(file)}: {_LINE.encode(parts[file])}"
        content += f"{',' if index else ''}\n  {line}".encode()
    content += b"\n }\n}"
    return bytes(content)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest in `folder`.

    Raises:
        StoreError: it is absent or not a manifest of a version this raybench reads.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content.pop("schema") != 1:
            raise StoreError(f"{path} was written by another version of raybench")
        content.pop("complete")
        content["shards"] = tuple(Expected(**shard) for shard in content["shards"])
        if content.get("stop") is not None:
            content["stop"] = Stop(**content["stop"])
        manifest = Manifest(**content)
        # Names come from a file that others may have written: they must not leave the folder.
        odd = [shard.file for shard in manifest.shards if not _PART_NAME.fullmatch(shard.file)]
        odd += [name for name in manifest.parts if not _PART_NAME.fullmatch(name)]
        if odd:
            raise StoreError(f"{path} is damaged: {odd[0]!r} is no name of a part")
        return manifest
    except FileNotFoundError as error:
        raise StoreError(f"no manifest at {path}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error


def find_manifests(out: Path) -> list[Path]:
    """Return the folders below `out` that hold a manifest, sorted."""
    return sorted(path.parent for path in (out / "rows").glob(f"*/*/*/*/{MANIFEST}"))


def find_folders(out: Path) -> list[Path]:
    """Return the folders below `out` that hold a manifest, or parts that have lost theirs, sorted.

    Parts are looked for where no manifest is, in folders named as a measurement's.
    """
    found = set(find_manifests(out))
    for folder in (out / "rows").glob("*/*/*/measurement=*"):
        if folder not in found and any(parts_in(folder)):
            found.add(folder)
    return sorted(found)


def parts_in(folder: Path) -> Iterator[Path]:
    """Yield the committed parts in `folder`, whether a manifest lists them or not."""
    return (path for path in folder.glob("part-*.parquet") if _PART_NAME.fullmatch(path.name))


def describe_folder(folder: Path) -> dict[str, Any]:
    """Return `Measurement.describe()` of a folder: its manifest's, else what a part's footer holds.

    Raises:
        StoreError: neither can be read, or says that it belongs to another folder.
    """
    try:
        return read_manifest(folder).measurement
    except StoreError as error:
        for path in sorted(parts_in(folder)):
            try:
                described = read_footer(path)[0].get("measurement")
            except StoreError:
                continue
            if isinstance(described, dict) and (
                folder.name == f"measurement={str(described.get('key'))[:16]}"
            ):
                return described
        raise StoreError(f"{error}, and no part beside it says what it belongs to") from error


def adopt(folder: Path, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """Return the manifest brought in line with the folder, and a sentence for each surprise.

    Listed parts that are gone or whose bytes have changed are struck out; parts on disk that are
    not listed are read whole and listed. Damaged ones are removed, so that they are computed again.
    """
    parts: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    for shard in manifest.shards:
        path = folder / shard.file
        known = manifest.parts.get(shard.file)
        try:
            if known is not None:
                # The size first: it is free, and tells most damage.
                if path.stat().st_size != known["size"] or hash_file(path) != known["sha256"]:
                    raise StoreError(f"{shard.file} differs from its manifest")
                parts[shard.file] = known
            elif path.exists():
                parts[shard.file] = asdict(inspect_shard(path, shard)) | {
                    "queries": None,
                    "seconds": None,
                }
        except FileNotFoundError:
            notes.append(f"{shard.file} has gone; it will be computed again")
        except StoreError as error:
            path.unlink(missing_ok=True)
            notes.append(f"{error}; it will be computed again")
    return replace(manifest, parts=parts), notes


def inspect_shard(path: Path, shard: Expected) -> PartInfo:
    """Return the facts of the part of `shard` after reading all of it.

    Raises:
        StoreError: it is damaged, or holds other samples than its shard.
    """
    info = inspect_part(path)
    ids = read_part(path).column("sample_id").to_pylist()
    if info.rows != shard.rows or digest(ids) != shard.ids:
        raise StoreError(f"{path.name} holds other samples than its shard")
    return info


def with_receipts(manifest: Manifest, receipts: Iterable[Receipt]) -> Manifest:
    """Return the manifest with the parts of `receipts` listed."""
    parts = dict(manifest.parts)
    for receipt in receipts:
        known = parts.get(receipt.file)
        if known is not None and receipt.queries == 0:
            continue
        parts[receipt.file] = {
            "file": receipt.file,
            "sha256": receipt.sha256,
            "size": receipt.size,
            "rows": receipt.rows,
            "errors": receipt.errors,
            "queries": receipt.queries or None,
            "seconds": round(receipt.seconds, 6) or None,
        }
    return replace(manifest, parts=parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something `verify` found wrong: the shard, its file, and what."""

    shard: int
    file: str
    problem: str


def verify(folder: Path, manifest: Manifest) -> list[Finding]:
    """Return what is wrong with the committed parts: bytes, rows, ids, schema. Reads all of them.

    Parts of another cut are findings, for plain readers count their rows too. Shards that were
    never computed are not; they are ``manifest.missing``.
    """
    findings = []
    schemas: set[str] = set()
    for shard in manifest.shards:
        known = manifest.parts.get(shard.file)
        if known is None:
            continue
        path = folder / shard.file
        try:
            if not path.exists():
                raise StoreError("the file has gone")
            if hash_file(path) != known["sha256"]:
                raise StoreError("its bytes differ from the manifest's sha256")
            inspect_shard(path, shard)
            table = read_part(path)
            schemas.add(str(table.schema.remove_metadata()))
            if len(schemas) > 1:
                raise StoreError("its schema differs from the other parts'")
        except StoreError as error:
            findings.append(Finding(shard.index, shard.file, str(error)))
    names = {shard.file for shard in manifest.shards}
    for path in sorted(parts_in(folder)):
        if path.name not in names:
            problem = "it is none of the manifest's shards, and doubles rows for plain readers"
            findings.append(Finding(int(path.name[5:11]), path.name, problem))
    return findings


def load_rows(folder: Path, manifest: Manifest, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a complete measurement in shard order, every byte checked.

    Of one that a sequential run stopped, the rows it asked for. In a mirror of an object store,
    parts that are not there yet are fetched.

    Raises:
        StoreError: shards are missing, a part is damaged, or the object store fails.
    """
    if not manifest.complete:
        raise StoreError(
            f"{folder}: {len(manifest.owed)} of {len(manifest.asked)} shards are missing; "
            "score again to compute them"
        )
    fetch(folder, {one.file: manifest.parts[one.file]["sha256"] for one in manifest.asked})
    tables = []
    for shard in manifest.asked:
        if hash_file(folder / shard.file) != manifest.parts[shard.file]["sha256"]:
            raise StoreError(
                f"{shard.file} is damaged: its bytes differ from the manifest's sha256; "
                "'raybench verify --repair' computes it again"
            )
        table = read_part(folder / shard.file)
        if table.num_rows != shard.rows:
            raise StoreError(f"{shard.file} has {table.num_rows} rows, expected {shard.rows}")
        table = table.replace_schema_metadata(None)
        tables.append(table if columns is None else table.select(list(columns)))
    return pa.concat_tables(tables)
