"""The scoring command as a user runs it, in one process."""

import contextlib
import io
import json
import os
import signal
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from score_material import (
    Material,
    command,
    headline,
    make_material,
    part_bytes,
    stored_tables,
)

import raybench
from raybench.cli import main
from raybench.sinks.store import find_manifests, read_manifest


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"))


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all runs here: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def run(arguments: list[str], store: str) -> Result:
    """Run the command line in this process and return what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments[3:], "--tracking-uri", store])
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def scored(
    material: Material, store: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("scored")
    result = run(command(material, out, "--runner", "local", "--json"), store)
    assert result.returncode == 0, result.stderr
    return out, result.stdout


def test_json_is_one_object_with_what_was_promised(scored: tuple[Path, str]) -> None:
    content = json.loads(scored[1])
    assert [row["rank"] for row in content["models"]] == [1, 2]
    for row in content["models"]:
        assert row["ci_low"] < row["score"] < row["ci_high"]
        assert row["n"] == 24
        assert row["queries"] == 24 * 64
        assert row["clean_low"] <= row["clean_accuracy"] <= row["clean_high"]


def test_scores_are_the_means_of_the_stored_rows(scored: tuple[Path, str]) -> None:
    out, text = scored
    tables = stored_tables(out)
    found = sorted(float(np.mean(table.column("score"))) for table in tables.values())
    assert found == pytest.approx(sorted(row[1] for row in headline(text)))
    assert all(table.num_rows == 24 for table in tables.values())


def test_second_run_computes_nothing_and_prints_the_same(
    scored: tuple[Path, str], material: Material, store: str
) -> None:
    out, text = scored
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    result = run(command(material, out, "--json"), store)
    assert result.returncode == 0
    assert headline(result.stdout) == headline(text)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")} == before
    assert "24 of 24 shards are there" in result.stderr


def test_changed_options_never_mix(
    scored: tuple[Path, str], material: Material, store: str
) -> None:
    out, text = scored
    before = part_bytes(out)
    result = run(command(material, out, "--runner", "local", "--json", "--seed", "1"), store)
    assert result.returncode == 0
    assert headline(result.stdout) != headline(text)
    after = part_bytes(out)
    assert len(after) == 2 * len(before)
    assert {name: after[name] for name in before} == before


def test_fresh_computes_again_to_the_same_bytes(
    scored: tuple[Path, str], material: Material, store: str
) -> None:
    out, _ = scored
    before = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    content = part_bytes(out)
    result = run(command(material, out, "--runner", "local", "--fresh", "--json"), store)
    assert result.returncode == 0
    assert part_bytes(out) == content
    after = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    assert sum(after[path] != before[path] for path in before) == 24


def test_shard_size_changes_parts_and_no_row(
    scored: tuple[Path, str], material: Material, tmp_path: Path, store: str
) -> None:
    arguments = command(material, tmp_path, "--runner", "local", "--json")
    arguments[arguments.index("--shard-size") + 1] = "7"
    result = run(arguments, store)
    assert headline(result.stdout) == headline(scored[1])
    mine, theirs = stored_tables(tmp_path), stored_tables(scored[0])
    for name, table in mine.items():
        assert table.equals(theirs[name])


def test_flip_radius_normalises_the_lime_table_and_does_not_depend_on_shards(
    material: Material, tmp_path: Path, store: str
) -> None:
    outputs = []
    for size in ("2", "5"):
        arguments = command(material, tmp_path / size, "--runner", "local", "--json")
        arguments[arguments.index("--shard-size") + 1] = size
        result = run([*arguments, "--reading", "flip-radius?samples=400"], store)
        assert result.returncode == 0, result.stderr
        outputs.append(json.loads(result.stdout))
    first, second = outputs
    assert "tables" not in first
    for row, other in zip(first["models"], second["models"], strict=True):
        assert row["reading"].startswith("grid")
        assert row["normalised_by"] == "flip-radius?samples=400"
        assert 0 < row["normalised_ci_low"] < row["normalised"] < row["normalised_ci_high"] < 1
        assert row["score_ci_low"] == row["ci_low"] < row["score"] < row["score_ci_high"]
        assert row["noise_floor"] > 0
        same = ("rank", "score", "normalised", "normalised_ci_low", "noise_floor", "corrected")
        assert [row[name] for name in same] == [other[name] for name in same]
    assert [row["rank"] for row in first["models"]] == [1, 2]
    ranked = [row["normalised"] for row in first["models"]]
    assert ranked == sorted(ranked)
    mine, theirs = stored_tables(tmp_path / "2"), stored_tables(tmp_path / "5")
    assert mine.keys() == theirs.keys()
    for name, table in mine.items():
        assert table.equals(theirs[name])


def test_rank_by_the_raw_score(
    scored: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(scored[0]), "--json", "--rank-by", "score"]) == 0
    content = json.loads(capsys.readouterr().out)
    for table in content.get("tables", [content]):
        scores = [row["score"] for row in table["models"]]
        assert scores == sorted(scores)
        assert table["rank_by"] == "score"


def test_show_needs_no_model(scored: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(scored[0]), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    tables = content.get("tables", [content])
    shown = {row["key"]: row["score"] for table in tables for row in table["models"]}
    for row in json.loads(scored[1])["models"]:
        assert shown[row["key"]] == row["score"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_verify_finds_and_repair_recomputes_only_what_is_damaged(
    material: Material, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    assert run(command(material, tmp_path, "--runner", "local"), store).returncode == 0
    assert main(["verify", str(tmp_path)]) == 0
    content = part_bytes(tmp_path)
    victim = sorted(tmp_path.rglob("part-*.parquet"))[5]
    data = bytearray(victim.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 0x10
        victim.write_bytes(data)
    elif damage == "truncate":
        victim.write_bytes(data[:-40])
    else:
        victim.unlink()
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*.parquet")}
    capsys.readouterr()
    assert main(["verify", str(tmp_path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    damaged = [name for entry in report["measurements"] for name in entry["damaged"]]
    assert damaged == [victim.name]
    assert (
        main(["verify", str(tmp_path), "--repair", "--runner", "local", "--tracking-uri", store])
        == 0
    )
    assert part_bytes(tmp_path) == content
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("part-*.parquet")}
    assert [path for path in after if after[path] != stamps.get(path)] == [victim]


def test_a_score_is_never_published_from_an_incomplete_manifest(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    assert run(command(material, tmp_path, "--runner", "local"), store).returncode == 0
    folder = find_manifests(tmp_path)[0]
    (folder / read_manifest(folder).shards[3].file).unlink()
    capsys.readouterr()
    assert main(["show", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert sorted(row["status"] for row in rows) == ["complete", "incomplete"]
    assert [row["score"] is None for row in rows] == [row["status"] != "complete" for row in rows]


def test_yaml_and_python_are_the_same_job(
    scored: tuple[Path, str],
    material: Material,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    store: str,
) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(
        f"models: {json.dumps(material.models)}\ndata: {json.dumps(material.data)}\n"
        f"samples: 64\nreading: [grid]\nshard_size: 2\nrunner: local\nout: {tmp_path / 'yaml'}\n"
        f"tracking_uri: {store}\n"
    )
    assert main(["score", "--config", str(config), "--json", "--quiet"]) == 0
    assert headline(capsys.readouterr().out) == headline(scored[1])
    result = raybench.score(
        quiet=True,
        models=material.models,
        data=material.data,
        samples=64,
        reading=["grid"],
        shard_size=2,
        runner="local",
        tracking_uri=store,
        out=tmp_path / "python",
    )
    assert [row.score for row in result.tables[0].rows] == [row[1] for row in headline(scored[1])]
    assert part_bytes(tmp_path / "python") == part_bytes(tmp_path / "yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "zoo:mlp2"], "data: must be given"),
        (["score", "--data", "digits"], "models: must be given"),
        (["score", "zoo:mlp2", "--data", "digits", "--n", "0"], "n: Input should be greater"),
        (["score", "zoo:mlp2", "--data", "digitz"], "did you mean digits"),
        (["score", "zooo:mlp2", "--data", "digits"], "did you mean zoo"),
        (["score", "zoo:mlp2", "zoo:mlp2", "--data", "digits"], "given twice"),
        (["score", "zoo:mlp2", "--data", "digits", "--actors", "some"], "expected auto"),
        (["score", "zoo:mlp2", "--data", "digits", "--out", "s4://b/x"], "no store is named 's4'"),
        (["score", "zoo:mlp2", "--data", "digits?n=5", "--n", "6"], "selects n=5, but n=6"),
        (["score", "zoo:mlp2", "--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["score", "--no-such-flag"], "No such option"),
        (["show", "nowhere"], "nowhere holds no results"),
        (["verify", "nowhere"], "nowhere holds no results"),
        (["verify", "nowhere", "--repair"], "nowhere holds no results"),
        (["sync", "nowhere"], "nowhere holds no results"),
    ],
)
def test_bad_input_ends_with_2_and_names_it(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("smaples: 3", "did you mean samples"),
        ("samples: many", "samples: Input should be a valid integer"),
        ("seed: -1", "seed: Input should be greater than or equal to 0"),
        ("actors: 0", "expected auto or a number from 1 up"),
        ("models: digits", "no model scheme is named 'digits'"),
        ("models: 3", "models: Input should be a valid tuple"),
        ("- a list", "expected a mapping"),
    ],
)
def test_bad_yaml_names_the_field_and_what_is_accepted(
    tmp_path: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "job.yaml"
    start = "" if line.startswith("-") else "data: digits\n"
    if not line.startswith(("-", "models")):
        start += "models: ['zoo:mlp2']\n"
    config.write_text(start + line + "\n")
    assert main(["score", "--config", str(config)]) == 2
    assert message in capsys.readouterr().err


def test_all_mistakes_of_a_job_come_at_once(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "score", "torchscript:absent.pt", f"{material.models[0]}&access=labels",
        "--data", material.data, "--reading", "grid?cells=99", "--reading", "grid",
        "--baseline", "nobody", "--out", str(tmp_path / "out"), "--quiet",
    ]  # fmt: skip
    assert main(arguments) == 2
    error = capsys.readouterr().err
    for piece in ("absent.pt", "needs access to scores", "cells must lie in 1..8", "nobody"):
        assert piece in error
    assert not (tmp_path / "out").exists()


def test_missing_models_can_be_left_out_and_it_is_said(
    material: Material, tmp_path: Path, store: str
) -> None:
    arguments = command(material, tmp_path, "--runner", "local", "--json", "--skip-missing")
    arguments.insert(4, "torchscript:absent.pt")
    result = run(arguments, store)
    assert result.returncode == 0
    assert "left out torchscript:absent.pt" in result.stderr
    assert len(json.loads(result.stdout)["models"]) == 2


def test_unreadable_images_are_rows_and_the_summary_says_how_many(
    material: Material, tmp_path: Path, store: str
) -> None:
    from PIL import Image

    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for index in range(9):
        pixels = rng.integers(0, 256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[: len(whole) // 2])
    bad = Material(material.folder, material.models, f"folder:{folder}?channels=1")
    result = run(command(bad, tmp_path / "out", "--runner", "local", "--json"), store)
    assert result.returncode == 0, result.stderr
    for row in json.loads(result.stdout)["models"]:
        assert (row["n"], row["unscored"]) == (8, 1)
        assert any("1 of 9 images could not be scored" in warning for warning in row["warnings"])
    for table in stored_tables(tmp_path / "out").values():
        [line] = [row for row in table.to_pylist() if row["status"] == "error"]
        assert "4.png" in line["source"]


def test_plan_runs_a_pilot_that_the_run_then_keeps(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    arguments = command(material, tmp_path, "--runner", "local", "--json")[3:]
    arguments[0] = "plan"
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["shards_done"] for row in report["rows"]] == [2, 2]
    assert [row["queries_left"] for row in report["rows"]] == [20 * 64, 20 * 64]
    assert report["seconds_left"] > 0
    assert report["worker_bytes"] > 2**20
    result = run(command(material, tmp_path, "--runner", "local"), store)
    assert result.returncode == 0
    assert "4 of 24 shards are there" in result.stderr


def test_lists_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("models", "datasets"):
        assert main([verb, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) >= 8
    assert main(["doctor"]) == 0
    assert "scheme robustbench" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["_publish", "_start_runs", "open_manifests"])
def test_sigterm_before_or_after_the_shards_leaves_runs_killed(
    material: Material, tmp_path: Path, store: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench import driver

    plain = getattr(driver, where)

    def asked_to_stop(*arguments: object, **options: object) -> object:
        if where != "_start_runs":
            os.kill(os.getpid(), signal.SIGTERM)
        answer = plain(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return answer

    monkeypatch.setattr(driver, where, asked_to_stop)
    experiment = f"stopped in {where}"
    arguments = command(material, tmp_path, "--runner", "local", "--experiment", experiment)
    assert run(arguments, store).returncode == 143
    with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:
        found = database.execute(
            "select r.status from runs r join experiments e using (experiment_id) where e.name = ?",
            (experiment,),
        ).fetchall()
    assert {status for (status,) in found} == (set() if where == "open_manifests" else {"KILLED"})
    monkeypatch.undo()
    assert run(arguments, store).returncode == 0


def test_a_changed_checkpoint_is_another_model_and_each_keeps_its_score(
    material: Material, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "net.pt"
    printed = []
    for index in range(2):
        source = material.folder / ("first.pt", "second.pt")[index]
        network.write_bytes(source.read_bytes())
        one = Material(
            material.folder, (f"torchscript:{network}?shape=1x8x8&classes=3",), material.data
        )
        result = run(command(one, tmp_path / "out", "--runner", "local", "--json"), store)
        assert result.returncode == 0, result.stderr
        printed += [row[1] for row in headline(result.stdout)]
    assert printed[0] != printed[1]
    assert main(["show", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert sorted(row["score"] for row in rows) == sorted(printed)
    assert sorted(row["rank"] for row in rows) == [1, 2]
    assert len({row["model"] for row in rows}) == 2


def test_one_model_at_two_access_levels_is_two_measurements_and_twins_are_refused(
    material: Material, tmp_path: Path, store: str
) -> None:
    model = material.models[0]
    both = Material(material.folder, (model, f"{model}&access=scores"), material.data)
    result = run(command(both, tmp_path, "--runner", "local", "--json"), store)
    assert result.returncode == 0, result.stderr
    assert sorted(row["rank"] for row in json.loads(result.stdout)["models"]) == [1, 2]
    same = Material(material.folder, (model, f"{model}&access=gradients"), material.data)
    result = run(command(same, tmp_path, "--runner", "local"), store)
    assert result.returncode == 2
    assert "given twice" in result.stderr


def test_a_model_without_a_score_is_exit_code_3_with_its_reason(
    material: Material, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raybench import driver

    publish, victims = driver._publish, []

    def damage_and_publish(*arguments: object, **options: object) -> object:
        victims.append(sorted(tmp_path.rglob("part-*.parquet"))[0])
        content = bytearray(victims[0].read_bytes())
        content[len(content) // 2] ^= 0x10
        victims[0].write_bytes(content)
        return publish(*arguments, **options)

    monkeypatch.setattr(driver, "_publish", damage_and_publish)
    result = run(command(material, tmp_path, "--runner", "local", "--json"), store)
    assert result.returncode == 3
    [row] = [row for row in json.loads(result.stdout)["models"] if row["score"] is None]
    assert victims[0].name in row["error"]


def test_baseline_is_remembered_and_an_unknown_one_is_refused(
    scored: tuple[Path, str], material: Material, tmp_path: Path, store: str, capsys
) -> None:
    arguments = command(material, tmp_path, "--runner", "local", "--json", "--baseline", "second")
    expected = {
        row["model"]: row["ri"] for row in json.loads(run(arguments, store).stdout)["models"]
    }
    assert expected["second"] is None
    assert expected["first"] is not None
    assert main(["show", str(tmp_path), "--json"]) == 0
    shown = {row["model"]: row["ri"] for row in json.loads(capsys.readouterr().out)["models"]}
    assert shown == expected
    assert main(["show", str(tmp_path), "--baseline", "secnd"]) == 2
    assert "did you mean second" in capsys.readouterr().err


def test_a_manifest_cannot_name_files_outside_its_folder(
    material: Material, tmp_path: Path, store: str
) -> None:
    assert run(command(material, tmp_path / "out", "--runner", "local"), store).returncode == 0
    treasure = tmp_path / "treasure.txt"
    treasure.write_text("keep me")
    folder = find_manifests(tmp_path / "out")[0]
    path = folder / "_manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["file"] = str(treasure)
    path.write_text(json.dumps(content))
    before = part_bytes(tmp_path / "out")
    assert main(["verify", str(tmp_path / "out")]) == 3
    repair = ["verify", str(tmp_path / "out"), "--repair", "--runner", "local"]
    assert main([*repair, "--tracking-uri", store]) == 0
    assert treasure.read_text() == "keep me"
    assert part_bytes(tmp_path / "out") == before
