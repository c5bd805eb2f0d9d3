"""Images as rows of Parquet files: which row group holds a row, and how it is read.

>>> table, schema = footer(root, file)
>>> contents(dataset, ["data/test-00000.parquet#17"])
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybench.core.errors import SpecError
from raybench.core.limits import LIMIT, max_bytes, shown, to_raise
from raybench.core.types import Batch, DatasetInfo
from raybench.data.filesystem import File, Root, Unreadable, open_file
from raybench.data.images import Preprocessing, assemble

__all__ = ["ParquetDataset", "Table", "contents", "footer", "stamps"]

_Place = tuple[str, int]  # file, row group
_ROOM = 256 * 2**20
_BATCH = 1024
_MEMORY = ("kept", "room", "held")


class _TooLargeError(Exception):
    """A row group takes more memory than it may; the text is for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One Parquet file: its listing, and the first row of each of its row groups."""

    file: File
    starts: tuple[int, ...]
    rows: int


@dataclass(slots=True, kw_only=True, eq=False)
class ParquetDataset:
    """A selection of rows; picklable, without what it remembers.

    A shard of a shuffled selection touches many row groups, so what has been read is remembered:
    the encoded images of the selection up to `_ROOM` bytes, and the last column chunk.
    """

    info: DatasetInfo
    ids: Sequence[str]
    root: Root
    tables: Mapping[str, Table]
    image: str
    label: str | None
    steps: Preprocessing
    kept: dict[str, bytes | None] = field(default_factory=dict, repr=False)
    room: int = field(default=_ROOM, repr=False)
    held: tuple[tuple[str, int, str], pa.ChunkedArray] | None = field(default=None, repr=False)
    groups: dict[_Place, tuple[list[str], list[int]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.groups = _by_group(self, self.ids)

    def read(self, ids: Sequence[str]) -> Batch:
        """Return the images of `ids`, reading only the row groups that hold them.

        Raises:
            OSError: the store failed; asking again may help.
        """
        content = dict(contents(self, ids))
        samples = ((name, self.root.source(name), content[name]) for name in ids)
        return assemble(samples, self.steps, self.info.shape)

    def labels(self, ids: Sequence[str]) -> np.ndarray | None:
        """Return labels [len(ids)] int64, or None where there are none.

        Raises:
            SpecError: a row without a label, or labels that take too much memory.
        """
        if self.label is None:
            return None
        found: dict[str, int] = {}
        for place, (names, rows) in _by_group(self, ids).items():
            try:
                values = _column(self, place, self.label, rows)
            except _TooLargeError as error:
                raise SpecError(
                    f"{self.info.spec}: the column {self.label!r} of {place[0]}: {error}"
                ) from error
            for name, value in zip(names, values, strict=True):
                if value is None:
                    raise SpecError(f"{self.info.spec}: row {name} has no {self.label}")
                found[name] = value
        return np.array([found[name] for name in ids], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name not in _MEMORY}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        for name, value in {**state, "kept": {}, "room": _ROOM, "held": None}.items():
            setattr(self, name, value)


def footer(root: Root, file: File, image: str) -> tuple[Table, pa.Schema]:
    """Return where the rows of a Parquet file lie, and its schema, from its footer alone.

    Raises:
        SpecError: not a Parquet file, a damaged one, or a row group whose column `image` takes more
            memory than `_group_bytes`.
    """
    try:
        with open_file(root, file.name) as stream, pq.ParquetFile(stream) as parquet:
            metadata, schema = parquet.metadata, parquet.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise SpecError(f"{root.source(file.name)} cannot be read as Parquet ({error})") from error
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    sizes = [group.num_rows for group in groups]
    if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
        raise SpecError(
            f"{root.source(file.name)} cannot be read as Parquet (its footer says "
            f"{metadata.num_rows:,} rows, its row groups {sum(sizes):,})"
        )
    for index, group in enumerate(groups):
        claimed = _unpacked(group, image)
        if claimed > _group_bytes():
            raise SpecError(
                f"{root.source(file.name)}: the column {image!r} of row group {index} takes "
                f"{shown(claimed)}, more than the limit of {shown(_group_bytes())} (a quarter of "
                f"{LIMIT}). Write it with smaller row groups; {to_raise(4 * claimed)}"
            )
    starts = tuple(int(start) for start in np.cumsum([0, *sizes])[:-1])
    return Table(file=file, starts=starts, rows=metadata.num_rows), schema


def _group_bytes() -> int:
    """Return what one column of one row group may take; it is held up to four times over."""
    return max_bytes() // 4


def _unpacked(group: Any, name: str) -> int:
    """Return the bytes that the footer states for a column of a row group, encoded."""
    chunks = [group.column(index) for index in range(group.num_columns)]
    return sum(
        max(chunk.total_uncompressed_size, chunk.total_compressed_size)
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] == name
    )


def _by_group(
    dataset: ParquetDataset, ids: Iterable[str]
) -> dict[_Place, tuple[list[str], list[int]]]:
    """Return for each row group the ids in it, and their rows inside it."""
    groups: dict[_Place, tuple[list[str], list[int]]] = {}
    for name in ids:
        file, _, row = name.rpartition("#")
        starts = dataset.tables[file].starts
        group = bisect_right(starts, int(row)) - 1
        names, rows = groups.setdefault((file, group), ([], []))
        names.append(name)
        rows.append(int(row) - starts[group])
    return groups


def _column(dataset: ParquetDataset, place: _Place, column: str, rows: list[int]) -> list[Any]:
    """Return the values of some rows of a row group; neighbouring shards share one reading."""
    key = (*place, column)
    if dataset.held is None or dataset.held[0] != key:
        dataset.held = None
        file, group = place
        with open_file(dataset.root, file) as stream, pq.ParquetFile(stream) as parquet:
            found = _read(parquet, group, column)
        if pa.types.is_struct(found.type):
            found = pc.struct_field(found, "bytes")
        dataset.held = key, found
    held = dataset.held[1]
    # Not take(): it joins the batches, and 2 GiB of bytes do not fit in one.
    return [held[row].as_py() for row in rows]


def _read(parquet: pq.ParquetFile, group: int, column: str) -> pa.ChunkedArray:
    """Return a column of a row group, read in batches so that it can be given up in time.

    A column that refers to its dictionary again and again is small in the file and in the footer,
    whatever its values add up to.

    Raises:
        _TooLargeError: it takes more than `_group_bytes`.
    """
    limit = _group_bytes()
    # So that a batch of the largest value that the chunk can hold stays below the limit.
    rows = limit // max(1, _unpacked(parquet.metadata.row_group(group), column))
    batches: list[pa.Array] = []
    held = 0
    for batch in parquet.iter_batches(
        batch_size=min(max(rows, 1), _BATCH), row_groups=[group], columns=[column]
    ):
        batches.append(batch.column(0))
        held += batch.nbytes
        if held > limit:
            raise _TooLargeError(
                f"the row group unpacks to more than {shown(limit)} (a quarter of {LIMIT}); it "
                "may be a decompression bomb"
            )
    return pa.chunked_array(batches, parquet.schema_arrow.field(column).type)


def contents(
    dataset: ParquetDataset, ids: Iterable[str]
) -> Iterator[tuple[str, "bytes | Unreadable"]]:
    """Yield (id, encoded image or why there is none), row group by row group.

    Raises:
        OSError: the store failed; asking again may help.
    """
    ids = list(ids)
    for name in ids:
        if name in dataset.kept:
            yield name, _filled(dataset.kept[name])
    unread = [name for name in ids if name not in dataset.kept]
    for place, (names, rows) in _by_group(dataset, unread).items():
        try:
            values = _column(dataset, place, dataset.image, rows)
            _keep(dataset, place)
        except FileNotFoundError:
            values = [Unreadable("the file is not there any more")] * len(names)
        except _TooLargeError as error:
            values = [Unreadable(str(error))] * len(names)
        except pa.ArrowInvalid as error:
            values = [_damaged(error)] * len(names)
        except OSError as error:
            # Arrow reports a page that does not decompress as an OSError without an errno; what
            # has one, or comes from a store, may pass.
            if error.errno is not None or not dataset.root.local:
                raise
            values = [_damaged(error)] * len(names)
        for name, value in zip(names, values, strict=True):
            yield name, _filled(value)


def _keep(dataset: ParquetDataset, place: _Place) -> None:
    if not dataset.room:
        return
    names, rows = dataset.groups[place]
    values = _column(dataset, place, dataset.image, rows)
    size = sum(len(value or b"") for value in values)
    if size <= dataset.room:
        dataset.room -= size
        dataset.kept.update(zip(names, values, strict=True))
    else:
        dataset.room = 0


def _filled(value: "bytes | Unreadable | None") -> "bytes | Unreadable":
    return Unreadable("the row holds no image bytes") if value is None else value


def _damaged(error: Exception) -> Unreadable:
    return Unreadable(f"the row group is damaged ({error})")


def stamps(dataset: ParquetDataset) -> list[Any]:
    """Return what tells one content of the selected rows from another, as JSON values.

    For local files the SHA-256 of each image, so it costs one reading; for remote ones the path,
    size and time of change of each file that holds any.
    """
    if dataset.root.local:
        found = {name: _stamp(content) for name, content in contents(dataset, dataset.ids)}
        return [found[name] for name in dataset.ids]
    used = sorted({name.rpartition("#")[0] for name in dataset.ids})
    files = [dataset.tables[name].file for name in used]
    return [[dataset.root.inside(file.name), file.size, file.mtime_ns] for file in files]


def _stamp(content: "bytes | Unreadable") -> str:
    if isinstance(content, Unreadable):
        return str(content)
    return hashlib.sha256(content).hexdigest()
