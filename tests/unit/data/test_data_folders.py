import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import fs

from raybench.core.catalog import open_dataset
from raybench.core.errors import SpecError
from raybench.data import filesystem


def save(path: Path, size: tuple[int, int] = (8, 6), seed: int = 0, **settings: Any) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return pixels


def expected(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


# --- any folder ---


def test_a_folder_of_one_size_is_read_as_it_is(tmp_path: Path) -> None:
    written = {name: save(tmp_path / name, seed=i) for i, name in enumerate(["b.png", "a/c.bmp"])}
    data = open_dataset(f"folder:{tmp_path}")
    assert data.ids == ("a/c.bmp", "b.png")
    assert data.info.shape == (3, 8, 6)
    assert data.info.name == tmp_path.name
    assert (data.info.num_classes, data.info.has_labels) == (None, False)
    assert data.labels(data.ids) is None
    batch = data.read(["b.png", "a/c.bmp"])
    assert torch.equal(batch.images[0], expected(written["b.png"]))
    assert torch.equal(batch.images[1], expected(written["a/c.bmp"]))
    assert batch.sources == (f"{tmp_path}/b.png", f"{tmp_path}/a/c.bmp")
    assert torch.equal(pickle.loads(pickle.dumps(data)).read(batch.ids).images, batch.images)


def test_sizes_that_differ_are_refused_until_resize_says_how(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (8, 6))
    save(tmp_path / "b.png", (9, 7))
    for option in ("", "?resize=none"):
        with pytest.raises(SpecError, match=r"a.png has 8x6 .*b.png has 9x7 .*\?resize="):
            open_dataset(f"folder:{tmp_path}{option}")
    square = open_dataset(f"folder:{tmp_path}?resize=5")
    assert square.info.shape == (3, 5, 5)
    assert square.read(square.ids).images.shape == (2, 3, 5, 5)
    grey = open_dataset(f"folder:{tmp_path}?resize=4x5&channels=1")
    assert grey.info.shape == (1, 4, 5)
    assert grey.read(grey.ids).images.shape == (2, 1, 4, 5)
    assert open_dataset(f"folder:{tmp_path}?n=1").info.shape == (3, 8, 6)


def test_the_canonical_spec_opens_the_same_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        save(tmp_path / "my photos & more?" / f"{i}.png", seed=i)
    monkeypatch.chdir(tmp_path)
    path = "my photos %26 more%3F"
    data = open_dataset(
        f"folder:{path}/?n=05&sample_seed=2&resize=none&channels=3&max_pixels=100000000"
    )
    assert data.info.spec == f"folder:{path}?n=5&sample_seed=2"
    again = open_dataset(data.info.spec)
    assert (again.info, again.ids) == (data.info, data.ids)
    assert open_dataset(f"folder?root={path}&n=5&sample_seed=2").info == data.info
    assert open_dataset(f"folder:{path}?n=9&sample_seed=2").ids[:5] == data.ids


def test_the_fingerprint_follows_content_and_preprocessing_not_place(tmp_path: Path) -> None:
    def fingerprint(spec: str) -> str:
        return open_dataset(spec).info.fingerprint

    for folder in ("one", "two"):
        save(tmp_path / folder / "a.png", seed=1)
        save(tmp_path / folder / "b.png", seed=2)
    one, two = f"folder:{tmp_path}/one", f"folder:{tmp_path}/two"
    assert fingerprint(one) == fingerprint(two)
    assert len({fingerprint(one + tail) for tail in ("", "?n=1", "?resize=4", "?channels=1")}) == 4
    save(tmp_path / "two" / "b.png", seed=3)
    assert fingerprint(one) != fingerprint(two)
    assert fingerprint(f"{one}?n=1") == fingerprint(f"{two}?n=1")


def test_bad_files_become_failures_that_name_them(tmp_path: Path) -> None:
    good = save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_bytes(png[:60])
    (tmp_path / "d.jpg").write_bytes(b"not a picture")
    save(tmp_path / "e.png")
    data = open_dataset(f"folder:{tmp_path}")
    (tmp_path / "e.png").unlink()
    batch = data.read(data.ids)
    assert batch.ids == ("a.png",)
    assert torch.equal(batch.images[0], expected(good))
    assert [failure.id for failure in batch.failures] == ["b.png", "c.png", "d.jpg", "e.png"]
    assert batch.failures[0].source == f"{tmp_path}/b.png"
    errors = [failure.error for failure in batch.failures]
    assert "0 bytes" in errors[0]
    assert "cannot be decoded" in errors[1]
    assert "not an image" in errors[2]
    assert "not there any more" in errors[3]
    assert data.info.size == 5


def test_a_late_image_of_another_size_is_a_failure(tmp_path: Path) -> None:
    for i in range(401):
        (tmp_path / f"{i:03}.png").write_bytes(b"")
    save(tmp_path / "000.png")
    save(tmp_path / "001.png", (9, 9))  # between the headers that are compared
    data = open_dataset(f"folder:{tmp_path}")
    batch = data.read(data.ids[:2])
    assert batch.ids == ("000.png",)
    assert "9x9 pixels" in batch.failures[0].error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?resize=big", "expected 224"),
        ("?channels=4", "expected 1"),
        ("?max_pixels=999999999999", "from 1 to 178956970"),
        ("?split=test", "no option is named 'split'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    tmp_path: Path, options: str, message: str
) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(SpecError, match=message):
        open_dataset(f"folder:{tmp_path}{options}")


def test_no_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(SpecError, match=r"no images in .*\.png, \.jpg"):
        open_dataset(f"folder:{tmp_path}")


# --- object stores ---


class Store:
    """A store in memory whose reads can be made to fail."""

    def __init__(self, folder: Path) -> None:
        self.inner = fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())
        self.broken = False

    def get_file_info(self, what: Any) -> Any:
        return self.inner.get_file_info(what)

    def open_input_file(self, path: str) -> Any:
        if self.broken:
            raise OSError("When reading: AWS Error NETWORK_CONNECTION")
        return self.inner.open_input_file(path)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store(tmp_path)
    monkeypatch.setattr(filesystem, "connect", lambda uri: (found, uri.partition("://")[2]))
    return found


