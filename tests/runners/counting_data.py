"""Folders of images whose reads are counted by process, importable by Ray's worker processes."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from raybench.core.plan import Plan
from raybench.core.types import Batch
from raybench.core.work import Worker
from raybench.data.folders import FolderDataset
from raybench.runners.worker import WorkerFactory

_COUNTING: list[object] = []


def make_folder(folder: Path, count: int) -> Path:
    """Write `count` small images and return their folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        pixels = rng.integers(0, 256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


@contextmanager
def count_reads(log: Path) -> Iterator[None]:
    """Note how many images this process asks for, a line 'pid images' a read, in ``log/reads``."""
    before = FolderDataset.read

    def read(dataset: FolderDataset, ids: Sequence[str]) -> Batch:
        with (log / "reads").open("a") as lines:
            lines.write(f"{os.getpid()} {len(ids)}\n")
        return before(dataset, ids)

    FolderDataset.read = read
    try:
        yield
    finally:
        FolderDataset.read = before


class CountingFactory:
    """Makes the worker of a plan, in a process that counts from then on."""

    def __init__(self, log: str, plan: Plan, log_run: str = "") -> None:
        self.plan = plan
        self._log, self._factory = log, WorkerFactory(plan, log_run=log_run)

    def __call__(self) -> Worker:
        counting = count_reads(Path(self._log))
        counting.__enter__()
        _COUNTING.append(counting)  # it would end with its last reference
        return self._factory()


def reads(log: Path) -> Counter[int]:
    """Return the images read by each process."""
    counts: Counter[int] = Counter()
    for line in (log / "reads").read_text().splitlines():
        pid, images = map(int, line.split())
        counts[pid] += images
    return counts
