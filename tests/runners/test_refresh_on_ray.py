"""A leaderboard on Ray: all datasets in one run, and one model that kills its workers."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest
from score_material import stored_tables

from raybench.cli import main
from raybench.sinks.store import load_rows, read_manifest

NETS = """
import os
from pathlib import Path

import torch
from torch import nn

def make():
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def deadly():
    # Loads where the run is planned, and ends every other process.
    if os.getpid() != int(Path(__file__).with_name("planner").read_text()):
        os._exit(1)
    return make()
"""

BOARD = """
benchmark_version: "1"
out: {out}
datasets:
  - {{name: digits, spec: "digits?n=16", threat: linf 0.1}}
  - {{name: few, spec: "digits?n=6", threat: linf 0.2}}
evaluations: ["grid?samples=64", "pgd?steps=2"]
models:
  - {{spec: "python:ray_refresh_nets:make", name: good}}
{more}
tracking_uri: {store}
resources: {{runner: {runner}, actors: 2, shard_size: 4, max_attempts: 1}}
"""


def refresh(folder: Path, runner: str, more: str = "") -> tuple[int, dict]:
    text = BOARD.format(
        out=folder / runner, runner=runner, more=more, store=f"sqlite:///{folder}/mlflow.db"
    )
    (folder / "board.yaml").write_text(text)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = main(["refresh", str(folder / "board.yaml"), "--json"])
    return code, json.loads(out.getvalue())


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
def test_one_run_over_two_datasets_survives_a_deadly_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray_refresh_nets.py").write_text(NETS)
    (tmp_path / "planner").write_text(str(os.getpid()))
    monkeypatch.syspath_prepend(str(tmp_path))
    code, content = refresh(tmp_path, "local")
    assert code == 0
    assert content["computed"] == 2 * (4 + 2)
    more = '  - {spec: "python:ray_refresh_nets:deadly", name: deadly, datasets: few}'
    code, content = refresh(tmp_path, "ray", more)
    assert code == 3
    assert content["computed"] == 2 * (4 + 2)
    failed = [one for one in content["state"]["entries"] if one["status"] == "failed"]
    assert [one["name"] for one in failed] == ["deadly"]
    assert "the worker died" in failed[0]["error"]
    here = stored_tables(tmp_path / "local")
    assert len(here) == 4
    for name, table in here.items():
        folder = tmp_path / "ray" / name
        assert load_rows(folder, read_manifest(folder)).equals(table)
