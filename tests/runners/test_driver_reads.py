"""Images are read where they are computed with: the driver reads a few, never the dataset."""

import os
from functools import partial
from pathlib import Path

import pytest
from runners.counting_data import CountingFactory, count_reads, make_folder, reads
from score_material import make_material

from raybench.cli import main
from raybench.core.catalog import open_dataset
from raybench.core.spec import parse

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("cluster")]


def test_the_driver_reads_its_few_images_and_workers_all_of_them(tmp_path: Path) -> None:
    """A dataset that counts: each read, by the process that asked for it."""
    num_images = 120
    data = make_folder(tmp_path / "images", num_images)
    material = make_material(tmp_path / "material", images=2)
    options = [
        "score", material.models[0], "--data", f"folder:{data}?channels=1", "--n", str(num_images),
        "--reading", "grid", "--samples", "32", "--shard-size", "10", "--actors", "1",
        "--out", str(tmp_path / "out"), "--quiet", "--json",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raybench.driver.WorkerFactory", partial(CountingFactory, str(tmp_path)))
        with count_reads(tmp_path):
            assert main(options) == 0
    found = reads(tmp_path)
    workers = {pid: count for pid, count in found.items() if pid != os.getpid()}
    assert sum(workers.values()) == num_images
    # Probes of the model and of the segmentation, and the pictures of the report.
    assert 0 < found[os.getpid()] <= 32


def test_counting_reads_would_notice_a_driver_that_reads_all(tmp_path: Path) -> None:
    data = make_folder(tmp_path / "images", 120)
    with count_reads(tmp_path):
        dataset = open_dataset(parse(f"folder:{data}?channels=1&n=120"))
        dataset.read(dataset.ids)
    assert reads(tmp_path) == {os.getpid(): 120}
