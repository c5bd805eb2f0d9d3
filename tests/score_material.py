"""Small real inputs for whole runs: scripted networks on disk and images in an archive."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raybench.sinks.store import find_manifests, load_rows, read_manifest

REPOSITORY = Path(__file__).resolve().parents[1]


class Slow(nn.Module):
    """A linear network that takes a while, so that there is a middle of the run to kill."""

    def __init__(self, seed: int, rounds: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(64, 3, generator=generator))
        self.ballast = nn.Parameter(torch.eye(256))
        self.rounds = rounds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        load = torch.eye(256)
        for _ in range(self.rounds):
            load = load @ self.ballast
        return images.flatten(1) @ self.weight + 0.0 * load[0, 1]


@dataclass(frozen=True)
class Material:
    """Specs of two networks and a dataset, in one folder."""

    folder: Path
    models: tuple[str, ...]
    data: str


def make_material(folder: Path, *, images: int = 24, rounds: int = 0) -> Material:
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for seed, name in enumerate(("first", "second")):
        path = folder / f"{name}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, not gone
            torch.jit.script(Slow(seed, rounds).eval()).save(str(path))
        models.append(f"torchscript:{path}?shape=1x8x8&classes=3")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, size=(images, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels, labels=rng.integers(0, 3, size=images))
    return Material(folder, tuple(models), f"npz:{folder / 'data.npz'}")


def command(material: Material, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "raybench", "score", *material.models, "--data", material.data,
        "--samples", "64", "--shard-size", "2", "--reading", "grid", "--out", str(out), *more,
    ]  # fmt: skip


def run(
    arguments: list[str], timeout: float = 300, cwd: Path = REPOSITORY, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
        env=os.environ | env,
    )


def stored_tables(out: Path) -> dict[str, pa.Table]:
    """Return the rows of every measurement, whatever run or worker computed them."""
    return {
        str(folder.relative_to(out)): load_rows(folder, read_manifest(folder))
        for folder in find_manifests(out)
    }


def part_bytes(out: Path) -> dict[str, bytes]:
    """Return the bytes of every part file."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("part-*.parquet"))}


def headline(output: str) -> list[tuple[str, float, float, float]]:
    """Return (model, score, ci_low, ci_high) of each model in the JSON a run printed."""
    return [
        (row["model"], row["score"], row["ci_low"], row["ci_high"])
        for row in json.loads(output)["models"]
    ]
