"""Images inside tables: Parquet files in the Hugging Face image layout, and NumPy archives.

>>> open_parquet(parse("parquet:images?split=test&resize=32x32")).ids[0]
'data/test-00000-of-00001.parquet#0'
>>> open_npz(parse("npz:test.npz?n=100")).ids[0]
'test.npz#0'
"""

import dataclasses
import json
import math
import posixpath
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybench.core.errors import SpecError, near_miss
from raybench.core.limits import max_bytes, refuse_bomb, shown, to_raise
from raybench.core.spec import Spec
from raybench.core.types import Dataset, DatasetInfo
from raybench.data.filesystem import File, Root, kind_of, list_files, locate, open_file, parent
from raybench.data.images import IMAGE_OPTIONS, Preprocessing, common_shape
from raybench.data.memory import Source, select
from raybench.data.parquet import ParquetDataset, Table, contents, footer, stamps
from raybench.data.selection import COMMON, fingerprint, path_of, pick, respell

__all__ = ["open_npz", "open_parquet"]

_CHECKED = 200
_LAYOUTS = ("nhwc", "nchw", "nhw")
_CHANNELS = (1, 3)
# What one id takes as a string in a list.
_ID_BYTES = 100
_NPY = b"\x93NUMPY"


def open_parquet(spec: Spec) -> Dataset:
    """Return the images of a Parquet file, or of all below a folder, [N, C, H, W] in [0, 1].

    The column ``image`` (option ``image=``) is a struct with the encoded ``bytes``, as Hugging Face
    stores it, or plain binary. Whole numbers in ``label`` (option ``label=``) are labels; without
    that column there are none. ``split=NAME`` takes the files called ``NAME-...`` or ``NAME``, or
    in a folder called so. ``resize``, ``channels`` and ``max_pixels`` are as for folders. The id of
    an image is ``path.parquet#row``.

    Opening reads every footer and, for local files, the selected rows, whose content goes into the
    fingerprint; for remote files size and time of change stand for it.

    Raises:
        SpecError: no such file, no rows, no column of images, damaged files, or images of several
            sizes without ``resize``; more rows, or larger row groups, than
            `raybench.core.limits` allows.
    """
    known: dict[str, Callable[[str], Any]] = {**COMMON, **IMAGE_OPTIONS}
    known |= {"image": str, "label": str, "split": _name}
    values = spec.read_options(known)
    steps = Preprocessing(
        **{name: value for name, value in values.items() if name in IMAGE_OPTIONS}
    )
    path = path_of(spec, values)
    root, files = _files(spec, locate(path), values.get("split"))
    image, wanted = values.get("image", "image"), values.get("label", "label")
    tables: dict[str, Table] = {}
    label: str | None = None
    classes: int | None = None
    for position, file in enumerate(files):
        table, schema = footer(root, file, image)
        tables[file.name] = table
        _refuse_rows(spec, root, sum(table.rows for table in tables.values()))
        _check_image(spec, root.source(file.name), schema, image)
        has = _has_label(spec, root.source(file.name), schema, wanted, strict="label" in values)
        if position and has != (label is not None):
            raise SpecError(
                f"{spec}: {root.source(file.name)} and {root.source(files[0].name)} differ in "
                f"whether they have the column {wanted!r}"
            )
        if has:
            label, classes = wanted, _num_classes(schema, wanted)
    every = [f"{name}#{row}" for name, table in tables.items() for row in range(table.rows)]
    rows = pick(every, n=values.get("n"), sample_seed=values.get("sample_seed"))
    if not rows:
        raise SpecError(f"{spec}: {root.text} has no rows")
    ids = tuple(every[row] for row in rows)
    default = Preprocessing()
    options = {
        "n": values.get("n"),
        "sample_seed": values.get("sample_seed"),
        "split": values.get("split"),
        "image": image if image != "image" else None,
        "label": wanted if wanted != "label" else None,
        "resize": steps.resize.text if steps.resize.size else None,
        "channels": steps.channels if steps.channels != default.channels else None,
        "max_pixels": steps.max_pixels if steps.max_pixels != default.max_pixels else None,
    }
    info = DatasetInfo(
        spec=respell(spec, options, rest=path, total=len(every)),
        name=re.sub(r"\.parquet$", "", path.rsplit("/", 1)[-1]) or "parquet",
        shape=(steps.channels, 0, 0),
        num_classes=classes,
        size=len(ids),
        has_labels=label is not None,
        fingerprint="",
    )
    dataset = ParquetDataset(
        info=info, ids=ids, root=root, tables=tables, image=image, label=label, steps=steps
    )
    return _measured(spec, dataset)


