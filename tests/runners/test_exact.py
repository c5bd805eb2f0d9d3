"""``--exact`` and the fast way, in whole runs: equal rows but for rounding, under the same key."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from score_material import stored_tables

from raybench.cli import main

NETS = """
import torch
from torch import nn

def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 13 * 13, 10),
    )
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "two_way_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    pixels = np.random.default_rng(0).integers(0, 256, size=(6, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels)
    return f"npz:{tmp_path / 'data.npz'}"


def score(data: str, out: str, *flags: str) -> int:
    spec = "python:two_way_nets:convolutional?shape=1x28x28&classes=10"
    arguments = ["score", spec, "--data", data, "--out", out, "--runner", "local"]
    return main([*arguments, "--reading", "grid", "--samples", "128", "--quiet", *flags])


def test_both_ways_give_the_same_rows_to_rounding_under_the_same_key(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = []
    for flags in ((), ("--exact",)):
        assert score(data, f"out{len(flags)}", "--json", *flags) == 0
        scores.append(json.loads(capsys.readouterr().out)["models"][0]["score"])
    fast, exact = (stored_tables(tmp_path / name) for name in ("out0", "out1"))
    assert fast.keys() == exact.keys()
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    for key, table in fast.items():
        other = exact[key]
        assert table.column("sample_id") == other.column("sample_id")
        ours, theirs = (np.array(each.column("weights").to_pylist()) for each in (table, other))
        assert not np.array_equal(ours, theirs)  # the network was stored otherwise, or fitted so
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


def test_a_compiled_exact_run_is_refused_before_anything_is_loaded(
    data: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert score(data, "out", "--exact", "--compile") == 2
    said = capsys.readouterr().err
    assert "exact" in said
    assert "give one of them" in said
    assert not (tmp_path / "out").exists()