def test_a_store_is_read_like_a_folder(tmp_path: Path, store: Store) -> None:
    pixels = save(tmp_path / "bucket" / "x" / "a.png")
    data = open_dataset("folder:s3://bucket?resize=none")
    assert data.info.spec == "folder:s3://bucket"
    assert data.ids == ("x/a.png",)
    batch = data.read(data.ids)
    assert torch.equal(batch.images[0], expected(pixels))
    assert batch.sources == ("s3://bucket/x/a.png",)
    assert open_dataset(data.info.spec).info == data.info


def test_a_store_that_fails_raises_while_a_file_that_is_gone_fails(
    tmp_path: Path, store: Store
) -> None:
    save(tmp_path / "bucket" / "a.png")
    save(tmp_path / "bucket" / "b.png")
    data = open_dataset("folder:s3://bucket?resize=4")
    (tmp_path / "bucket" / "a.png").unlink()
    batch = data.read(data.ids)
    assert [failure.id for failure in batch.failures] == ["a.png"]
    assert batch.ids == ("b.png",)
    store.broken = True
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        data.read(data.ids)


def test_a_remote_fingerprint_follows_the_listing_and_reads_nothing(
    tmp_path: Path, store: Store
) -> None:
    save(tmp_path / "bucket" / "a.png")
    store.broken = True
    one = open_dataset("folder:s3://bucket?resize=4").info.fingerprint
    assert open_dataset("folder:s3://bucket?resize=4").info.fingerprint == one
    save(tmp_path / "bucket" / "a.png", (20, 20))
    assert open_dataset("folder:s3://bucket?resize=4").info.fingerprint != one


# --- ImageNet ---


def imagenet(folder: Path, classes: list[str], each: int = 2) -> None:
    for rank, name in enumerate(classes):
        for i in range(each):
            save(folder / name / f"{name}_{i}.png", (20 + i, 30), seed=rank * 10 + i)


def test_class_folders_give_labels_in_sorted_order(tmp_path: Path) -> None:
    imagenet(tmp_path, ["dog", "cat", "eel"])
    data = open_dataset(f"imagenet:{tmp_path}?preprocess=Res16Crop12")
    assert data.info.shape == (3, 12, 12)
    assert (data.info.name, data.info.num_classes, data.info.has_labels) == ("imagenet", 3, True)
    assert data.ids[0] == "cat/cat_0.png"
    assert data.labels(data.ids).tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels(["eel/eel_0.png", "cat/cat_1.png"]).tolist() == [2, 0]
    assert data.labels(data.ids).dtype == np.int64
    assert data.read(data.ids).images.shape == (6, 3, 12, 12)
    few = open_dataset(f"imagenet:{tmp_path}?n=1&sample_seed=1")
    assert few.info.num_classes == 3
    assert open_dataset(few.info.spec).info == few.info


