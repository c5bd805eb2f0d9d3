"""Images as files in a folder, local or in an object store: any photographs, or ImageNet.

    >>> open_folder(parse("folder:photos?resize=224&n=100")).read(["cats/1.jpg"])

The id of an image is its path below the folder. What opening costs: one listing, and for a local
folder one read of each selected file, whose SHA-256 goes into the fingerprint.
"""

import csv
import io
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybench.core.errors import SpecError
from raybench.core.spec import Spec
from raybench.core.types import Batch, Dataset, DatasetInfo
from raybench.data.filesystem import (
    File,
    Root,
    Unreadable,
    exists,
    kind_of,
    list_files,
    locate,
    parent,
    read_bytes,
    stamp,
)
from raybench.data.images import (
    IMAGE_OPTIONS,
    SUFFIXES,
    Preprocessing,
    assemble,
    common_shape,
    robustbench_resize,
)
from raybench.data.selection import COMMON, fingerprint, path_of, pick, respell

__all__ = ["FolderDataset", "open_folder", "open_imagenet"]

_DEFAULT = "Res256Crop224"
_SYNSET = re.compile(r"n\d{8}")
_SPLITS = ("test", "train", "val")
_CHECKED = 200


@dataclass(slots=True, kw_only=True, eq=False)
class FolderDataset:
    """A selection of image files; picklable, it holds names and labels, no pixels."""

    info: DatasetInfo
    ids: Sequence[str]
    root: Root
    steps: Preprocessing
    targets: Mapping[str, int] | None

    def read(self, ids: Sequence[str]) -> Batch:
        """Return the images of `ids`; a file that is damaged or gone is in ``failures``.

        Raises:
            OSError: the store failed; asking again may help.
        """
        samples = ((name, self.root.source(name), _content(self.root, name)) for name in ids)
        return assemble(samples, self.steps, self.info.shape)

    def labels(self, ids: Sequence[str]) -> np.ndarray | None:
        """Return labels [len(ids)] int64, or None where there are none."""
        if self.targets is None:
            return None
        return np.array([self.targets[name] for name in ids], dtype=np.int64)


def open_folder(spec: Spec) -> Dataset:
    """Return the images below a folder, unlabelled, float32 [N, C, H, W] in [0, 1].

    ``resize=224`` brings the shorter side to 224 and cuts the middle, ``resize=224x320`` stretches
    (height x width). Without it all images must have one size: up to 200 headers are compared at
    once, and an image that differs later is a failure. ``channels=1`` gives grey. The EXIF
    orientation is applied and transparent pixels are laid over white.

    Raises:
        SpecError: no such folder, no images in it, images of several sizes without ``resize``, or a
            link that leads out of it.
    """
    values = spec.read_options({**COMMON, **IMAGE_OPTIONS})
    steps = Preprocessing(
        **{name: value for name, value in values.items() if name in IMAGE_OPTIONS}
    )
    path = path_of(spec, values)
    root = locate(path)
    files = _images(spec, root)
    default = Preprocessing()
    options = {
        "n": values.get("n"),
        "sample_seed": values.get("sample_seed"),
        "resize": steps.resize.text if steps.resize.size else None,
        "channels": steps.channels if steps.channels != default.channels else None,
        "max_pixels": steps.max_pixels if steps.max_pixels != default.max_pixels else None,
    }
    name = posixpath.basename(root.path) or "folder"
    return _open(spec, path, root, files, steps, options, name=name, targets=None, classes=None)


def open_imagenet(spec: Spec) -> Dataset:
    """Return ImageNet-like images, float32 [N, 3, H, W] in [0, 1], with labels where it has them.

    ``preprocess`` is one of RobustBench's (`robustbench.data.PREPROCESSINGS`, default
    Res256Crop224) or the like with other numbers, and gives the same pixels: files are taken as
    stored, without EXIF orientation, converted to RGB.

    Labels come from ``labels=FILE.csv`` (columns file, label); else from the class folders, sorted
    by name, where there are two or more; else from a ``labels.csv`` in the folder, or beside it
    where it is called ``images``. Folders named like WordNet synsets (n01440764) give labels only
    if they are all 1000, since their rank means nothing otherwise.

    Raises:
        SpecError: no such folder, no images in it, or labels that do not fit the files.
    """
    known: dict[str, Callable[[str], Any]] = {
        **COMMON,
        "preprocess": robustbench_resize,
        "labels": str,
        "max_pixels": IMAGE_OPTIONS["max_pixels"],
    }
    values = spec.read_options(known)
    default = Preprocessing(resize=robustbench_resize(_DEFAULT), upright=False)
    steps = Preprocessing(
        resize=values.get("preprocess", default.resize),
        upright=False,
        max_pixels=values.get("max_pixels", default.max_pixels),
    )
    path = path_of(spec, values)
    root = locate(path)
    files = _images(spec, root)
    targets, classes = _targets(spec, root, files, values.get("labels"))
    options = {
        "n": values.get("n"),
        "sample_seed": values.get("sample_seed"),
        "labels": values.get("labels"),
        "preprocess": steps.resize.text if steps.resize != default.resize else None,
        "max_pixels": steps.max_pixels if steps.max_pixels != default.max_pixels else None,
    }
    return _open(
        spec, path, root, files, steps, options, name="imagenet", targets=targets, classes=classes
    )


