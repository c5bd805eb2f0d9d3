import contextlib
import functools
import gc
import gzip
import hashlib
import http.server
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torchvision import datasets

from raybench.core.catalog import open_dataset
from raybench.core.errors import SpecError
from raybench.data.idx import read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_mnist(
    folder: Path, stem: str = "t10k", *, count: int = 12, zipped: bool = True, labels: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    targets = rng.integers(0, 10, count, dtype=np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", images), ("labels-idx1", targets)):
        if name.startswith("labels") and not labels:
            continue
        data = idx_bytes(array)
        path = folder / f"{stem}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(data, mtime=0) if zipped else data)
    return images, targets


# --- digits ---


def test_digits_are_scikit_learns_divided_by_sixteen() -> None:
    data = open_dataset("digits")
    assert data.info.size == len(data.ids) == 797
    assert data.info.shape == (1, 8, 8)
    assert data.info.num_classes == 10
    assert data.info.spec == "digits"
    batch = data.read(data.ids)
    rows = [int(name.removeprefix("digits/")) for name in batch.ids]
    expected = torch.tensor(load_digits().images[rows] / 16, dtype=torch.float32)[:, None]
    assert torch.equal(batch.images, expected)
    assert batch.images.is_contiguous()
    assert batch.images.min() == 0
    assert batch.images.max() == 1
    assert not batch.failures
    assert np.array_equal(data.labels(data.ids), load_digits().target[rows])
    assert batch.sources[0] == f"sklearn.datasets.load_digits#{rows[0]}"


def test_the_splits_of_digits_are_disjoint_and_complete() -> None:
    test, train = open_dataset("digits"), open_dataset("digits?split=train")
    assert train.info.size == 1000
    assert {*test.ids, *train.ids} == {f"digits/{i}" for i in range(1797)}
    assert train.info.spec == "digits?split=train"
    # Pinned: another version of anything must not move an image between the splits.
    assert test.ids[:4] == ("digits/6", "digits/8", "digits/9", "digits/12")
    assert np.bincount(train.labels(train.ids)).min() > 80


def test_equal_selections_have_one_spec_and_one_fingerprint() -> None:
    one, two = open_dataset("digits?split=val&n=5000"), open_dataset("digits?split=test")
    assert one.info == two.info
    seeded = open_dataset("digits?n=100&sample_seed=3")
    assert seeded.info.spec == "digits?n=100&sample_seed=3"
    assert seeded.ids == open_dataset("digits?n=300&sample_seed=3").ids[:100]
    assert seeded.info.fingerprint != open_dataset("digits?n=100").info.fingerprint


def test_reading_keeps_the_order_asked_for_and_survives_pickling() -> None:
    data = open_dataset("digits?n=20")
    wanted = (data.ids[7], data.ids[0], data.ids[7])
    batch = pickle.loads(pickle.dumps(data)).read(wanted)
    assert batch.ids == wanted
    assert torch.equal(batch.images[0], batch.images[2])
    assert torch.equal(batch.images[1], data.read(data.ids[:1]).images[0])
    assert data.read(()).images.shape == (0, 1, 8, 8)
    with pytest.raises(AssertionError, match="of this selection"):
        data.read(["digits/9999"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits?split=validation", "expected test"),
        ("digits?root=/x", "embedded in scikit-learn"),
        ("digits:/x", "takes no path"),
        ("mnist:/x", "write mnist"),
        ("mnist?root=s3://b/x", "must be a local folder"),
        ("mnist?download=maybe", "expected true or false"),
    ],
)
def test_specs_that_cannot_be_meant_are_refused(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        open_dataset(spec)


# --- idx files ---


@pytest.mark.parametrize("below", ["", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_reads_idx_files_where_they_lie(tmp_path: Path, below: str, zipped: bool) -> None:
    images, targets = write_mnist(tmp_path / below, zipped=zipped)
    data = open_dataset(f"mnist?root={tmp_path}&n=5")
    batch = data.read(data.ids)
    assert data.ids == tuple(f"test/{i}" for i in range(5))
    assert torch.equal(batch.images, torch.from_numpy(images[:5, None]).float() / 255)
    assert np.array_equal(data.labels(data.ids), targets[:5])
    assert data.labels(data.ids).dtype == np.int64
    assert batch.sources[4] == f"t10k-images-idx3-ubyte{'.gz' if zipped else ''}#4"
    again = open_dataset(data.info.spec)
    assert (again.info, again.ids) == (data.info, data.ids)


def test_a_fingerprint_does_not_depend_on_where_or_how_files_are_kept(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a", zipped=True)
    write_mnist(tmp_path / "b" / "FashionMNIST" / "raw", zipped=False, labels=False)
    mnist = open_dataset(f"mnist?root={tmp_path / 'a'}")
    fashion = open_dataset(f"fashion-mnist?root={tmp_path / 'b'}")
    assert mnist.info.fingerprint == fashion.info.fingerprint
    assert fashion.info.name == "fashion-mnist"
    assert not fashion.info.has_labels
    assert fashion.labels(fashion.ids) is None


def test_a_shortened_training_file_stands_in_for_the_whole_one(tmp_path: Path) -> None:
    short, _ = write_mnist(tmp_path, "train-first7", count=7)
    data = open_dataset(f"mnist?root={tmp_path}&split=train")
    assert data.info.size == 7
    assert data.ids[0] == "train/0"
    assert torch.equal(data.read(data.ids).images[:, 0], torch.from_numpy(short).float() / 255)
    write_mnist(tmp_path, "train-last8", count=8)
    with pytest.raises(SpecError, match="several training files"):
        open_dataset(f"mnist?root={tmp_path}&split=train")
    write_mnist(tmp_path, "train", count=9)
    assert open_dataset(f"mnist?root={tmp_path}&split=train").info.size == 9


def test_the_default_root_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    monkeypatch.setenv("RAYBENCH_DATA", str(tmp_path))
    assert open_dataset("mnist?n=3").info.spec == "mnist?n=3"
    monkeypatch.delenv("RAYBENCH_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SpecError, match=r"\.cache/raybench/data holds no test images"):
        open_dataset("mnist")


def test_absent_files_say_which_and_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"train-images-idx3-ubyte\.gz.*MNIST/raw.*download=true"):
        open_dataset(f"mnist?root={tmp_path}&split=train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\x89PNG and more", "not an idx file"),
        (b"\0\0\x0d\3" + bytes(12), "idx type 0x0d"),
        (idx_bytes(np.zeros(5)), "has 1 dimensions, expected 3"),
        (b"\0\0\x08\3\0\0", "ends within its header"),
        (idx_bytes(np.zeros((2, 3, 3)))[:-1], "holds only 17"),
        (idx_bytes(np.zeros((2, 3, 3))) + b"x", "holds more"),
        (b"\0\0\x08\3" + b"\xff" * 12, "its array has 16 bytes and would take .* the limit"),
        (gzip.compress(idx_bytes(np.zeros((2, 3, 3))), mtime=0)[:-9], "damaged, fetch it again"),
        (b"\x1f\x8b junk", "damaged, fetch it again"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=f"{path.name}.*{message}"):
        read_idx(path, dims=3)


def test_labels_must_belong_to_the_images(tmp_path: Path) -> None:
    write_mnist(tmp_path, zipped=False)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(11)))
    with pytest.raises(SpecError, match="11 labels for the 12 images"):
        open_dataset(f"mnist?root={tmp_path}")
    path.write_bytes(idx_bytes(np.full(12, 10)))
    with pytest.raises(SpecError, match="label 10, expected 0 to 9"):
        open_dataset(f"mnist?root={tmp_path}")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((0, 28, 28))))
    path.unlink()
    with pytest.raises(SpecError, match="holds no images"):
        open_dataset(f"mnist?root={tmp_path}")


# --- downloads ---


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A local server of the folder it yields with its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def serve_mnist(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    folder, address = server
    images, _ = write_mnist(folder)
    write_mnist(folder, "train", count=3)
    resources = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    ]
    monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return images


def test_the_official_download_lands_in_the_root(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = serve_mnist(server, monkeypatch)
    root = tmp_path / "new"
    data = open_dataset(f"mnist?root={root}&download=true&n=2")
    assert torch.equal(data.read(data.ids).images[:, 0], torch.from_numpy(images[:2]).float() / 255)
    assert data.info.spec == f"mnist?download=true&n=2&root={root}"
    for path in server[0].iterdir():
        path.unlink()
    assert open_dataset(data.info.spec).info == data.info
    assert open_dataset(f"mnist?root={root}&n=2").info.fingerprint == data.info.fingerprint


def test_a_download_with_another_md5_is_refused(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_mnist(server, monkeypatch)
    for path in server[0].iterdir():
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SpecError, match=r"could not be downloaded.*corrupted"):
        open_dataset(f"mnist?root={tmp_path / 'new'}&download=true")


# urllib's own error holds the answer's socket until it is collected.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_download_that_cannot_be_had_is_a_spec_error(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_mnist(server, monkeypatch)
    for path in server[0].iterdir():
        path.unlink()
    with pytest.raises(SpecError, match=r"could not be downloaded.*404"):
        open_dataset(f"mnist?root={tmp_path / 'new'}&download=true")
    gc.collect()
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="cannot be written"):
        open_dataset(f"mnist?root={tmp_path / 'file' / 'x'}&download=true")


# --- CIFAR ---


class OldDtype:
    """Pickles as NumPy 1 spelt dtypes: with an integer for align."""

    def __reduce__(self) -> tuple[object, ...]:
        return np.dtype, ("u1", 0, 1)


def write_cifar(
    folder: Path, official: type, monkeypatch: pytest.MonkeyPatch
) -> dict[str, np.ndarray]:
    """Write files in torchvision's layout and make their MD5s the official ones."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    many = official is datasets.CIFAR100
    key = "fine_labels" if many else "labels"
    for attribute in ("train_list", "test_list"):
        sums = []
        for position, (name, _) in enumerate(getattr(official, attribute)):
            rng = np.random.default_rng(position)
            pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
            entry = {"data": pixels, key: [3, 1, 4, 1], "old": OldDtype()}
            (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
            sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
            written[name] = pixels
        monkeypatch.setattr(official, attribute, sums)
    meta = dict(official.meta)
    names = [f"class{i}" for i in range(100 if many else 10)]
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: names}))
    meta["md5"] = hashlib.md5((folder / meta["filename"]).read_bytes()).hexdigest()
    monkeypatch.setattr(official, "meta", meta)
    return written


@pytest.mark.parametrize(
    ("scheme", "official", "test_file", "classes"),
    [
        ("cifar10", datasets.CIFAR10, "test_batch", 10),
        ("cifar100", datasets.CIFAR100, "test", 100),
    ],
)
def test_cifar_reads_torchvisions_layout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    official: type,
    test_file: str,
    classes: int,
) -> None:
    written = write_cifar(tmp_path / official.base_folder, official, monkeypatch)
    data = open_dataset(f"{scheme}?root={tmp_path}&n=3")
    batch = data.read(data.ids)
    expected = torch.from_numpy(written[test_file].reshape(-1, 3, 32, 32)[:3]).float() / 255
    assert torch.equal(batch.images, expected)
    assert batch.images.is_contiguous()
    assert data.labels(data.ids).tolist() == [3, 1, 4]
    assert data.info.num_classes == classes
    assert open_dataset(data.info.spec).info == data.info
    train = open_dataset(f"{scheme}?root={tmp_path}&split=train")
    assert train.info.size == 4 * (5 if scheme == "cifar10" else 1)
    assert train.ids[0] == "train/0"


def test_cifar_files_that_are_not_official_are_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, datasets.CIFAR10, monkeypatch)

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "sprung",)

    (folder / "test_batch").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SpecError, match=r"not the official ones.*download=true"):
        open_dataset(f"cifar10?root={tmp_path}")
    assert not (tmp_path / "sprung").exists()


def test_cifar_downloads_the_official_archive(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / "made" / "cifar-10-batches-py", datasets.CIFAR10, monkeypatch)
    folder, address = server
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    data = open_dataset(f"cifar10?root={tmp_path / 'new'}&download=true")
    assert data.info.size == 4


def test_an_archive_that_is_not_the_official_one_is_not_unpacked(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as tar:
        for name in ("escaped", "../escaped", "../../escaped", str(tmp_path / "escaped")):
            tar.addfile(tarfile.TarInfo(name))
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar.tar.gz")
    with pytest.raises(SpecError, match="could not be downloaded"):
        open_dataset(f"cifar10?root={tmp_path / 'new'}&download=true")
    assert not list(tmp_path.rglob("escaped"))


# --- real files ---


def test_the_real_mnist_test_set(shared: Path) -> None:
    data = open_dataset(f"mnist?root={shared / 'data' / 'mnist'}")
    batch = data.read(data.ids)
    assert batch.images.shape == (10000, 1, 28, 28)
    assert batch.images.double().mean() == pytest.approx(0.1325, abs=1e-4)
    assert data.labels(data.ids)[:5].tolist() == [7, 2, 1, 0, 4]
    train = open_dataset(f"mnist?root={shared / 'data' / 'mnist'}&split=train&n=20000")
    assert train.info.size == 10000
    assert train.labels(train.ids)[:5].tolist() == [5, 0, 4, 1, 9]


def test_the_real_fashion_mnist_agrees_with_torchvisions_reader(
    shared: Path, tmp_path: Path
) -> None:
    folder = shared / "data" / "fashion-mnist"
    packed = folder / "t10k-images-idx3-ubyte.gz"
    plain = tmp_path / "images"
    with contextlib.closing(gzip.open(packed)) as stream:
        plain.write_bytes(stream.read())
    data = open_dataset(f"fashion-mnist?root={folder}&n=50&sample_seed=1")
    whole = datasets.mnist.read_image_file(str(plain))
    rows = [int(name.removeprefix("test/")) for name in data.ids]
    assert torch.equal(data.read(data.ids).images[:, 0], whole[rows].float() / 255)
