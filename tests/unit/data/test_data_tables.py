import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import fs

from raybench.core.catalog import open_dataset
from raybench.core.errors import SpecError
from raybench.data import filesystem, parquet


def png(seed: int, size: tuple[int, int] = (8, 6)) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue(), pixels


def expected(seed: int) -> torch.Tensor:
    return torch.from_numpy(png(seed)[1]).permute(2, 0, 1).float() / 255


def write(
    path: Path,
    seeds: range,
    *,
    plain: bool = False,
    label: str | None = "label",
    image: str = "image",
    group: int = 3,
    names: list[str] | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [png(seed)[0] for seed in seeds]
    columns: dict[str, object] = {"other": list(seeds)}
    columns[image] = (
        cells
        if plain
        else pa.array(
            [{"bytes": cell, "path": "x.png"} for cell in cells],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
    )
    if label:
        columns[label] = pa.array([seed % 10 for seed in seeds], pa.int64())
    table = pa.table(columns)
    if names:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=group)


# --- Parquet ---


@pytest.mark.parametrize("plain", [False, True])
def test_a_file_of_images_is_read_row_by_row(tmp_path: Path, plain: bool) -> None:
    write(tmp_path / "a.parquet", range(10), plain=plain, names=list("abcdefghij"))
    data = open_dataset(f"parquet:{tmp_path}/a.parquet")
    assert data.ids == tuple(f"a.parquet#{i}" for i in range(10))
    assert data.info.shape == (3, 8, 6)
    assert (data.info.name, data.info.num_classes, data.info.has_labels) == ("a", 10, True)
    batch = data.read(["a.parquet#7", "a.parquet#0", "a.parquet#8"])
    assert batch.ids == ("a.parquet#7", "a.parquet#0", "a.parquet#8")
    for row, seed in enumerate((7, 0, 8)):
        assert torch.equal(batch.images[row], expected(seed))
    assert batch.sources[0] == f"{tmp_path}/a.parquet#7"
    assert data.labels(["a.parquet#7", "a.parquet#0"]).tolist() == [7, 0]
    assert data.labels(["a.parquet#7"]).dtype == np.int64


def test_a_folder_of_files_keeps_its_order_and_its_splits_apart(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test-00001-of-00002.parquet", range(3, 5))
    write(tmp_path / "data" / "test-00000-of-00002.parquet", range(3))
    write(tmp_path / "data" / "train-00000-of-00001.parquet", range(5, 9))
    assert open_dataset(f"parquet:{tmp_path}").info.size == 9
    test = open_dataset(f"parquet:{tmp_path}?split=test")
    assert test.info.size == 5
    assert test.ids[3] == "data/test-00001-of-00002.parquet#0"
    assert torch.equal(test.read(test.ids).images[4], expected(4))
    assert test.info.spec == f"parquet:{tmp_path}?split=test"
    with pytest.raises(SpecError, match=r"of the split 'val' \(found data/test-00000"):
        open_dataset(f"parquet:{tmp_path}?split=val")


def test_the_canonical_spec_opens_the_same_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(10), image="img", label="fine")
    data = open_dataset(f"parquet:{tmp_path}?image=img&label=fine&n=4&sample_seed=5&resize=4")
    again = open_dataset(data.info.spec)
    assert (again.info, again.ids) == (data.info, data.ids)
    assert data.info.spec.endswith("?image=img&label=fine&n=4&resize=4&sample_seed=5")
    assert data.labels(data.ids).tolist() == [int(name.rpartition("#")[2]) for name in data.ids]
    assert torch.equal(data.read(data.ids).images, again.read(data.ids).images)


def test_only_the_row_groups_that_hold_the_rows_are_read_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet", range(12))
    opened: list[int] = []
    original = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, **settings: object) -> Iterator[pa.RecordBatch]:
        assert settings["columns"] == ["image"]
        opened.extend(settings["row_groups"])
        return original(self, **settings)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    data = open_dataset(f"parquet:{tmp_path}?n=7")
    assert sorted(opened) == [0, 1, 2]
    data.read(data.ids)
    assert len(opened) == 3
    # A worker that gets it by pickle remembers nothing at first; shards then share what it read.
    other = pickle.loads(pickle.dumps(data))
    other.read(["a.parquet#6"])
    assert opened[3:] == [2]
    other.read(["a.parquet#0", "a.parquet#4"])
    other.read(["a.parquet#1", "a.parquet#5", "a.parquet#6"])
    assert opened[3:] == [2, 0, 1]


