"""What later commands make of results that are there: other cuts, lost manifests, repairs."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from score_material import Material, command, make_material, part_bytes

from raybench import publish
from raybench.cli import main
from raybench.core.results import ScoreTable
from raybench.sinks.store import find_manifests, read_manifest

# Nothing listens there: the run goes on without MLflow, whose database takes seconds to make.
NO_TRACKING = ("--tracking-uri", "http://127.0.0.1:1")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"), images=12)


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the reports out: drawing them takes longer than all the rest."""

    def write_nothing(out: Path, tables: Sequence[ScoreTable], dataset: object) -> dict:
        return {publish.table_key(table): [] for table in tables}

    monkeypatch.setattr(publish, "write_reports", write_nothing)


def ask(material: Material, out: Path, *more: str, verb: str = "score", size: int = 2) -> int:
    """Run `verb` over the material with shards of `size` images and return the exit code."""
    arguments = command(material, out, "--runner", "local", *NO_TRACKING, *more)[4:]
    arguments[arguments.index("--shard-size") + 1] = str(size)
    return main([verb, *arguments])


def one_model(material: Material, index: int) -> Material:
    return Material(material.folder, (material.models[index],), material.data)


def repair(out: Path) -> int:
    return main(["verify", str(out), "--repair", "--runner", "local", *NO_TRACKING])


def gains(out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, float | None]:
    """Return the R.I. that `show` prints of each model."""
    capsys.readouterr()
    assert main(["show", str(out), "--json"]) == 0
    return {row["model"]: row["ri"] for row in json.loads(capsys.readouterr().out)["models"]}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def stamps(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}


def rows_seen(out: Path) -> int:
    """Return how many rows a plain reader finds."""
    [root] = (out / "rows").iterdir()
    return int(ds.dataset(root, partitioning="hive").count_rows())


