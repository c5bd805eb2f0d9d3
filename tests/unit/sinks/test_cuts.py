"""One cut of a measurement in its folder, whatever is asked for and whatever is lost."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from toy import ToyDataset, linear, toy_model

from raybench.core.errors import StoreError
from raybench.core.plan import Measurement, cut_shards, part_name
from raybench.evaluations.lime import LimeEvaluation
from raybench.sinks.cuts import open_manifest
from raybench.sinks.parts import commit_part, read_footer
from raybench.sinks.store import (
    MANIFEST,
    describe_folder,
    find_folders,
    find_manifests,
    read_manifest,
    save_manifest,
    verify,
)

DATA = ToyDataset(7)
MODEL = toy_model(linear())
GRID = LimeEvaluation(reading="grid", samples=40, cells=2, fill="mean", design="bernoulli")
MEASUREMENT = Measurement(model=MODEL.info, dataset=DATA.info, evaluation=GRID, seed=0)


def commit(folder: Path, size: int, *indices: int) -> list[str]:
    """Commit shards of `size` images, all or those of `indices`, and return their names."""
    names = []
    for shard in cut_shards(DATA.ids, size):
        if not indices or shard.index in indices:
            rows = GRID(MODEL, DATA.read(shard.ids), seed=0, batch_size=40)
            metadata = {"measurement": MEASUREMENT.describe(), "shard": shard.index}
            names.append(part_name(MEASUREMENT.key, shard))
            commit_part(folder, names[-1], rows, metadata)
    return names


def reopen(folder: Path, size: int, *, resume: bool = True) -> tuple[int, int, list[str]]:
    """Return the shard size kept, the shards missing, and the notes; the manifest is saved."""
    manifest, notes = open_manifest(folder, MEASUREMENT, DATA.ids, size, resume=resume)
    save_manifest(folder, manifest)
    return manifest.shard_size, len(manifest.missing), notes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / MEASUREMENT.folder
    folder.mkdir(parents=True)
    return folder


def rows_seen(folder: Path) -> int:
    return int(ds.dataset(folder).count_rows())


def test_an_empty_folder_takes_the_size_asked_for(folder: Path) -> None:
    assert reopen(folder, 3) == (3, 3, [])
    # A manifest without parts binds nobody.
    assert reopen(folder, 2) == (2, 4, [])


@pytest.mark.parametrize("indices", [(), (1,), (0, 2)])
@pytest.mark.parametrize("lost", [False, True])
def test_stored_parts_keep_their_cut(folder: Path, indices: tuple[int, ...], lost: bool) -> None:
    names = commit(folder, 3, *indices)
    if not lost:
        reopen(folder, 3)
    size, missing, notes = reopen(folder, 2)
    assert (size, missing) == (3, 3 - len(names))
    assert notes == ["keeping shard size 3 of the stored results; --fresh starts anew"]
    assert {path.name for path in folder.glob("part-*")} == set(names)


def test_the_last_shard_alone_is_known_by_the_manifest(folder: Path) -> None:
    reopen(folder, 3)
    commit(folder, 3, 2)  # a single image
    assert reopen(folder, 2)[:2] == (3, 2)


def test_fresh_removes_every_cut(folder: Path) -> None:
    commit(folder, 3)
    commit(folder, 2, 1)
    assert reopen(folder, 4, resume=False) == (4, 2, [])
    assert list(folder.glob("part-*")) == []


@pytest.mark.parametrize(("asked", "kept"), [(3, 3), (2, 3), (5, 3)])
def test_of_two_cuts_that_with_most_rows_is_kept(folder: Path, asked: int, kept: int) -> None:
    commit(folder, 2, 0)
    commit(folder, 3, 0, 1)
    size, missing, notes = reopen(folder, asked)
    assert (size, missing) == (kept, 1)
    assert notes[-1] == "1 parts of another shard size are removed"
    assert rows_seen(folder) == 6


def test_a_result_that_an_older_raybench_overwrote_is_whole_again(folder: Path) -> None:
    commit(folder, 3)
    reopen(folder, 3)
    # What `plan` with another size used to leave: its manifest, its pilot, and all the old parts.
    cut = cut_shards(DATA.ids, 2)
    manifest = read_manifest(folder)
    commit(folder, 2, 0)
    shards = tuple(
        replace(manifest.shards[0], index=s.index, file=part_name(MEASUREMENT.key, s)) for s in cut
    )
    save_manifest(folder, replace(manifest, shard_size=2, shards=shards, parts={}))
    assert [finding.shard for finding in verify(folder, read_manifest(folder))] == [0, 1, 2]
    assert reopen(folder, 2)[:2] == (3, 0)
    assert rows_seen(folder) == 7
    assert verify(folder, read_manifest(folder)) == []


def test_what_runs_compared_is_kept(folder: Path) -> None:
    reopen(folder, 3)
    told = {"baseline": "x", "twins": False, "run": "2026-01-02T03:04:05.678901+00:00"}
    save_manifest(folder, replace(read_manifest(folder), **told))
    reopen(folder, 3)
    found = read_manifest(folder)
    assert (found.baseline, found.twins, found.run) == tuple(told.values())
    # A manifest of before there was a time is read as one without.
    content = json.loads((folder / MANIFEST).read_text())
    del content["run"]
    (folder / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(folder).run == ""


@pytest.mark.parametrize("damage", [None, b"{", b""])
def test_folders_say_what_they_are_without_a_manifest(
    tmp_path: Path, folder: Path, damage: bytes | None
) -> None:
    commit(folder, 3)
    if damage is not None:
        (folder / MANIFEST).write_bytes(damage)
    assert find_folders(tmp_path) == [folder]
    assert len(find_manifests(tmp_path)) == (damage is not None)
    assert describe_folder(folder) == json.loads(json.dumps(MEASUREMENT.describe()))
    first = min(folder.glob("part-*"))
    first.write_bytes(first.read_bytes()[:50])
    assert describe_folder(folder)["key"] == MEASUREMENT.key
    with pytest.raises(StoreError, match="cannot be read"):
        read_footer(first)


def test_a_part_in_the_wrong_folder_describes_nothing(tmp_path: Path, folder: Path) -> None:
    commit(folder, 3)
    wrong = folder.with_name("measurement=0123456789abcdef")
    folder.rename(wrong)
    assert find_folders(tmp_path) == [wrong]
    with pytest.raises(StoreError, match="no part beside it says"):
        describe_folder(wrong)


def test_a_folder_without_parts_or_manifest_holds_nothing(tmp_path: Path, folder: Path) -> None:
    (folder / "part-of-something-else.parquet").write_bytes(b"")
    assert find_folders(tmp_path) == []
