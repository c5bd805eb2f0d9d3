"""Small files with huge claims: each is refused before the memory is spent."""

import gzip
import io
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raybench.core import limits
from raybench.core.catalog import open_dataset
from raybench.core.errors import SpecError
from raybench.data import parquet, tables
from raybench.data.idx import read_idx

MIB = 2**20


@contextmanager
def spending_at_most(mebibytes: int) -> Iterator[None]:
    """Fail where NumPy and Python (traced) or Arrow (counted) take more within the block."""
    usual = pa.default_memory_pool()
    arrow = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * MIB
        assert arrow.max_memory() < mebibytes * MIB
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def npy(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    """Return the header of an array, which nothing follows."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def archive(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return f"npz:{path}"


# --- NumPy archives ---


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((10**6, 1000, 1000, 3), r"array 'images' of .*t\.npz.* would take 2794\.0 GiB unpacked"),
        ((10**5, 32, 32, 3), "would take 293.0 MiB unpacked, more than 100 times"),
        ((2, 4, 4), r"declares uint8 2x4x4, which is 32 bytes, but 0 follow it"),
        ((-3, 4, 4), r"declares uint8 -3x4x4"),
        ((2**62, 2**62, 4), "would take .* more than the limit of 8.0 GiB"),
    ],
)
def test_a_header_cannot_claim_what_is_not_there(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    spec = archive(tmp_path / "t.npz", images=npy(shape))
    with spending_at_most(4), pytest.raises(SpecError, match=message):
        open_dataset(spec)


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = np.random.default_rng(0).integers(0, 256, (24 * 64, 1024), dtype=np.uint8)
    pixels = np.repeat(lines, 16, axis=0).tobytes()
    spec = archive(tmp_path / "t.npz", images=npy((24, 1024, 1024)) + pixels)
    assert (tmp_path / "t.npz").stat().st_size < 4 * MIB
    monkeypatch.setenv(limits.LIMIT, "0.01")
    with spending_at_most(4), pytest.raises(SpecError, match=r"t\.npz.* RAYBENCH_MAX_GIB=1 "):
        open_dataset(spec)
    monkeypatch.setenv(limits.LIMIT, "1")
    assert open_dataset(spec).info.size == 24


def test_labels_are_counted_with_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = npy((4, 1024, 1024)) + bytes(4 * MIB)
    labels = npy((MIB // 2,), "<i8") + bytes(4 * MIB)
    spec = archive(tmp_path / "t.npz", images=images, labels=labels)
    monkeypatch.setenv(limits.LIMIT, "0.006")
    with spending_at_most(4), pytest.raises(SpecError, match=r"would take 8\.0 MiB unpacked"):
        open_dataset(spec)


def test_a_member_named_without_suffix_is_checked_as_it_is_read(tmp_path: Path) -> None:
    # np.load takes the first of these two.
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as file:
        file.writestr("images", npy((10**6, 1000, 1000, 3)))
        file.writestr("images.npy", npy((1, 2, 2)) + bytes(4))
    with spending_at_most(4), pytest.raises(SpecError, match="GiB unpacked"):
        open_dataset(f"npz:{tmp_path}/t.npz")


def test_a_single_array_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(npy((10**6, 1000, 1000, 3)))
    with spending_at_most(4), pytest.raises(SpecError, match="is a single array"):
        open_dataset(f"npz:{tmp_path}/t.npz")


# --- idx files ---


def test_a_gzipped_idx_file_that_unpacks_too_far_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is there, so that only the limits stop it."""
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    header = b"\0\0\x08\3" + struct.pack(">III", 300, 1024, 1024)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header)
        for _ in range(300):
            file.write(bytes(MIB))
    message = r"t10k.* would take 300\.0 MiB unpacked, more than 100 times"
    with spending_at_most(4), pytest.raises(SpecError, match=message):
        read_idx(path, dims=3)
    monkeypatch.setenv(limits.LIMIT, "0.1")
    message = r"t10k.* more than the limit of 102\.4 MiB; .* RAYBENCH_MAX_GIB=1 "
    with spending_at_most(4), pytest.raises(SpecError, match=message):
        read_idx(path, dims=3)


# --- Parquet ---


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    return stream.getvalue()


def repeated(path: Path, value: bytes, times: int) -> str:
    """Write one value, referred to `times` times, after one real image."""
    column = pa.DictionaryArray.from_arrays(
        pa.array([0] + [1] * times, pa.int32()), pa.array([png(), value], pa.binary())
    )
    pq.write_table(pa.table({"image": column}), path, compression="zstd", store_schema=False)
    return f"parquet:{path}?resize=8"


def test_a_dictionary_bomb_gives_failures_and_little_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = repeated(tmp_path / "bomb.parquet", bytes(MIB), 20_000)
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    monkeypatch.setenv(limits.LIMIT, str(64 / 1024))
    with spending_at_most(60):
        # All rows of the group fail, so no image is left to learn the size from.
        data = open_dataset(f"{spec}&n=3")
        batch = data.read(data.ids)
    assert len(batch.failures) == 3
    assert "unpacks to more than 16.0 MiB (a quarter of RAYBENCH_MAX_GIB)" in str(batch.failures)


def test_labels_that_unpack_too_far_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 200_000
    image = pa.DictionaryArray.from_arrays(
        pa.array([0] * rows, pa.int32()), pa.array([png()], pa.binary())
    )
    table = pa.table({"image": image, "label": pa.array([7] * rows, pa.int64())})
    pq.write_table(table, tmp_path / "t.parquet", store_schema=False)
    data = open_dataset(f"parquet:{tmp_path}/t.parquet?n=5")
    monkeypatch.setenv(limits.LIMIT, str(4 / 1024))
    with pytest.raises(SpecError, match=r"the column 'label' of t\.parquet: .* more than 1\.0 MiB"):
        data.labels(data.ids)


def test_a_row_group_that_states_too_much_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("read")

    spec = repeated(tmp_path / "t.parquet", bytes(8 * MIB), 1)
    monkeypatch.setenv(limits.LIMIT, str(16 / 1024))
    monkeypatch.setattr(parquet, "_read", never)
    message = r"'image' of row group 0 takes 8\.0 MiB, more than the limit of 4\.0 MiB .*GIB=1 "
    with spending_at_most(4), pytest.raises(SpecError, match=message):
        open_dataset(spec)


def test_a_footer_cannot_claim_more_rows_than_ids_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nulls cost nothing in the file: 3 million of them, which would be 85 million by default.
    pq.write_table(pa.table({"image": pa.nulls(3_000_000, pa.binary())}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    monkeypatch.setenv(limits.LIMIT, str(200 / 1024))
    with spending_at_most(4), pytest.raises(SpecError, match="claims 3,000,000 rows, whose ids"):
        open_dataset(f"parquet:{tmp_path}/t.parquet")
    assert tables._ID_BYTES * 85_899_346 > limits.DEFAULT_GIB * 2**30


def test_a_row_group_of_several_batches_keeps_its_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_BATCH", 4)
    column = pa.array([f"{row}".encode() for row in range(11)], pa.binary())
    pq.write_table(pa.table({"image": column}), tmp_path / "t.parquet")
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        found = parquet._read(file, 0, "image")
    assert found.num_chunks == 3
    assert found.to_pylist() == column.to_pylist()