def _images(spec: Spec, root: Root) -> list[File]:
    files = list_files(root, SUFFIXES)
    if not files:
        raise SpecError(f"{spec}: no images in {root.text} (looked for {', '.join(SUFFIXES)})")
    return files


def _open(
    spec: Spec,
    path: str,
    root: Root,
    files: Sequence[File],
    steps: Preprocessing,
    options: Mapping[str, object | None],
    *,
    name: str,
    targets: Mapping[str, int] | None,
    classes: int | None,
) -> FolderDataset:
    n, sample_seed = options["n"], options["sample_seed"]
    assert n is None or isinstance(n, int)
    assert sample_seed is None or isinstance(sample_seed, int)
    rows = pick([file.name for file in files], n=n, sample_seed=sample_seed)
    chosen = [files[row] for row in rows]
    ids = tuple(file.name for file in chosen)
    if targets is not None:
        missing = [name for name in ids if name not in targets]
        if missing:
            raise SpecError(
                f"{spec}: {len(missing)} of {len(ids)} images have no label, such as {missing[0]!r}"
            )
        targets = {name: targets[name] for name in ids}
    shape = common_shape(_some(root, ids), steps, where=str(spec))
    content = [stamp(root, file) for file in chosen]
    info = DatasetInfo(
        spec=respell(spec, options, rest=path, total=len(files)),
        name=name,
        shape=shape,
        num_classes=classes,
        size=len(ids),
        has_labels=targets is not None,
        fingerprint=fingerprint(content, ids, steps.text),
    )
    return FolderDataset(info=info, ids=ids, root=root, steps=steps, targets=targets)


def _some(root: Root, ids: Sequence[str]) -> Iterator[tuple[str, "bytes | Unreadable"]]:
    """Yield the contents of at most `_CHECKED` images, spread evenly over the selection."""
    step = -(-len(ids) // _CHECKED)
    for name in ids[::step]:
        yield root.source(name), _content(root, name)


def _content(root: Root, name: str) -> "bytes | Unreadable":
    try:
        return read_bytes(root, name)
    except Unreadable as error:
        return error


def _targets(
    spec: Spec, root: Root, files: Sequence[File], given: str | None
) -> tuple[Mapping[str, int] | None, int | None]:
    """Return the label of each file where labels are known, and the number of classes."""
    if given is not None:
        place = locate(given)
        if kind_of(place) != "file":
            raise SpecError(f"{spec}: {given} is a folder, expected a .csv file")
        rows = _label_rows(place)
        if rows is None:
            raise SpecError(f"{spec}: {given} must have the columns file and label")
        return _matched(spec, files, rows), None
    top = [file.name.partition("/")[0] for file in files if "/" in file.name]
    folders = sorted(set(top))
    splits = [folder for folder in folders if folder in _SPLITS]
    if splits:
        raise SpecError(
            f"{spec}: {root.text} holds the splits {', '.join(splits)}; name the one that is "
            f"meant, such as {spec.scheme}:{root.source(splits[-1])}"
        )
    if len(folders) >= 2 and len(top) == len(files):
        if all(_SYNSET.fullmatch(folder) for folder in folders) and len(folders) != 1000:
            return None, None
        rank = {folder: index for index, folder in enumerate(folders)}
        return {file.name: rank[file.name.partition("/")[0]] for file in files}, len(folders)
    places = [root]
    if posixpath.basename(root.path) == "images":
        places.append(parent(root)[0])
    for place in places:
        table = place.below("labels.csv")
        found = _label_rows(table) if exists(table) else None
        if found is not None:
            return _matched(spec, files, found), None
    return None, None


def _label_rows(table: Root) -> dict[str, int] | None:
    """Return label by file from a CSV file; None where it has other columns."""
    try:
        text = read_bytes(table).decode("utf-8-sig")
    except (OSError, Unreadable, UnicodeDecodeError) as error:
        raise SpecError(f"{table.text}: cannot be read as UTF-8 text ({error})") from error
    lines = csv.DictReader(io.StringIO(text))
    if not {"file", "label"} <= set(lines.fieldnames or ()):
        return None
    rows: dict[str, int] = {}
    for row in lines:
        label = row["label"] or ""
        if not (label.isascii() and label.isdigit()):
            raise SpecError(
                f"{table.text}: line {lines.line_num} has the label {label!r}, expected a "
                "whole number"
            )
        rows[row["file"]] = int(label)
    return rows


def _matched(spec: Spec, files: Sequence[File], rows: Mapping[str, int]) -> dict[str, int]:
    """Return the labels that belong to `files`, by full path or by the end of it."""
    found: dict[str, int] = {}
    taken: dict[str, str] = {}
    for file in files:
        tail = file.name
        while tail and tail not in rows:
            tail = tail.partition("/")[2]
        if not tail:
            continue
        if tail in taken:
            raise SpecError(
                f"{spec}: the label of {tail!r} could belong to {taken[tail]!r} or {file.name!r}; "
                "write the path below the folder into the column file"
            )
        taken[tail] = file.name
        found[file.name] = rows[tail]
    return found