def test_a_thousand_synsets_are_imagenets_classes_and_fewer_are_not(tmp_path: Path) -> None:
    synsets = [f"n{i:08}" for i in range(1000)]
    imagenet(tmp_path, synsets[:3], each=1)
    assert open_dataset(f"imagenet:{tmp_path}").labels(()) is None
    content = (tmp_path / synsets[0] / f"{synsets[0]}_0.png").read_bytes()
    for name in synsets[3:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.JPEG").write_bytes(content)
    data = open_dataset(f"imagenet:{tmp_path}?n=3&sample_seed=0")
    assert data.info.num_classes == 1000
    assert data.labels(data.ids).tolist() == [int(name[1:9]) for name in data.ids]


def test_the_default_preprocessing_is_left_out_of_the_spec(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (30, 40))
    data = open_dataset(f"imagenet:{tmp_path}?preprocess=Res256Crop224")
    assert data.info.spec == f"imagenet:{tmp_path}"
    assert data.info.shape == (3, 224, 224)
    assert not data.info.has_labels
    other = open_dataset(f"imagenet:{tmp_path}?preprocess=Crop288")
    assert other.info.spec == f"imagenet:{tmp_path}?preprocess=Crop288"
    assert other.info.fingerprint != data.info.fingerprint
    with pytest.raises(SpecError, match="expected Res256Crop224"):
        open_dataset(f"imagenet:{tmp_path}?preprocess=res256crop224")


def write_labels(path: Path, rows: list[tuple[str, object]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *rows])


def test_a_table_of_labels_is_found_or_named(tmp_path: Path) -> None:
    save(tmp_path / "set" / "images" / "a.png")
    save(tmp_path / "set" / "images" / "b.png")
    write_labels(tmp_path / "set" / "labels.csv", [("a.png", 7), ("b.png", 5), ("c.png", 1)])
    for path in (tmp_path / "set", tmp_path / "set" / "images"):
        data = open_dataset(f"imagenet:{path}")
        assert data.labels(data.ids).tolist() == [7, 5]
    other = tmp_path / "other.csv"
    write_labels(other, [("images/a.png", 1), ("images/b.png", 2)])
    named = open_dataset(f"imagenet:{tmp_path / 'set'}?labels={other}")
    assert named.labels(named.ids).tolist() == [1, 2]
    assert named.info.fingerprint == open_dataset(f"imagenet:{tmp_path / 'set'}").info.fingerprint
    assert open_dataset(named.info.spec).labels(named.ids).tolist() == [1, 2]


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    save(folder / "a.png")
    save(folder / "b.png")
    table = tmp_path / "t.csv"
    spec = f"imagenet:{folder}?labels={table}"
    with pytest.raises(SpecError, match="no such file"):
        open_dataset(spec)
    with pytest.raises(SpecError, match=r"is a folder, expected a \.csv"):
        open_dataset(f"imagenet:{folder}?labels={folder}")
    write_labels(table, [("a.png", 1)])
    with pytest.raises(SpecError, match=r"1 of 2 images have no label, such as 'b.png'"):
        open_dataset(spec)
    assert open_dataset(f"{spec}&n=1").labels(["a.png"]).tolist() == [1]
    write_labels(table, [("a.png", "cat")])
    with pytest.raises(SpecError, match="line 2 has the label 'cat'"):
        open_dataset(spec)
    table.write_text("name,class\na.png,1\n")
    with pytest.raises(SpecError, match="must have the columns file and label"):
        open_dataset(spec)
    table.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="UTF-8"):
        open_dataset(spec)
    save(folder / "deep" / "a.png")
    write_labels(table, [("a.png", 1), ("b.png", 2)])
    with pytest.raises(SpecError, match=r"could belong to 'a.png' or 'deep/a.png'"):
        open_dataset(spec)


def test_a_folder_of_splits_is_refused(tmp_path: Path) -> None:
    imagenet(tmp_path, ["train", "val"])
    with pytest.raises(SpecError, match=r"splits train, val; name the one.*/val"):
        open_dataset(f"imagenet:{tmp_path}")


def test_real_photographs_with_labels(shared: Path) -> None:
    folder = shared / "data" / "nips17-dev"
    data = open_dataset(f"imagenet:{folder}?n=12&sample_seed=0")
    batch = data.read(data.ids)
    assert batch.images.shape == (12, 3, 224, 224)
    assert not batch.failures
    with (folder / "labels.csv").open(newline="") as stream:
        table = {f"images/{row['file']}": int(row["label"]) for row in csv.DictReader(stream)}
    assert data.labels(data.ids).tolist() == [table[name] for name in data.ids]
    whole = open_dataset(f"folder:{folder / 'images'}")
    assert whole.info.size == 140
    assert whole.info.shape == (3, 299, 299)
    assert not whole.info.has_labels
