"""The small classics: handwritten digits, MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100.

    >>> open_digits(parse("digits?n=100&sample_seed=0")).info.shape
    (1, 8, 8)

Files are looked for below ``root=``, else below ``RAYBENCH_DATA``, else in
``~/.cache/raybench/data``; nothing is fetched without ``download=true``.
"""

import fcntl
import hashlib
import http.client
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from raybench.core.errors import SpecError
from raybench.core.spec import Spec, boolean
from raybench.core.types import Dataset
from raybench.data.idx import read_idx
from raybench.data.memory import ArrayDataset, Source, select
from raybench.data.selection import COMMON, split

__all__ = ["open_cifar10", "open_cifar100", "open_digits", "open_fashion_mnist", "open_mnist"]

_DIGITS_TRAIN = 1000
_FILES = {**COMMON, "split": split, "download": boolean}
_FETCH_ERRORS = (RuntimeError, OSError, http.client.HTTPException, EOFError, zlib.error)


def open_digits(spec: Spec) -> Dataset:
    """Return scikit-learn's 1,797 real handwritten digits, float32 [N, 1, 8, 8] in [0, 1].

    They are 8x8 counts from 0 to 16, divided by 16 (UCI, Alpaydin and Kaynak 1998). The source has
    no split of its own: indices are ordered by the SHA-256 of ``raybench|digits|index``; the first
    1000 are ``train``, the other 797 ``test``, each then in source order.

    Raises:
        SpecError: an unknown option or a value that is refused.
    """
    from sklearn.datasets import load_digits

    _no_rest(spec)
    values = spec.read_options({**COMMON, "split": split} | {"root": _no_root})
    found = load_digits()
    pixels = found.images.astype(np.uint8)[:, None]
    keys = [hashlib.sha256(f"raybench|digits|{i}".encode()).digest() for i in range(len(pixels))]
    order = sorted(range(len(pixels)), key=keys.__getitem__)
    train = values.get("split") == "train"
    rows = sorted(order[:_DIGITS_TRAIN] if train else order[_DIGITS_TRAIN:])
    source = Source(
        name="digits",
        ids=[f"digits/{row}" for row in rows],
        origin="sklearn.datasets.load_digits",
        positions=rows,
        pixels=pixels[rows],
        scale=16,
        labels=found.target[rows],
        num_classes=10,
    )
    return _select(spec, values, source)


def open_mnist(spec: Spec) -> Dataset:
    """Return MNIST, float32 [N, 1, 28, 28] in [0, 1] (LeCun, Cortes and Burges 1998).

    The idx files, gzipped or not, lie in the root or in torchvision's ``MNIST/raw`` below it. Where
    the training file is absent, one ``train*-images-idx3-ubyte`` (a shortened one) takes its place.

    Raises:
        SpecError: an unknown option, files that are absent or damaged, or a failed download.
    """
    return _open_idx(spec, "MNIST")


def open_fashion_mnist(spec: Spec) -> Dataset:
    """Return Fashion-MNIST, float32 [N, 1, 28, 28] in [0, 1] (https://arxiv.org/abs/1708.07747).

    Files and errors are as in `open_mnist`, with ``FashionMNIST/raw`` below the root.
    """
    return _open_idx(spec, "FashionMNIST")


def open_cifar10(spec: Spec) -> Dataset:
    """Return CIFAR-10, float32 [N, 3, 32, 32] in [0, 1] (Krizhevsky 2009).

    The root holds torchvision's ``cifar-10-batches-py``. Its files are pickles: torchvision opens
    them only after their MD5 has been found to be the official one.

    Raises:
        SpecError: an unknown option, files that are absent or differ from the official ones, or a
            failed download.
    """
    return _open_cifar(spec, "CIFAR10")


def open_cifar100(spec: Spec) -> Dataset:
    """Return CIFAR-100 with its 100 fine classes, otherwise as `open_cifar10`.

    The root holds torchvision's ``cifar-100-python``.
    """
    return _open_cifar(spec, "CIFAR100")


def _open_idx(spec: Spec, kind: str) -> Dataset:
    _no_rest(spec)
    values = spec.read_options(_FILES)
    part = values.get("split", "test")
    root = _root(spec, values)
    found = _find(spec, root, kind, part)
    if found is None and values.get("download"):
        with _one_at_a_time(spec, root):
            found = _find(spec, root, kind, part)
            if found is None:
                _fetch(spec, kind, root, part)
                found = _find(spec, root, kind, part)
    if found is None:
        stem = "train" if part == "train" else "t10k"
        raise SpecError(
            f"{spec}: {root} holds no {part} images: expected {stem}-images-idx3-ubyte or "
            f"{stem}-images-idx3-ubyte.gz in it or in {kind}/raw below it. Give root=FOLDER, or "
            "add download=true to fetch the official files"
        )
    path, label_path = found
    images = read_idx(path, dims=3)
    labels = None if label_path is None else read_idx(label_path, dims=1)
    if labels is not None and len(labels) != len(images):
        raise SpecError(
            f"{spec}: {label_path} has {len(labels)} labels for the {len(images)} images of "
            f"{path.name}; the two files do not belong together"
        )
    if labels is not None and labels.size and labels.max() > 9:
        raise SpecError(f"{spec}: {label_path} has label {labels.max()}, expected 0 to 9")
    source = Source(
        name=spec.scheme,
        ids=[f"{part}/{row}" for row in range(len(images))],
        origin=path.name,
        positions=range(len(images)),
        pixels=images[:, None],
        scale=255,
        labels=labels,
        num_classes=10,
    )
    return _select(spec, values, source)


