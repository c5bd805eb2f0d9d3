"""Whole scoring runs on Ray: killed at any point and run again, the tables are the same bytes."""

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from score_material import (
    REPOSITORY,
    Material,
    command,
    headline,
    make_material,
    part_bytes,
    run,
    stored_tables,
)

from raybench.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500), pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    # 24 shards of about a third of a second each: time enough to kill something in the middle.
    return make_material(tmp_path_factory.mktemp("material"), rounds=60)


@pytest.fixture(scope="module")
def undisturbed(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert main(command(material, out, "--runner", "local", "--quiet")[3:]) == 0
    return out


@pytest.fixture(scope="module")
def joined() -> dict[str, str]:
    """Environment of a child process that joins the session's cluster."""
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def start(arguments: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | env,
    )


def wait_for(what: Callable[[], bool], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def parts(out: Path) -> int:
    return len(list(out.rglob("part-*.parquet")))


def statuses(out: Path) -> set[str]:
    with sqlite3.connect(out / "mlflow.db") as database:
        return {row[0] for row in database.execute("select status from runs")}


def finish_and_compare(material: Material, out: Path, undisturbed: Path) -> None:
    """Run again, in this process: starting one more takes 10 s and shows nothing more."""
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(command(material, out, "--json", "--quiet")[3:]) == 0
    assert part_bytes(out) == part_bytes(undisturbed)
    assert stored_tables(out) == stored_tables(undisturbed)
    # What was committed before the kill was not computed again.
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(out.rglob("*.tmp"))
    assert statuses(out) == {"FINISHED"}
    assert len(json.loads(printed.getvalue())["models"]) == 2


@pytest.mark.parametrize("actors", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_any_number_of_actors_gives_the_same_bytes(
    material: Material, undisturbed: Path, tmp_path: Path, actors: str
) -> None:
    assert main(command(material, tmp_path, "--actors", actors, "--quiet")[3:]) == 0
    assert part_bytes(tmp_path) == part_bytes(undisturbed)


def test_sigterm_stops_within_ten_seconds_and_can_be_resumed(
    material: Material, undisturbed: Path, tmp_path: Path, joined: dict[str, str]
) -> None:
    child = start(command(material, tmp_path), joined)
    try:
        wait_for(lambda: parts(tmp_path) >= 3)
        asked = time.monotonic()
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
        took = time.monotonic() - asked
    finally:
        child.kill()
    assert child.returncode == 143, err
    assert took < 10
    assert 3 <= parts(tmp_path) < 24
    assert statuses(tmp_path) == {"KILLED"}
    finish_and_compare(material, tmp_path, undisturbed)


@pytest.mark.slow
def test_ctrl_c_ends_with_130(material: Material, tmp_path: Path, joined: dict[str, str]) -> None:
    child = start(command(material, tmp_path), joined)
    try:
        wait_for(lambda: parts(tmp_path) >= 2)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, err
    assert "run the same command again" in err


def test_a_driver_killed_at_once_loses_nothing(
    material: Material, undisturbed: Path, tmp_path: Path, joined: dict[str, str]
) -> None:
    child = start(command(material, tmp_path), joined)
    try:
        wait_for(lambda: parts(tmp_path) >= 4)
    finally:
        child.kill()
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    # Ray ends the orphaned actors; one may still commit the shard it holds.
    time.sleep(2)
    finish_and_compare(material, tmp_path, undisturbed)


@pytest.mark.slow
def test_a_killed_actor_is_replaced(
    material: Material, undisturbed: Path, tmp_path: Path, joined: dict[str, str]
) -> None:
    before = workers()
    child = start(command(material, tmp_path), joined)
    try:
        wait_for(lambda: parts(tmp_path) >= 3)
        victims = workers() - before
        assert victims
        os.kill(sorted(victims)[0], signal.SIGKILL)
        _, err = child.communicate(timeout=250)
    finally:
        child.kill()
    assert child.returncode == 0, err
    assert "worker-lost" in err
    assert part_bytes(tmp_path) == part_bytes(undisturbed)


def workers() -> set[int]:
    """Return the processes of actors at work."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if b"ray::_Actor" in line:
            found.add(int(path.parent.name))
    return found


@pytest.mark.slow
def test_a_shard_that_always_fails_is_named_and_the_rest_is_scored(
    tmp_path: Path, joined: dict[str, str]
) -> None:
    """The second network is swapped on disk after planning: its shards fail, each three times."""
    swapped = make_material(tmp_path / "swap", images=6, rounds=60)
    out = tmp_path / "out"
    child = start(command(swapped, out, "--actors", "1", "--json"), joined)
    try:
        wait_for(lambda: parts(out) >= 1)
        (swapped.folder / "second.pt").write_bytes((swapped.folder / "first.pt").read_bytes())
        text, err = child.communicate(timeout=250)
    finally:
        child.kill()
    assert child.returncode == 3, err
    rows = {row["model"]: row for row in json.loads(text)["models"]}
    assert {row["status"] for row in rows.values()} == {"complete", "failed"}
    [failed] = [row for row in rows.values() if row["status"] == "failed"]
    assert "has changed since the run was planned" in failed["error"]
    assert err.count("failed:") >= 3
    assert statuses(out) == {"FINISHED", "FAILED"}


@pytest.mark.slow
def test_headline_does_not_depend_on_the_engine(
    material: Material, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(undisturbed), "--json"]) == 0
    expected = headline(capsys.readouterr().out)
    assert main(command(material, tmp_path, "--json", "--quiet")[3:]) == 0
    assert headline(capsys.readouterr().out) == expected


@pytest.mark.slow
def test_relative_paths_mean_the_folder_the_run_was_started_in(
    material: Material, tmp_path: Path, joined: dict[str, str]
) -> None:
    """The cluster's processes were started in another folder."""
    near = Material(
        material.folder,
        tuple(spec.replace(f"{material.folder}/", "") for spec in material.models),
        material.data.replace(f"{material.folder}/", ""),
    )
    assert str(material.folder) not in " ".join([*near.models, near.data])
    result = run(command(near, tmp_path, "--n", "4"), cwd=material.folder, **joined)
    assert result.returncode == 0, result.stderr
