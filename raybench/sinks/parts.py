"""Parts: one shard's rows in one Parquet file, written whole, once, under its final name.

A part is written to a temporary file, forced to disk, and given its name by a hard link that fails
if the name exists: the first writer wins, and a crash at any point leaves either no part or a whole
one. The name is a content key (`core.plan.part_name`), so a retry or a duplicate finds it done.
"""

import contextlib
import hashlib
import io
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybench.core.errors import StoreError
from raybench.core.keys import canonical_json

__all__ = [
    "PartInfo",
    "commit_part",
    "encode_part",
    "hash_file",
    "inspect_content",
    "inspect_part",
    "read_footer",
    "read_part",
    "write_atomically",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """A committed part: file name, sha256 of its bytes, size in bytes, rows and error rows."""

    file: str
    sha256: str
    size: int
    rows: int
    errors: int


def commit_part(
    folder: Path, name: str, rows: pa.RecordBatch, metadata: dict[str, object]
) -> PartInfo:
    """Commit `rows` as ``folder/name`` and return what is there, whoever wrote it first.

    The file's bytes depend on `rows` and `metadata` alone.

    Args:
        folder: made if absent.
        name: final file name.
        rows: one shard.
        metadata: JSON values kept in the footer under ``raybench``.

    Raises:
        StoreError: the name is taken by a damaged file.
        OSError: the disk refused.
    """
    content = encode_part(rows, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.{uuid.uuid4().hex}.tmp"
    try:
        _write_synced(temporary, content)
        # A hard link, unlike a rename, refuses to replace a part that is already committed.
        os.link(temporary, folder / name)
    except FileExistsError:
        return inspect_part(folder / name)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(folder)
    return PartInfo(
        file=name,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        rows=rows.num_rows,
        errors=_count_errors(rows),
    )


def encode_part(rows: pa.RecordBatch, metadata: dict[str, object]) -> bytes:
    """Return the bytes of a part, which depend on `rows` and `metadata` alone."""
    floats = [
        path
        for path in _leaf_paths(rows.schema)
        if path.split(".")[0] in {"weights", "temperature_l1", "temperature_probability"}
    ]
    texts = [field.name for field in rows.schema if pa.types.is_string(field.type)]
    schema = rows.schema.with_metadata({"raybench": canonical_json(metadata)})
    table = pa.Table.from_batches([rows]).cast(schema)
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        use_dictionary=texts,
        use_byte_stream_split=floats,
        write_page_checksum=True,
    )
    return buffer.getvalue()


def _leaf_paths(schema: pa.Schema) -> list[str]:
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    parquet_schema = pq.ParquetFile(buffer).schema
    return [parquet_schema.column(index).path for index in range(len(parquet_schema))]


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    # Without this the name itself could be lost in a power cut although the bytes are safe.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that readers see the old file or the new one, never a piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        _write_synced(temporary, content)
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(path.parent)


def hash_file(path: Path) -> str:
    """Return the SHA-256 hex digest of the file's bytes.

    Raises:
        StoreError: the file is absent or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path.name} cannot be read: {error}") from error


def read_part(path: Path) -> pa.Table:
    """Return all rows of a part, page checksums verified.

    Raises:
        StoreError: the file is absent, truncated or damaged.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path.name} cannot be read: {error}") from error


def read_footer(path: Path) -> tuple[dict[str, Any], int]:
    """Return the metadata that a part was committed with, and its number of rows; reads no row.

    Raises:
        StoreError: the file is absent or damaged, or no part of raybench's.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = json.loads((file.schema_arrow.metadata or {})[b"raybench"])
            if not isinstance(metadata, dict):
                raise StoreError(f"{path.name} cannot be read: its metadata is no mapping")
            return metadata, file.metadata.num_rows
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise StoreError(f"{path.name} cannot be read: {error}") from error


def inspect_part(path: Path) -> PartInfo:
    """Return the facts of a committed part after reading all of it.

    Raises:
        StoreError: the file is absent, truncated or damaged.
    """
    table = read_part(path)
    return PartInfo(
        file=path.name,
        sha256=hash_file(path),
        size=path.stat().st_size,
        rows=table.num_rows,
        errors=_count_errors(table),
    )


def inspect_content(file: str, content: bytes) -> PartInfo:
    """Return the facts of a part called `file` whose bytes are `content`, all of it read.

    Raises:
        StoreError: it is truncated or damaged.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as source:
            rows = source.read()
        errors = _count_errors(rows)
    except (OSError, pa.ArrowException, KeyError) as error:
        raise StoreError(f"{file} cannot be read: {error}") from error
    return PartInfo(
        file=file,
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        rows=rows.num_rows,
        errors=errors,
    )


def _count_errors(rows: pa.RecordBatch | pa.Table) -> int:
    return sum(status != "ok" for status in rows.column("status").to_pylist())