def _find(spec: Spec, root: Path, kind: str, part: str) -> tuple[Path, Path | None] | None:
    """Return the image file of a split and its label file where there is one."""
    stem = "train" if part == "train" else "t10k"
    for folder in (root, root / kind / "raw"):
        images = _plain_or_zipped(folder / f"{stem}-images-idx3-ubyte")
        if images is None and part == "train":
            images = _shortened(spec, folder)
        if images is not None:
            name = images.name.removesuffix(".gz").replace("-images-idx3-", "-labels-idx1-")
            return images, _plain_or_zipped(folder / name)
    return None


def _plain_or_zipped(path: Path) -> Path | None:
    both = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in both if candidate.is_file()), None)


def _shortened(spec: Spec, folder: Path) -> Path | None:
    names = sorted(
        {path.name.removesuffix(".gz") for path in folder.glob("train*-images-idx3-ubyte*")}
    )
    names = [name for name in names if name.endswith("-images-idx3-ubyte")]
    if len(names) > 1:
        raise SpecError(
            f"{spec}: {folder} holds several training files ({', '.join(names)}) and no "
            "train-images-idx3-ubyte; keep the one that is meant"
        )
    return _plain_or_zipped(folder / names[0]) if names else None


def _open_cifar(spec: Spec, kind: str) -> Dataset:
    from torchvision import datasets

    _no_rest(spec)
    values = spec.read_options(_FILES)
    part = values.get("split", "test")
    root = _root(spec, values)
    official = getattr(datasets, kind)
    with warnings.catch_warnings():
        # The official pickles spell their dtypes in a way that NumPy has deprecated since.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        try:
            found = official(root, train=part == "train", download=False)
        except RuntimeError as error:
            if not values.get("download"):
                raise SpecError(
                    f"{spec}: {root} holds no complete {official.base_folder} folder, or its files "
                    f"are not the official ones (MD5). Unpack {official.filename} there, give "
                    "root=FOLDER, or add download=true to fetch it"
                ) from error
            with _one_at_a_time(spec, root):
                found = _fetch(spec, kind, root, part)
    source = Source(
        name=spec.scheme,
        ids=[f"{part}/{row}" for row in range(len(found.data))],
        origin=f"{official.base_folder}/{part}",
        positions=range(len(found.data)),
        pixels=found.data.transpose(0, 3, 1, 2),
        scale=255,
        labels=np.asarray(found.targets),
        num_classes=len(found.classes),
    )
    return _select(spec, values, source)


def _fetch(spec: Spec, kind: str, root: Path, part: str) -> Any:
    """Return torchvision's dataset after its official download, MD5 checked, into `root`."""
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(root, train=part == "train", download=True)
    except _FETCH_ERRORS as error:
        raise SpecError(
            f"{spec}: the official files could not be downloaded to {root} "
            f"({' '.join(str(error).split())}). Put them there by hand, or try again later"
        ) from error


@contextmanager
def _one_at_a_time(spec: Spec, root: Path) -> Iterator[None]:
    """Let one process download at a time: torchvision writes its files in place."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".download.lock").open("w")
    except OSError as error:
        raise SpecError(
            f"{spec}: {root} cannot be written ({error.strerror}); give root=FOLDER or set "
            "RAYBENCH_DATA to a folder that can"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _root(spec: Spec, values: dict[str, Any]) -> Path:
    given = values.get("root") or os.environ.get("RAYBENCH_DATA")
    if given and "://" in given:
        raise SpecError(f"{spec}: root must be a local folder, found {given}")
    if given:
        return Path(given).expanduser().absolute()
    return Path.home() / ".cache" / "raybench" / "data"


def _no_rest(spec: Spec) -> None:
    if spec.rest:
        raise SpecError(
            f"{spec}: {spec.scheme} takes no path after the colon, found {spec.rest!r}"
            + ("" if spec.scheme == "digits" else f"; write {spec.scheme}?root={spec.rest}")
        )


def _no_root(raw: str) -> str:
    raise ValueError("the digits are embedded in scikit-learn; leave root out")


def _select(spec: Spec, values: dict[str, Any], source: Source) -> ArrayDataset:
    part = values.get("split", "test")
    options = {
        "split": None if part == "test" else part,
        "root": values.get("root"),
        # Kept, so that a worker on another machine may fetch what this one has fetched.
        "download": "true" if values.get("download") else None,
    }
    return select(
        spec,
        source,
        n=values.get("n"),
        sample_seed=values.get("sample_seed"),
        options=options,
    )
