"""A leaderboard refreshed as a user would: what is new is computed, the rest costs nothing."""

import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from score_material import REPOSITORY, make_material, part_bytes, stored_tables
from torch import nn

from raybench.cli import main
from raybench.sinks.store import find_manifests, load_rows, read_manifest

NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def nan():
    net = make()
    net[1].weight.data.fill_(float("nan"))
    return net

def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))"""


def save_net(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    path.parent.mkdir(exist_ok=True)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, path)


@dataclass
class Board:
    """A leaderboard in a folder: its file, its checkpoints, its results."""

    folder: Path
    store: str

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def nets(self) -> Path:
        return self.folder / "nets"

    def write(self, models: str = "", **changed: str) -> None:
        parts = {
            "benchmark_version": '"1"',
            "out": str(self.out),
            "datasets": '[{name: digits, spec: "digits?n=24", threat: linf 0.1}]',
            "evaluations": '["grid?samples=64", "pgd?steps=2"]',
            "models": f'[{{spec: "file:{self.nets}/*.safetensors?arch=refresh_nets:make&'
            f'shape=1x8x8", name: "{{stem}}"}}{models}]',
            "resources": "{runner: local, shard_size: 8}",
            "tracking_uri": self.store,
        } | changed
        text = "\n".join(f"{name}: {value}" for name, value in parts.items())
        (self.folder / "leaderboard.yaml").write_text(text)

    def refresh(self, *more: str) -> tuple[int, dict[str, Any], str]:
        """Return the exit code, the JSON printed and what went to stderr."""
        out, err = io.StringIO(), io.StringIO()
        arguments = ["refresh", str(self.folder / "leaderboard.yaml"), "--json", *more]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(arguments)
        return code, json.loads(out.getvalue() or "{}"), err.getvalue()

    def entries(self) -> dict[str, str]:
        """Return the status of each entry by name."""
        content = json.loads((self.out / "leaderboard" / "state.json").read_text())
        return {entry["name"]: entry["status"] for entry in content["entries"]}

    def runs(self) -> dict[str, str]:
        """Return the status of each MLflow run of this leaderboard's experiments by name."""
        with contextlib.closing(sqlite3.connect(self.store.removeprefix("sqlite:///"))) as base:
            found = base.execute(
                "select e.name, r.name, r.status from runs r join experiments e "
                "using (experiment_id)"
            ).fetchall()
        return {f"{experiment}/{name}": status for experiment, name, status in found}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """A board of three checkpoints, refreshed once."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "refresh_nets.py").write_text(NETS)
    board = Board(folder, f"sqlite:///{folder / 'mlflow.db'}")
    for seed, name in enumerate("abc"):
        save_net(board.nets / f"{name}.safetensors", seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        board.write()
        code, content, err = board.refresh()
        assert code == 0, err
        assert content["computed"] == 3 * 2 * 3
        assert content["loaded"] == 3
    return board


@pytest.fixture
def board(first: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A copy of that board, to change."""
    # Copies keep their change time no more than real moves do: they are hashed and recalled.
    shutil.copytree(first.folder, tmp_path, dirs_exist_ok=True)
    for name in ("known.json", "mlflow.json"):
        path = tmp_path / "out" / "leaderboard" / name
        path.write_text(path.read_text().replace(str(first.folder), str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "refresh_nets", raising=False)
    copy = Board(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    copy.write()
    code, _, err = copy.refresh()
    assert code == 0, err
    return copy


def test_what_a_refresh_leaves(first: Board) -> None:
    content = json.loads((first.out / "leaderboard" / "state.json").read_text())
    assert content["schema"] == 1
    assert (content["new"], content["unchanged"], content["failed"]) == (3, 0, 0)
    [dataset] = content["datasets"]
    assert (dataset["name"], dataset["n"], dataset["threat"]) == ("digits", 24, "linf 0.1")
    for entry in content["entries"]:
        assert entry["dataset"] == dataset["key"]
        assert len(entry["measurements"]) == 2
        assert all((first.out / folder).is_dir() for folder in entry["measurements"])
    exported = first.out / "leaderboard" / "model_info" / "digits" / "Linf" / "a.json"
    assert json.loads(exported.read_text())["eps"] == "0.1"
    assert "| a | current |" in (first.out / "leaderboard" / "status.md").read_text()
    assert {name.split("/")[0] for name in first.runs()} == {"digits-lime-v1", "digits-attack-v1"}
    assert set(first.runs().values()) == {"FINISHED"}


def test_nothing_new_computes_loads_and_touches_nothing(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench.refresh import planning, tables

    def forbidden(*arguments: object, **options: object) -> object:
        raise AssertionError("not for a refresh without news")

    monkeypatch.setattr(planning, "resolve_model", forbidden)
    monkeypatch.setattr(tables, "_view", forbidden)
    stored = {path: path.stat().st_mtime_ns for path in (board.out / "rows").rglob("*")}
    before = board.refresh()[1]["tables"]
    begun = time.monotonic()
    code, content, _ = board.refresh()
    assert time.monotonic() - begun < 5
    assert code == 0
    assert (content["computed"], content["loaded"]) == (0, 0)
    assert content["state"]["unchanged"] == 3
    assert content["tables"] == before
    assert {path: path.stat().st_mtime_ns for path in (board.out / "rows").rglob("*")} == stored


def test_a_new_checkpoint_is_all_that_is_computed(board: Board) -> None:
    stored = part_bytes(board.out)
    starts = {name: status for name, status in board.runs().items() if "/a " in name}
    save_net(board.nets / "d.safetensors", 9)
    code, content, _ = board.refresh()
    assert code == 0
    assert (content["computed"], content["loaded"]) == (2 * 3, 1)
    assert (content["state"]["new"], content["state"]["unchanged"]) == (1, 3)
    assert stored.items() <= part_bytes(board.out).items()
    assert [len(table["models"]) for table in content["tables"]] == [4, 4]
    assert starts.items() <= board.runs().items()
    assert sum("/d " in name for name in board.runs()) == 2


def test_a_changed_one_is_computed_and_the_old_kept_as_history(board: Board) -> None:
    save_net(board.nets / "b.safetensors", 77)
    code, content, _ = board.refresh()
    assert code == 0
    assert content["computed"] == 2 * 3
    assert (content["state"]["new"], content["state"]["history"]) == (1, 1)
    assert len(content["tables"][0]["models"]) == 3


def test_broken_ones_stop_nobody(board: Board) -> None:
    (board.nets / "bad.safetensors").write_bytes(b"no weights at all")
    board.write(
        ', {spec: "python:refresh_nets:nan", name: nan}'
        ', {spec: "python:refresh_nets:wide?shape=3x32x32", name: wide}'
        ', {spec: "python:refresh_nets:nothing", name: gone}'
        f', "onnx:{board.nets}/*.onnx"'
    )
    save_net(board.nets / "d.safetensors", 9)
    code, content, err = board.refresh()
    assert code == 3
    assert content["computed"] == 2 * 3
    errors = {
        entry["name"]: entry["error"]
        for entry in content["state"]["entries"]
        if entry["status"] == "failed"
    }
    assert "not a readable safetensors file" in errors["bad"]
    assert "NaN or infinite" in errors["nan"]
    assert "takes images of 3x32x32" in errors["wide"]
    assert "no 'nothing'" in errors["gone"]
    assert any("stands for no model" in error for error in errors.values())
    assert len(errors) == content["state"]["failed"] == 5
    assert [len(table["models"]) for table in content["tables"]] == [4, 4]
    assert "failed: bad on digits" in err
    # They are tried again, and cost nothing else.
    code, content, _ = board.refresh()
    assert (code, content["computed"], content["state"]["unchanged"]) == (3, 0, 4)


def test_a_removed_one_is_history_and_returns_for_nothing(board: Board) -> None:
    kept = (board.nets / "a.safetensors").read_bytes()
    (board.nets / "a.safetensors").unlink()
    code, content, _ = board.refresh()
    assert code == 0
    assert board.entries() == {"a": "history", "b": "current", "c": "current"}
    assert [len(table["models"]) for table in content["tables"]] == [2, 2]
    assert not (board.out / "leaderboard" / "model_info" / "digits" / "Linf" / "a.json").exists()
    (board.nets / "a.safetensors").write_bytes(kept)
    code, content, _ = board.refresh()
    assert (code, content["computed"], content["state"]["returned"]) == (0, 0, 1)
    assert set(board.entries().values()) == {"current"}


def test_a_renamed_one_is_filed_again_to_the_same_bytes(board: Board, tmp_path: Path) -> None:
    (board.nets / "a.safetensors").rename(board.nets / "z.safetensors")
    code, content, _ = board.refresh()
    assert (code, content["computed"], content["state"]["renamed"]) == (0, 0, 1)
    assert board.entries() == {"b": "current", "c": "current", "z": "current"}
    filed = {name: part for name, part in part_bytes(board.out).items() if "model=z-" in name}
    assert len(filed) == 6
    for folder in list((board.out / "rows").glob("*/*/model=z-*")):
        shutil.rmtree(folder)
    code, content, _ = board.refresh()
    computed = {name: part for name, part in part_bytes(board.out).items() if "model=z-" in name}
    assert computed == filed


def test_damage_is_found_and_mended(board: Board) -> None:
    parts = sorted((board.out / "rows").rglob("part-*.parquet"))
    whole = [path.read_bytes() for path in parts]
    rows = stored_tables(board.out)
    parts[0].unlink()
    parts[1].write_bytes(whole[1][:-1])
    code, content, _ = board.refresh()
    assert (code, content["computed"]) == (0, 2)
    # A flipped byte shows in no size: it is found by --rehash, which reads all of them.
    flipped = bytearray(whole[2])
    flipped[40] ^= 1
    parts[2].write_bytes(flipped)
    assert board.refresh()[1]["computed"] == 0
    code, content, _ = board.refresh("--rehash")
    assert (code, content["computed"], content["loaded"]) == (0, 1, 3)
    after = stored_tables(board.out)
    assert all(after[name].equals(table) for name, table in rows.items())


def test_another_protocol_needs_another_version(board: Board) -> None:
    board.write(evaluations='["grid?samples=64", "pgd?steps=3"]')
    code, _, err = board.refresh()
    assert code == 2
    assert "raise benchmark_version" in err
    board.write(evaluations='["grid?samples=64", "pgd?steps=3"]', benchmark_version='"2"')
    code, content, _ = board.refresh()
    assert code == 0
    assert content["computed"] == 3 * 3  # the grid's rows are those of version 1
    assert content["state"]["history"] == 3
    assert {name.split("/")[0] for name in board.runs()} >= {"digits-lime-v2", "digits-attack-v2"}


def test_lower_access_leaves_out_what_needs_more_and_says_so(board: Board) -> None:
    net = board.nets / "a.safetensors"
    spec = f"file:{net}?arch=refresh_nets:make&shape=1x8x8&access=scores"
    board.write(f', {{spec: "{spec}", name: api}}')
    code, content, err = board.refresh()
    assert code == 0, err
    scores, attacks = content["tables"]
    assert "api" in {row["model"] for row in scores["models"]}
    assert "api" not in {row["model"] for row in attacks["models"]}
    assert "no robust accuracy within linf 0.1" in err


def test_references_are_marked_and_baselines_checked(board: Board) -> None:
    line = "{model: a, dataset: digits, metric: clean_accuracy, value: 0.9, source: here, n: 24}"
    other = line.replace("model: a", "model: q")
    board.write(reference=f"[{line}, {other}]", baseline="b")
    code, content, err = board.refresh()
    assert code == 0
    [reference] = content["state"]["references"]
    assert (reference["model"], reference["comparable"]) == ("a", True)
    assert "1 reference values are of models that are not listed" in err
    assert content["tables"][0]["baseline"] == "b"
    board.write(baseline="bb")
    code, _, err = board.refresh()
    assert code == 2
    assert "baseline 'bb' is none of the models" in err


def test_two_datasets_are_one_run_and_two_tables(board: Board) -> None:
    board.write(
        datasets='[{name: digits, spec: "digits?n=24", threat: linf 0.1}, '
        '{name: few, spec: "digits?n=10", threat: linf 0.2}]'
    )
    code, content, err = board.refresh()
    assert code == 0, err
    assert content["computed"] == 3 * 2 * 2
    assert [table["leaderboard_dataset"] for table in content["tables"]] == [
        "digits",
        "digits",
        "few",
        "few",
    ]
    assert content["tables"][3]["threat"] == "linf 0.2"


def test_a_second_refresh_of_one_folder_waits_for_nobody(board: Board) -> None:
    from raybench.refresh.run import _alone

    with _alone(board.out):
        code, _, err = board.refresh()
    assert code == 3
    assert "another refresh" in err


def test_mlflow_that_was_away_gets_what_it_lacks(board: Board) -> None:
    save_net(board.nets / "d.safetensors", 9)
    before = board.runs()
    code, content, err = board.refresh("--tracking-uri", "http://127.0.0.1:9")
    assert (code, content["computed"]) == (0, 2 * 3)
    assert "cannot be used" in err
    assert board.runs() == before
    code, content, _ = board.refresh()
    assert (code, content["computed"]) == (0, 0)
    assert sum("/d " in name for name in board.runs()) == 2


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    material = make_material(tmp_path / "material", images=24, rounds=10)
    text = f"""
benchmark_version: "1"
out: {tmp_path / "out"}
datasets: [{{name: toy, spec: "{material.data}"}}]
evaluations: ["grid?samples=64"]
models: ["{material.models[0]}", "{material.models[1]}"]
resources: {{runner: local, shard_size: 2}}
"""
    (tmp_path / "board.yaml").write_text(text)
    command = [sys.executable, "-m", "raybench", "refresh", str(tmp_path / "board.yaml"), "--json"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ
    )
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").rglob("part-*.parquet"))) < 3:
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = part_bytes(tmp_path / "out")
    assert 3 <= len(stored) < 24
    assert not (tmp_path / "out" / "leaderboard" / "state.json").exists()
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(command[3:]) == 0
    content = json.loads(out.getvalue())
    assert content["computed"] == 24 - len(stored)
    assert content["loaded"] == 0  # they were known before the first shard
    assert stored.items() <= part_bytes(tmp_path / "out").items()


def test_rows_are_those_of_a_plain_score_job(first: Board, tmp_path: Path) -> None:
    """One path for both: the same measurement has the same key, folder and bytes."""
    name = first.nets / "a.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(first.folder))
        code = main(
            [
                *("score", f"file:{name}?arch=refresh_nets:make&shape=1x8x8&name=a"),
                *("--data", "digits", "--n", "24", "--samples", "64", "--reading", "grid"),
                *("--runner", "local", "--shard-size", "8", "--out", str(tmp_path), "--quiet"),
                *("--tracking-uri", first.store, "--experiment", "plain"),
            ]
        )
    assert code == 0
    [folder] = find_manifests(tmp_path)
    mine = load_rows(folder, read_manifest(folder))
    theirs = first.out / folder.relative_to(tmp_path)
    assert mine.equals(load_rows(theirs, read_manifest(theirs)))
    assert np.isfinite(mine.column("score").to_numpy()).all()