@pytest.mark.parametrize("verb", ["plan", "score"])
def test_another_shard_size_keeps_the_stored_cut_and_says_so(
    material: Material, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(material, tmp_path) == 0
    before, written = part_bytes(tmp_path), stamps(tmp_path)
    capsys.readouterr()
    assert ask(material, tmp_path, verb=verb, size=5) == 0
    error = capsys.readouterr().err
    assert "first: keeping shard size 2 of the stored results; --fresh starts anew" in error
    assert (part_bytes(tmp_path), stamps(tmp_path)) == (before, written)
    assert main(["verify", str(tmp_path)]) == 0
    assert rows_seen(tmp_path) == 24
    # What is missing is computed in the same cut, to the same bytes.
    for path in sorted(written)[2:9:3]:
        path.unlink()
    assert ask(material, tmp_path, size=5) == 0
    assert part_bytes(tmp_path) == before
    # A model that has nothing stored yet takes the size asked for; --fresh gives it to all.
    assert ask(material, tmp_path, "--fresh", verb="score", size=5) == 0
    assert len(part_bytes(tmp_path)) == 2 * 3
    assert rows_seen(tmp_path) == 24
    assert [read_manifest(folder).shard_size for folder in find_manifests(tmp_path)] == [5, 5]


def test_measurements_of_one_job_may_be_cut_each_their_own_way(
    material: Material, tmp_path: Path
) -> None:
    assert ask(one_model(material, 0), tmp_path, size=5) == 0
    assert ask(material, tmp_path, size=4) == 0
    assert [read_manifest(folder).shard_size for folder in find_manifests(tmp_path)] == [5, 4]
    assert main(["verify", str(tmp_path)]) == 0
    assert rows_seen(tmp_path) == 24


def test_a_run_stopped_before_its_manifest_lists_a_part_keeps_its_cut(
    material: Material, tmp_path: Path
) -> None:
    assert ask(material, tmp_path) == 0
    before = part_bytes(tmp_path)
    for folder in find_manifests(tmp_path):
        path = folder / "_manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"parts": {}}))
    assert ask(material, tmp_path, size=5) == 0
    assert part_bytes(tmp_path) == before


def test_a_flipped_byte_of_a_part_is_computed_again_by_the_same_command(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(material, tmp_path) == 0
    before, written = part_bytes(tmp_path), stamps(tmp_path)
    victim = sorted(written)[4]
    flip(victim)
    capsys.readouterr()
    assert ask(material, tmp_path) == 0
    assert f"{victim.name} differs from its manifest; it will be computed again" in (
        capsys.readouterr().err
    )
    assert part_bytes(tmp_path) == before
    changed = [path for path, stamp in stamps(tmp_path).items() if stamp != written[path]]
    assert changed == [victim]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_repair_keeps_what_models_are_compared_with(
    material: Material, tmp_path: Path, victim: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(material, tmp_path, "--baseline", "second") == 0
    before = gains(tmp_path, capsys)
    assert before["second"] is None
    folder = find_manifests(tmp_path)[victim]
    known = read_manifest(folder)
    flip(folder / known.shards[1].file)
    assert repair(tmp_path) == 0
    mended = read_manifest(folder)
    assert (mended.baseline, mended.twins, mended.run) == ("second", False, known.run)
    assert gains(tmp_path, capsys) == before


def test_a_plan_keeps_what_models_are_compared_with(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(material, tmp_path, "--baseline", "second") == 0
    before = gains(tmp_path, capsys)
    assert ask(material, tmp_path, verb="plan") == 0
    assert gains(tmp_path, capsys) == before


@pytest.mark.parametrize("latest", [0, 1])
def test_models_are_compared_as_the_latest_run_did(
    material: Material, tmp_path: Path, latest: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("first", "second")
    assert ask(material, tmp_path, "--baseline", names[1 - latest]) == 0
    assert gains(tmp_path, capsys)[names[1 - latest]] is None
    assert ask(one_model(material, latest), tmp_path, "--baseline", names[latest]) == 0
    found = gains(tmp_path, capsys)
    assert found[names[latest]] is None
    assert found[names[1 - latest]] is not None


@pytest.mark.parametrize("damage", ["absent", "truncated"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_manifest_is_found_shown_and_made_anew_from_the_parts(
    material: Material,
    tmp_path: Path,
    damage: str,
    victim: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask(material, tmp_path, "--baseline", "second", size=5) == 0
    before, written, told = part_bytes(tmp_path), stamps(tmp_path), gains(tmp_path, capsys)
    folders = find_manifests(tmp_path)
    path = folders[victim] / "_manifest.json"
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert main(["verify", str(tmp_path), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    found = {entry["folder"]: entry["problem"] for entry in report["measurements"]}
    assert list(found) == [str(folder) for folder in folders]
    assert [problem is None for problem in found.values()] == [index != victim for index in (0, 1)]
    assert main(["verify", str(tmp_path)]) == 3
    assert "_manifest.json" in capsys.readouterr().out

    assert main(["show", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert "_manifest.json" in shown.err
    rows = {row["model"]: row for row in json.loads(shown.out)["models"]}
    assert [row["status"] for _, row in sorted(rows.items())] == [
        "incomplete" if index == victim else "complete" for index in (0, 1)
    ]

    assert repair(tmp_path) == 0
    assert (part_bytes(tmp_path), stamps(tmp_path)) == (before, written)
    assert [read_manifest(folder).shard_size for folder in folders] == [5, 5]
    if victim == 0:  # the baseline is known to the other model's manifest
        assert gains(tmp_path, capsys) == told


def test_parts_that_do_not_say_what_they_are_wait_for_the_run(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(material, tmp_path) == 0
    before = part_bytes(tmp_path)
    folder = find_manifests(tmp_path)[0]
    (folder / "_manifest.json").unlink()
    for path in folder.glob("part-*.parquet"):
        path.write_bytes(b"nothing")
    capsys.readouterr()
    assert repair(tmp_path) == 3
    assert "give the command that wrote it once more" in capsys.readouterr().err
    assert main(["show", str(tmp_path), "--json"]) == 0
    assert "no manifest at" in capsys.readouterr().err
    assert ask(material, tmp_path) == 0
    assert part_bytes(tmp_path) == before


def test_parts_of_another_cut_are_found_and_repaired(
    material: Material, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("out", 2), ("other", 5)):
        assert ask(material, tmp_path / name, size=size) == 0
    before = part_bytes(tmp_path / "out")
    for path in list((tmp_path / "other").rglob("part-000001-*.parquet")):
        copy = tmp_path / "out" / path.relative_to(tmp_path / "other")
        copy.write_bytes(path.read_bytes())
    assert rows_seen(tmp_path / "out") == 24 + 2 * 5
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out")]) == 3
    assert "none of the manifest's shards" in capsys.readouterr().out
    assert repair(tmp_path / "out") == 0
    assert part_bytes(tmp_path / "out") == before
    assert rows_seen(tmp_path / "out") == 24
