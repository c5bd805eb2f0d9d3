"""A dataset whose selected images fit in memory as they were stored, one array for all."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from raybench.core.errors import SpecError
from raybench.core.spec import Spec
from raybench.core.types import Batch, DatasetInfo
from raybench.data.selection import fingerprint, pick, respell

__all__ = ["ArrayDataset", "Source", "select"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Everything a source holds, before selection.

    Attributes:
        name: short name of the dataset.
        ids: ids [N] in source order.
        origin: file or package the images come from; with ``#index`` it names one image.
        positions: index [N] of each image in `origin`.
        pixels: uint8 or float32 [N, C, H, W], any memory layout.
        scale: what the pixels are divided by to lie in [0, 1].
        labels: classes [N], or None.
        num_classes: K where known.
    """

    name: str
    ids: Sequence[str]
    origin: str
    positions: Sequence[int]
    pixels: np.ndarray
    scale: int
    labels: np.ndarray | None
    num_classes: int | None


@dataclass(slots=True, kw_only=True, eq=False)
class ArrayDataset:
    """A selection held in memory; picklable, with only the selected images in it."""

    info: DatasetInfo
    ids: Sequence[str]
    sources: Sequence[str]
    pixels: np.ndarray
    scale: int
    targets: np.ndarray | None
    where: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.where = {name: position for position, name in enumerate(self.ids)}

    def read(self, ids: Sequence[str]) -> Batch:
        """Return the images of `ids` [N, C, H, W]; nothing here can fail to be read."""
        rows = self._rows(ids)
        images = torch.from_numpy(self.pixels[rows]).to(torch.float32)
        if self.scale != 1:
            images = images.div_(self.scale)
        return Batch(tuple(ids), tuple(self.sources[row] for row in rows), images)

    def labels(self, ids: Sequence[str]) -> np.ndarray | None:
        """Return labels [len(ids)] int64, or None where the source has none."""
        return None if self.targets is None else self.targets[self._rows(ids)]

    def _rows(self, ids: Sequence[str]) -> list[int]:
        foreign = [name for name in ids if name not in self.where]
        assert not foreign, f"ids must be of this selection, found {foreign[:3]}"
        return [self.where[name] for name in ids]


def select(
    spec: Spec,
    source: Source,
    *,
    n: int | None,
    sample_seed: int | None,
    options: Mapping[str, object | None],
    rest: str = "",
) -> ArrayDataset:
    """Return the selection of `source` that `n` and `sample_seed` choose.

    Its fingerprint covers the stored pixels of the selected images, their ids and the scale.

    Args:
        spec: as the user gave it.
        source: all images.
        n: as in `pick`.
        sample_seed: as in `pick`.
        options: the other options for the canonical spec; None leaves one out.
        rest: what stands after the scheme in the canonical spec.

    Raises:
        SpecError: the source is empty.
    """
    total = len(source.ids)
    rows = pick(source.ids, n=n, sample_seed=sample_seed)
    if not rows:
        raise SpecError(f"{spec}: {source.origin} holds no images")
    pixels = np.ascontiguousarray(source.pixels[rows])
    ids = tuple(source.ids[row] for row in rows)
    layout = f"{pixels.dtype} {'x'.join(map(str, pixels.shape[1:]))} / {source.scale}"
    count, height, width = pixels.shape[1:]
    info = DatasetInfo(
        spec=respell(spec, {**options, "n": n, "sample_seed": sample_seed}, rest=rest, total=total),
        name=source.name,
        shape=(count, height, width),
        num_classes=source.num_classes,
        size=len(rows),
        has_labels=source.labels is not None,
        fingerprint=fingerprint(hashlib.sha256(pixels.data).hexdigest(), ids, layout),
    )
    return ArrayDataset(
        info=info,
        ids=ids,
        sources=tuple(f"{source.origin}#{source.positions[row]}" for row in rows),
        pixels=pixels,
        scale=source.scale,
        targets=None if source.labels is None else source.labels[rows].astype(np.int64),
    )
