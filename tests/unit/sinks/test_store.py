"""Parts and manifests: whole or absent, first writer wins, every damage found."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from toy import ToyDataset, linear, toy_model

from raybench.core.errors import StoreError
from raybench.core.plan import Measurement, cut_shards, part_name
from raybench.core.work import Receipt, Task
from raybench.evaluations.lime import LimeEvaluation
from raybench.sinks.parts import commit_part, hash_file, inspect_part
from raybench.sinks.store import (
    adopt,
    load_rows,
    new_manifest,
    read_manifest,
    save_manifest,
    verify,
    with_receipts,
)

DATA = ToyDataset(7, broken=["toy/3"])
MODEL = toy_model(linear())
GRID = LimeEvaluation(reading="grid", samples=40, cells=2, fill="mean", design="bernoulli")
MEASUREMENT = Measurement(model=MODEL.info, dataset=DATA.info, evaluation=GRID, seed=0)
SHARDS = cut_shards(DATA.ids, 3)


def rows_of(index: int) -> pa.RecordBatch:
    return GRID(MODEL, DATA.read(SHARDS[index].ids), seed=0, batch_size=16)


def name_of(index: int) -> str:
    return part_name(MEASUREMENT.key, SHARDS[index])


def commit(folder: Path, index: int):
    # Shard 1 holds the unreadable image; the worker restores shard order, here by hand.
    rows = rows_of(index)
    ids = rows.column("sample_id").to_pylist()
    order = [ids.index(sample_id) for sample_id in SHARDS[index].ids]
    return commit_part(folder, name_of(index), rows.take(pa.array(order)), {"shard": index})


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    folder = tmp_path / MEASUREMENT.folder
    receipts = []
    for index in range(3):
        part = commit(folder, index)
        receipts.append(
            Receipt(
                task=Task(0, index, "m"),
                file=part.file,
                sha256=part.sha256,
                size=part.size,
                rows=part.rows,
                errors=part.errors,
                queries=120,
                seconds=0.5,
            )
        )
    manifest = with_receipts(new_manifest(MEASUREMENT, SHARDS, 3, {"torch": "x"}), receipts)
    save_manifest(folder, manifest)
    return folder


def test_a_part_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = commit(tmp_path / "a", 0), commit(tmp_path / "b", 0)
    assert first == second
    assert hash_file(tmp_path / "a" / first.file) == first.sha256


def test_first_writer_wins_and_leaves_no_litter(tmp_path: Path) -> None:
    first = commit(tmp_path, 0)
    stamp = (tmp_path / first.file).stat().st_mtime_ns
    late = commit_part(tmp_path, first.file, rows_of(2), {})
    assert late.rows == first.rows == 3
    assert late.sha256 == first.sha256
    assert (tmp_path / first.file).stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == [first.file]


def _race(folder: Path) -> None:
    commit(folder, 0)


def test_racing_writers_commit_one_part(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_race, args=(tmp_path,)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == [name_of(0)]
    assert inspect_part(tmp_path / name_of(0)).rows == 3


def test_a_writer_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space"):
        commit(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_manifest_round_trips_and_rows_come_in_shard_order(stored: Path) -> None:
    manifest = read_manifest(stored)
    assert manifest.complete
    assert manifest.measurement["key"] == MEASUREMENT.key
    table = load_rows(stored, manifest)
    assert table.column("sample_id").to_pylist() == list(DATA.ids)
    assert table.column("status").to_pylist().count("error") == 1
    assert sum(part["errors"] for part in manifest.parts.values()) == 1
    assert verify(stored, manifest) == []


def test_incomplete_measurements_are_not_readable_as_a_whole(stored: Path) -> None:
    manifest = read_manifest(stored)
    parts = {name: part for name, part in manifest.parts.items() if name != name_of(1)}
    with pytest.raises(StoreError, match="1 of 3 shards are missing"):
        load_rows(stored, replace(manifest, parts=parts))


@pytest.mark.parametrize("position", [4, 200, -200, -5])
def test_one_flipped_byte_is_found(stored: Path, position: int) -> None:
    path = stored / name_of(1)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    [finding] = verify(stored, read_manifest(stored))
    assert (finding.shard, finding.file) == (1, name_of(1))
    assert "sha256" in finding.problem


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_truncated_part_is_found_and_not_adopted(stored: Path, keep: int) -> None:
    path = stored / name_of(2)
    path.write_bytes(path.read_bytes()[:keep])
    manifest = read_manifest(stored)
    assert [finding.shard for finding in verify(stored, manifest)] == [2]
    mended, notes = adopt(stored, manifest)
    assert [shard.index for shard in mended.missing] == [2]
    assert len(notes) == 1
    assert "computed again" in notes[0]
    assert not path.exists()


@pytest.mark.parametrize("position", [4, 200, -200, -5])
def test_one_flipped_byte_is_not_adopted(stored: Path, position: int) -> None:
    path = stored / name_of(1)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    mended, notes = adopt(stored, read_manifest(stored))
    assert [shard.index for shard in mended.missing] == [1]
    assert notes == [f"{name_of(1)} differs from its manifest; it will be computed again"]
    assert not path.exists()


def test_a_part_of_other_samples_is_found(stored: Path) -> None:
    (stored / name_of(1)).unlink()
    other = cut_shards(tuple(f"toy/{index}" for index in (4, 3, 5)), 3)[0]
    rows = GRID(MODEL, DATA.read(other.ids), seed=0, batch_size=16)
    commit_part(stored, name_of(1), rows, {})
    fresh = new_manifest(MEASUREMENT, SHARDS, 3, {})
    mended, notes = adopt(stored, fresh)
    assert [shard.index for shard in mended.missing] == [1]
    assert "other samples" in notes[0]


def test_parts_a_dead_driver_did_not_list_are_adopted(stored: Path) -> None:
    fresh = new_manifest(MEASUREMENT, SHARDS, 3, {})
    mended, notes = adopt(stored, fresh)
    assert mended.complete
    assert notes == []
    assert {name: part["sha256"] for name, part in mended.parts.items()} == {
        name: part["sha256"] for name, part in read_manifest(stored).parts.items()
    }


def test_a_part_that_has_gone_is_missing_again(stored: Path) -> None:
    (stored / name_of(0)).unlink()
    mended, notes = adopt(stored, read_manifest(stored))
    assert [shard.index for shard in mended.missing] == [0]
    assert "has gone" in notes[0]


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 1}', b"[]", b'{"schema": 2}'])
def test_damaged_manifests_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match="_manifest"):
        read_manifest(tmp_path)


def test_keys_tell_every_setting_apart() -> None:
    keys = {
        replace(MEASUREMENT, seed=1).key,
        replace(MEASUREMENT, evaluation=replace(GRID, samples=41)).key,
        replace(MEASUREMENT, evaluation=replace(GRID, fill="0.0")).key,
        replace(MEASUREMENT, model=replace(MODEL.info, fingerprint="f" * 64)).key,
        replace(MEASUREMENT, dataset=replace(DATA.info, fingerprint="e" * 64)).key,
        MEASUREMENT.key,
    }
    assert len(keys) == 6
    assert part_name("a", SHARDS[0]) != part_name("b", SHARDS[0])
    assert part_name("a", SHARDS[0]) != part_name("a", cut_shards(DATA.ids, 2)[0])


def test_plain_readers_see_one_dataset_with_its_partitions(stored: Path, tmp_path: Path) -> None:
    [root] = (tmp_path / "rows").iterdir()
    table = ds.dataset(root, partitioning="hive").to_table()
    assert table.num_rows == 7
    assert {"dataset", "model", "measurement"} <= set(table.column_names)
    found = duckdb.sql(
        f"select count(*), avg(score) from read_parquet('{root}/**/*.parquet',"
        " hive_partitioning = true) where status = 'ok' and dataset like 'toy-%'"
    ).fetchall()
    mean = pc.mean(table.column("score")).as_py()
    assert found == [(6, pytest.approx(mean))]


def test_weights_are_stored_as_byte_streams_and_footers_say_what_they_are(stored: Path) -> None:
    file = pq.ParquetFile(stored / name_of(0))
    group = file.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    weights = next(column for path, column in columns.items() if path.startswith("weights"))
    assert "BYTE_STREAM_SPLIT" in weights.encodings
    assert weights.compression == "ZSTD"
    assert b"raybench" in file.schema_arrow.metadata
    file.close()