def test_rows_are_right_when_nothing_can_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_ROOM", 10)
    write(tmp_path / "a.parquet", range(12))
    data = pickle.loads(pickle.dumps(open_dataset(f"parquet:{tmp_path}")))
    batch = data.read(["a.parquet#11", "a.parquet#2", "a.parquet#10"])
    assert [torch.equal(batch.images[i], expected(s)) for i, s in enumerate((11, 2, 10))] == [
        True
    ] * 3
    assert not data.kept


def test_bad_rows_become_failures(tmp_path: Path) -> None:
    good = png(0)[0]
    cells = [
        {"bytes": good, "path": None},
        {"bytes": None, "path": "elsewhere.png"},
        None,
        {"bytes": b"junk", "path": None},
        {"bytes": b"", "path": None},
        {"bytes": png(1, (9, 9))[0], "path": None},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells[:5], kind)}), tmp_path / "a.parquet")
    data = open_dataset(f"parquet:{tmp_path}")
    batch = data.read(data.ids)
    assert batch.ids == ("a.parquet#0",)
    errors = {failure.id: failure.error for failure in batch.failures}
    assert errors["a.parquet#1"] == errors["a.parquet#2"] == "the row holds no image bytes"
    assert "not an image" in errors["a.parquet#3"]
    assert "0 bytes" in errors["a.parquet#4"]
    assert data.labels(data.ids) is None
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), tmp_path / "a.parquet")
    with pytest.raises(SpecError, match=r"a.parquet#0 has 8x6 .*a.parquet#5 has 9x9"):
        open_dataset(f"parquet:{tmp_path}")


def test_a_damaged_row_group_fails_its_own_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, range(6), group=3, label=None)
    with pq.ParquetFile(path) as file:
        index = next(
            i
            for i in range(file.metadata.num_columns)
            if file.metadata.row_group(1).column(i).path_in_schema == "image.bytes"
        )
        chunk = file.metadata.row_group(1).column(index)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        end = start + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start:end] = b"\xff" * (end - start)
    path.write_bytes(content)
    data = open_dataset(f"parquet:{tmp_path}")
    batch = data.read(data.ids)
    assert batch.ids == ("a.parquet#0", "a.parquet#1", "a.parquet#2")
    assert [failure.id for failure in batch.failures] == [f"a.parquet#{i}" for i in (3, 4, 5)]
    assert "row group is damaged" in batch.failures[0].error
    path.unlink()
    gone = pickle.loads(pickle.dumps(data)).read(data.ids)
    assert [failure.error for failure in gone.failures] == ["the file is not there any more"] * 6


def test_tables_that_hold_no_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    spec = f"parquet:{path}"
    with pytest.raises(SpecError, match="no such file"):
        open_dataset(spec)
    path.write_bytes(b"PAR1 junk")
    with pytest.raises(SpecError, match="cannot be read as Parquet"):
        open_dataset(spec)
    write(path, range(2), image="imago")
    with pytest.raises(SpecError, match="no column 'image'; did you mean imago"):
        open_dataset(spec)
    with pytest.raises(SpecError, match="has int64 in the column 'other', expected encoded images"):
        open_dataset(f"{spec}?image=other")
    with pytest.raises(SpecError, match="no column 'labl'; did you mean label"):
        open_dataset(f"{spec}?image=imago&label=labl")
    with pytest.raises(SpecError, match="expected whole numbers"):
        open_dataset(f"{spec}?image=imago&label=imago")
    pq.write_table(pa.table({"sample_id": ["a"], "score": [1.0]}), path)
    with pytest.raises(SpecError, match="it looks like raybench results"):
        open_dataset(spec)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    with pytest.raises(SpecError, match="has no rows"):
        open_dataset(spec)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SpecError, match="holds no Parquet file"):
        open_dataset(f"parquet:{empty}")