def _refuse_rows(spec: Spec, root: Root, rows: int) -> None:
    """Refuse tables that claim more rows than there is memory for their ids."""
    claimed = rows * _ID_BYTES
    if claimed > max_bytes():
        raise SpecError(
            f"{spec}: {root.text} claims {rows:,} rows, whose ids alone would take "
            f"{shown(claimed)}, more than the limit of {shown(max_bytes())}; {to_raise(claimed)}"
        )


def _measured(spec: Spec, dataset: ParquetDataset) -> ParquetDataset:
    """Return `dataset` with the shape and the fingerprint that its content gives it."""
    info, ids, root = dataset.info, dataset.ids, dataset.root
    some = ids[:: -(-len(ids) // _CHECKED)]
    samples = ((root.source(name), content) for name, content in contents(dataset, some))
    shape = common_shape(samples, dataset.steps, where=str(spec))
    dataset.info = dataclasses.replace(
        info, shape=shape, fingerprint=fingerprint(stamps(dataset), ids, dataset.steps.text)
    )
    return dataset


def _name(raw: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", raw):
        raise ValueError("expected the name of a split, such as test, train or validation")
    return raw


def _files(spec: Spec, root: Root, split: str | None) -> tuple[Root, list[File]]:
    """Return the folder of the Parquet files, and those of the split."""
    if kind_of(root) == "file":
        folder, name = parent(root)
        info = root.filesystem.get_file_info(root.path)
        root, files = folder, [File(name, info.size, info.mtime_ns or 0)]
    else:
        files = list_files(root, (".parquet",))
    if any(
        file.name.rsplit("/", 1)[-1].startswith("part-") and "measurement=" in file.name
        for file in files
    ):
        raise SpecError(f"{spec}: {root.text} holds raybench results, not images")
    kept = [file for file in files if split is None or _in_split(file.name, split)]
    if not kept:
        which = "Parquet file" if split is None else f"Parquet file of the split {split!r}"
        names = ", ".join(file.name for file in files[:3])
        raise SpecError(
            f"{spec}: {root.text} holds no {which}" + (f" (found {names})" if names else "")
        )
    return root, kept


def _in_split(name: str, split: str) -> bool:
    *folders, last = name.split("/")
    return split in folders or last == f"{split}.parquet" or last.startswith(f"{split}-")


def _check_image(spec: Spec, where: str, schema: pa.Schema, image: str) -> None:
    if image not in schema.names:
        results = "; it looks like raybench results" if "sample_id" in schema.names else ""
        raise SpecError(
            f"{spec}: {where} has no column {image!r}{near_miss(image, schema.names)}{results}. "
            "Name the column of images with image="
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise SpecError(
            f"{spec}: {where} has {kind} in the column {image!r}, expected encoded images: "
            "struct<bytes: binary, path: string> or binary"
        )


def _has_label(spec: Spec, where: str, schema: pa.Schema, label: str, *, strict: bool) -> bool:
    if label not in schema.names:
        if strict:
            raise SpecError(
                f"{spec}: {where} has no column {label!r}{near_miss(label, schema.names)}"
            )
        return False
    whole = bool(pa.types.is_integer(schema.field(label).type))
    if strict and not whole:
        raise SpecError(
            f"{spec}: {where} has {schema.field(label).type} in the column {label!r}, expected "
            "whole numbers"
        )
    return whole


def _num_classes(schema: pa.Schema, label: str) -> int | None:
    """Return K where the file carries Hugging Face's description of the label column."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = described["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return len(names) if isinstance(names, list) and names else None


def open_npz(spec: Spec) -> Dataset:
    """Return the images of a .npz archive, float32 [N, C, H, W] in [0, 1].

    The array ``images`` (option ``images=``) is uint8, divided by 255, or float32 in [0, 1], as
    NHWC, NCHW or NHW; ``layout=`` decides where the shape leaves it open. Whole numbers in
    ``labels`` (option ``labels=``) are labels; without that array there are none. Nothing in the
    archive is unpickled. The id of an image is ``archive.npz#index``.

    Raises:
        SpecError: no such file, no archive, no such array, another dtype, shape or range, or an
            array that would take more memory than `raybench.core.limits` allows.
    """
    values = spec.read_options({**COMMON, "images": str, "labels": str, "layout": _layout})
    path = path_of(spec, values)
    root = locate(path)
    images, labels = values.get("images", "images"), values.get("labels", "labels")
    arrays = _arrays(spec, root, images, labels, strict="labels" in values)
    found = arrays[images]
    layout = _deduce(spec, images, found, values.get("layout"))
    scale = _scale(spec, images, found)
    name = posixpath.basename(root.path)
    source = Source(
        name=name.removesuffix(".npz"),
        ids=[f"{name}#{row}" for row in range(len(found))],
        origin=root.text,
        positions=range(len(found)),
        pixels=_nchw(found, layout),
        scale=scale,
        labels=_labels(spec, labels, arrays.get(labels), len(found)),
        num_classes=None,
    )
    # A layout that the shape gives away is left out: it is no other selection.
    needed = _candidates(found) != [layout]
    options = {
        "images": images if images != "images" else None,
        "labels": labels if labels != "labels" else None,
        "layout": layout if needed else None,
    }
    return select(
        spec,
        source,
        n=values.get("n"),
        sample_seed=values.get("sample_seed"),
        options=options,
        rest=path,
    )


def _layout(raw: str) -> str:
    if raw.lower() not in _LAYOUTS:
        raise ValueError(f"expected {', '.join(_LAYOUTS)}")
    return raw.lower()


def _arrays(
    spec: Spec, root: Root, images: str, labels: str, *, strict: bool
) -> Mapping[str, np.ndarray]:
    if kind_of(root) != "file":
        raise SpecError(f"{spec}: {root.text} is a folder, expected a .npz file")
    try:
        with open_file(root) as stream:
            # np.load would read a single array, of whatever size, before it could be refused.
            if stream.read(len(_NPY)) == _NPY:
                raise SpecError(f"{spec}: {root.text} is a single array, expected a .npz archive")
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            with archive:
                names = [images, labels] if strict or labels in archive.files else [images]
                for name in names:
                    if name not in archive.files:
                        raise SpecError(
                            f"{spec}: {root.text} has no array {name!r}"
                            f"{near_miss(name, archive.files)}"
                        )
                _refuse_claims(spec, root, archive, names, stored=stream.size())
                return {name: archive[name] for name in names}
    except SpecError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SpecError(f"{spec}: {root.text} cannot be read as .npz ({error})") from error


def _refuse_claims(
    spec: Spec, root: Root, archive: Any, names: Sequence[str], *, stored: int
) -> None:
    """Refuse arrays that would take too much memory, or more than the archive has for them."""
    members = {info.filename: info for info in archive.zip.infolist()}
    claimed = 0
    for name in names:
        # np.load prefers the plain name too.
        info = members.get(name) or members[f"{name}.npy"]
        with archive.zip.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
            room = info.file_size - member.tell()
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are not unpickled")
        size = math.prod(shape) * dtype.itemsize
        refuse_bomb(spec, f"the array {name!r} of {root.text}", claimed=size, stored=stored)
        if min(shape, default=1) < 0 or size != room:
            raise ValueError(
                f"the header of {name} declares {dtype} {'x'.join(map(str, shape))}, which is "
                f"{size:,} bytes, but {room:,} follow it"
            )
        claimed += size
    refuse_bomb(spec, root.text, claimed=claimed, stored=stored)


def _candidates(found: np.ndarray) -> list[str]:
    """Return the layouts that the shape allows."""
    if found.ndim == 3:
        return ["nhw"]
    if found.ndim != 4:
        return []
    last, first = found.shape[3] in _CHANNELS, found.shape[1] in _CHANNELS
    return ["nhwc"] * last + ["nchw"] * first


def _deduce(spec: Spec, name: str, found: np.ndarray, given: str | None) -> str:
    shape = "x".join(map(str, found.shape))
    candidates = _candidates(found)
    if not candidates or (given is not None and given not in candidates):
        wanted = f"layout={given}" if given else "N x H x W, or 4 dimensions with 1 or 3 channels"
        raise SpecError(f"{spec}: the array {name!r} is {shape}, which does not fit {wanted}")
    if given is None and len(candidates) > 1:
        raise SpecError(
            f"{spec}: the array {name!r} is {shape}, which may be nhwc or nchw; say which with "
            "layout="
        )
    return given or candidates[0]


def _scale(spec: Spec, name: str, found: np.ndarray) -> int:
    """Return what brings the pixels into [0, 1]."""
    if found.dtype == np.uint8:
        return 255
    if found.dtype != np.float32:
        raise SpecError(
            f"{spec}: the array {name!r} is {found.dtype}, expected uint8 or float32 in [0, 1]"
        )
    # Written so that NaN fails too.
    if found.size and not (found.min() >= 0 and found.max() <= 1):
        raise SpecError(
            f"{spec}: the array {name!r} runs from {found.min():g} to {found.max():g}, expected "
            "[0, 1]; divide by 255 or undo the normalisation"
        )
    return 1


def _nchw(found: np.ndarray, layout: str) -> np.ndarray:
    if layout == "nhw":
        return found[:, None]
    return found.transpose(0, 3, 1, 2) if layout == "nhwc" else found


def _labels(spec: Spec, name: str, found: np.ndarray | None, count: int) -> np.ndarray | None:
    if found is None:
        return None
    if found.shape != (count,) or found.dtype.kind not in "iu":
        shape = "x".join(map(str, found.shape))
        raise SpecError(
            f"{spec}: the array {name!r} is {found.dtype} {shape}, expected {count} whole numbers"
        )
    return found
