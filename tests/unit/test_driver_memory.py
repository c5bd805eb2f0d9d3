"""What the driver holds for each shard, whatever the number of images: see bench_memory.py."""

import tracemalloc

import pytest
from bench.bench_memory import SHARD_SIZE, drive


def test_a_shard_costs_the_driver_kilobytes_and_an_image_its_name() -> None:
    held = {}
    for size in (10_000, 50_000):
        try:
            held[size] = drive(size, traced=True)
        finally:
            tracemalloc.stop()
    more = {name: held[50_000][name] - held[10_000][name] for name in ("ids_mb", "rest_mb")}
    assert 1e6 * more["ids_mb"] / 40_000 < 80
    per_shard = 1e6 * more["rest_mb"] / (40_000 / SHARD_SIZE)
    # 2,000 bytes; a row, an image or a second copy of the receipts would be far more.
    assert per_shard == pytest.approx(2000, rel=0.25)