def test_a_folder_of_results_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "lime" / "measurement=0123" / "part-000000-ab.parquet", range(2))
    with pytest.raises(SpecError, match="holds raybench results, not images"):
        open_dataset(f"parquet:{tmp_path}")


def test_labels_are_optional_but_never_partial(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", range(2), label=None)
    data = open_dataset(f"parquet:{tmp_path}")
    assert not data.info.has_labels
    assert data.info.num_classes is None
    write(tmp_path / "b.parquet", range(2))
    with pytest.raises(SpecError, match=r"b.parquet and .*a.parquet differ"):
        open_dataset(f"parquet:{tmp_path}")
    table = pa.table({"image": [png(0)[0], png(1)[0]], "label": pa.array([1, None], pa.int8())})
    pq.write_table(table, tmp_path / "c.parquet")
    holes = open_dataset(f"parquet:{tmp_path}/c.parquet")
    with pytest.raises(SpecError, match=r"row c.parquet#1 has no label"):
        holes.labels(holes.ids)


def test_the_fingerprint_follows_the_selected_rows(tmp_path: Path) -> None:
    write(tmp_path / "one" / "a.parquet", range(6), group=2)
    write(tmp_path / "two" / "a.parquet", range(6), group=6, label=None, plain=True)
    one, two = (open_dataset(f"parquet:{tmp_path}/{name}") for name in ("one", "two"))
    assert one.info.fingerprint == two.info.fingerprint
    shorter = open_dataset(f"parquet:{tmp_path}/one?n=5")
    assert shorter.info.fingerprint != one.info.fingerprint
    write(tmp_path / "two" / "a.parquet", range(1, 7))
    assert open_dataset(f"parquet:{tmp_path}/two").info.fingerprint != one.info.fingerprint


def test_parquet_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "bucket" / "a.parquet", range(4))
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(filesystem, "connect", lambda uri: (store, uri.partition("://")[2]))
    for path in ("bucket", "bucket/a.parquet"):
        data = open_dataset(f"parquet:s3://{path}?n=3")
        assert data.ids == ("a.parquet#0", "a.parquet#1", "a.parquet#2")
        assert data.read(data.ids).sources[1] == "s3://bucket/a.parquet#1"
        assert torch.equal(data.read(data.ids).images[2], expected(2))
        assert open_dataset(data.info.spec).info == data.info


# --- NumPy archives ---


def archive(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), dtype=np.uint8)


def test_every_layout_and_dtype_gives_the_same_images(tmp_path: Path) -> None:
    wanted = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    nchw = np.ascontiguousarray(PIXELS.transpose(0, 3, 1, 2))
    for name, array in {
        "nhwc": PIXELS,
        "nchw": nchw,
        "floats": nchw.astype(np.float32) / np.float32(255),
    }.items():
        data = open_dataset(archive(tmp_path / f"{name}.npz", images=array))
        batch = data.read(data.ids)
        assert torch.equal(batch.images, wanted)
        assert batch.images.is_contiguous()
        assert data.info.shape == (3, 5, 4)
        assert data.labels(data.ids) is None
    grey = open_dataset(archive(tmp_path / "nhw.npz", images=PIXELS[..., 0]))
    assert torch.equal(grey.read(grey.ids).images, wanted[:, :1])


