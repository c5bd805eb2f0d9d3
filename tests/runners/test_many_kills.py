"""Workers, nodes and drivers are killed at random moments, over and over; nothing is lost."""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from score_material import REPOSITORY, part_bytes, run, stored_tables

from raybench.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# As many as a full proof takes (`RAYBENCH_KILLS=50`, about five minutes); fewer in CI.
KILLS = int(os.environ.get("RAYBENCH_KILLS", "8"))
IMAGES = 20 + 4 * KILLS


@pytest.mark.timeout(300 + 20 * KILLS)
def test_kills_at_random_moments_lose_nothing_and_repeat_only_what_was_in_flight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(IMAGES, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels)
    models = [f"python:counted_model:{name}?shape=1x8x8" for name in ("first", "second")]
    score = [
        "score", *models, "--data", f"npz:{tmp_path / 'data.npz'}", "--samples", "64",
        "--shard-size", "1", "--reading", "grid", "--max-attempts", "4",
    ]  # fmt: skip
    expected, out, calls = tmp_path / "expected", tmp_path / "out", tmp_path / "calls"
    assert main([*score, "--out", str(expected), "--runner", "local", "--quiet"]) == 0
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as folder:
        loop = [sys.executable, str(Path(__file__).parent / "kill_loop.py"), str(out), "7"]
        command = [sys.executable, "-m", "raybench", *score, "--out", str(out), "--actors", "2"]
        done = run(
            [*loop, str(KILLS), *command, "--quiet"],
            timeout=280 + 20 * KILLS,
            RAY_TMPDIR=folder,
            RAY_ADDRESS="",
            COUNTED_CALLS=str(calls),
            PYTHONPATH=str(REPOSITORY / "tests"),
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    # A grid of 16 cells and k = 64: one forward pass of 64 rows an image, which a row needs. The
    # driver's own trials of the models have fewer.
    passes = sum(line.endswith(" 64") for line in calls.read_text().splitlines())
    shards = 2 * IMAGES
    repeated = passes - shards
    told |= {"shards": shards, "repeated": repeated}
    with capsys.disabled():
        print(f"\nkilled and resumed: {json.dumps(told)}")
    assert sum(told["kills"].values()) == KILLS
    # A worker's death costs its shard; a driver's those of both workers, whose parts it can find.
    in_flight = told["kills"].get("driver", 0) * 2 + sum(
        told["kills"].get(kind, 0) for kind in ("actor", "raylet")
    )
    in_flight += told["lost"]
    assert 0 <= repeated <= in_flight
    assert part_bytes(out) == part_bytes(expected)
    assert stored_tables(out) == stored_tables(expected)
    assert main(["verify", str(out)]) == 0