def test_npz_ids_labels_and_selection(tmp_path: Path) -> None:
    labels = np.arange(7, dtype=np.uint8) + 3
    spec = archive(tmp_path / "t.npz", x=PIXELS, y=labels)
    data = open_dataset(f"{spec}?images=x&labels=y&n=4&sample_seed=1&layout=nhwc")
    assert data.info.spec == f"{spec}?images=x&labels=y&n=4&sample_seed=1"
    assert data.info.name == "t"
    rows = [int(name.removeprefix("t.npz#")) for name in data.ids]
    assert data.labels(data.ids).tolist() == labels[rows].tolist()
    assert data.read(data.ids).sources == tuple(f"{tmp_path}/t.npz#{row}" for row in rows)
    again = open_dataset(data.info.spec)
    assert (again.info, again.ids) == (data.info, data.ids)


def test_a_layout_that_could_be_either_must_be_named(tmp_path: Path) -> None:
    square = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), dtype=np.uint8)
    spec = archive(tmp_path / "t.npz", images=square)
    with pytest.raises(SpecError, match="2x3x5x3, which may be nhwc or nchw"):
        open_dataset(spec)
    assert open_dataset(f"{spec}?layout=nhwc").info.shape == (3, 3, 5)
    first = open_dataset(f"{spec}?layout=nchw")
    assert first.info.shape == (3, 5, 3)
    assert first.info.spec == f"{spec}?layout=nchw"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS.astype(np.float64), "is float64, expected uint8 or float32"),
        (PIXELS.astype(np.float32), r"runs from 0 to 255, expected \[0, 1\]"),
        (np.full((2, 4, 4), -0.1, np.float32), "runs from -0.1"),
        (np.full((2, 4, 4), np.nan, np.float32), "runs from nan"),
        (np.zeros((2, 4, 4, 5), np.uint8), "2x4x4x5, which does not fit"),
        (np.zeros((2, 4), np.uint8), "2x4, which does not fit"),
        (np.zeros((0, 4, 4), np.uint8), "holds no images"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as .npz"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: Path, array: np.ndarray, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        open_dataset(archive(tmp_path / "t.npz", images=array))


def test_npz_mistakes_are_named(tmp_path: Path) -> None:
    spec = archive(tmp_path / "t.npz", images=PIXELS, labels=np.zeros(6, np.int64), text=PIXELS[0])
    with pytest.raises(SpecError, match="'labels' is int64 6, expected 7 whole numbers"):
        open_dataset(spec)
    with pytest.raises(SpecError, match="no array 'image'; did you mean images"):
        open_dataset(f"{spec}?images=image")
    with pytest.raises(SpecError, match="no array 'label'; did you mean labels"):
        open_dataset(f"{spec}?labels=label")
    with pytest.raises(SpecError, match="does not fit layout=nchw"):
        open_dataset(f"{spec}?layout=nchw")
    with pytest.raises(SpecError, match="expected nhwc, nchw, nhw"):
        open_dataset(f"{spec}?layout=hwc")
    with pytest.raises(SpecError, match=r"is a folder, expected a .npz"):
        open_dataset(f"npz:{tmp_path}")
    np.save(tmp_path / "one.npy", PIXELS)
    with pytest.raises(SpecError, match="is a single array"):
        open_dataset(f"npz:{tmp_path}/one.npy")
    for name, content in (("junk.npz", b"PK\x03\x04 junk"), ("empty.npz", b""), ("t", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SpecError, match=r"cannot be read as .npz"):
            open_dataset(f"npz:{tmp_path}/{name}")
    whole = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SpecError, match=r"cannot be read as .npz"):
        open_dataset(f"npz:{tmp_path}/cut.npz")


def test_real_cifar_images(shared: Path) -> None:
    path = shared / "data" / "cifar10" / "test-first1000.npz"
    data = open_dataset(f"npz:{path}?n=100")
    batch = data.read(data.ids)
    assert batch.images.shape == (100, 3, 32, 32)
    assert 0.4 < float(batch.images.mean()) < 0.55
    assert data.labels(data.ids)[:4].tolist() == [3, 8, 8, 0]
