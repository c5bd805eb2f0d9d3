"""From stored parts to table rows: whose flip radius, whose queries, whose name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from toy import ToyDataset, ToyModel, linear, toy_model

from raybench.core.plan import Evaluation, Measurement, cut_shards, part_name
from raybench.core.types import Access
from raybench.core.work import Receipt, Task
from raybench.evaluations.radius import RadiusEvaluation
from raybench.evaluations.readings import parse_reading
from raybench.reports.stored import distinct_names
from raybench.reports.summary import load_tables
from raybench.reports.tables import as_json
from raybench.sinks.parts import commit_part
from raybench.sinks.store import MANIFEST, new_manifest, read_manifest, save_manifest, with_receipts

DATA = ToyDataset(5)
GRID = parse_reading("grid", samples=64, shape=DATA.shape)
RADIUS = RadiusEvaluation(samples=64)


def store(out: Path, model: ToyModel, evaluation: Evaluation, data: ToyDataset = DATA) -> Path:
    """Store what `evaluation` finds of `model`, in shards of three, and return the folder."""
    measurement = Measurement(model=model.info, dataset=data.info, evaluation=evaluation, seed=0)
    shards, folder = cut_shards(data.ids, 3), out / measurement.folder
    receipts = []
    for shard in shards:
        batch = data.read(shard.ids)
        rows = evaluation(model, batch, seed=0, batch_size=64)
        rows = rows.take(pa.array([rows["sample_id"].to_pylist().index(one) for one in shard.ids]))
        metadata = {"measurement": measurement.describe(), "shard": shard.index}
        part = commit_part(folder, part_name(measurement.key, shard), rows, metadata)
        receipts.append(
            Receipt(
                task=Task(0, shard.index, "m"),
                file=part.file,
                sha256=part.sha256,
                size=part.size,
                rows=part.rows,
                errors=part.errors,
                queries=evaluation.queries(len(batch.ids)),
                seconds=1.0,
            )
        )
    save_manifest(folder, with_receipts(new_manifest(measurement, shards, 3, {}), receipts))
    return folder


def seen_through(access: Access, function: Callable, name: str = "lin") -> ToyModel:
    return toy_model(function, access=access, name=name)


def test_a_model_seen_through_two_access_levels_keeps_two_flip_radii(tmp_path: Path) -> None:
    # The same fingerprint; the answers differ so that a mix-up shows.
    levels = {Access.SCORES: linear(scale=1.0), Access.LOGITS: linear(scale=1.0, seed=3)}
    for access, function in levels.items():
        for evaluation in (GRID, RADIUS):
            store(tmp_path, seen_through(access, function), evaluation)
    tables = {table.reading.partition("?")[0]: table for table in load_tables(tmp_path)}
    assert not tables["flip-radius"].shown
    own = {row.model.name: row.score for row in tables["flip-radius"].rows}
    found = {row.model.name: row.normalised for row in tables["grid"].rows}
    assert set(found) == {"lin (scores)", "lin (logits)"}
    assert found == own
    assert len(set(own.values())) == 2


def test_a_flip_radius_at_another_access_level_does_not_stand_in(tmp_path: Path) -> None:
    store(tmp_path, seen_through(Access.LOGITS, linear()), GRID)
    store(tmp_path, seen_through(Access.SCORES, linear()), RADIUS)
    table = next(table for table in load_tables(tmp_path) if table.reading.startswith("grid"))
    [row] = table.rows
    assert (row.normalised, row.normalised_queries, table.rank_by) == (None, None, "score")


def test_names_tell_apart_by_what_differs() -> None:
    def one(name: str, fingerprint: str, access: str, key: str) -> dict:
        model = {"name": name, "fingerprint": fingerprint * 8, "access": access}
        return {"model": model, "key": key * 8}

    assert distinct_names([one("a", "1", "scores", "k"), one("b", "1", "scores", "l")]) == [
        "a",
        "b",
    ]
    by_access = [one("a", "1", "scores", "k"), one("b", "2", "scores", "m")]
    by_access.append(one("a", "1", "logits", "l"))
    assert distinct_names(by_access) == ["a (scores)", "b", "a (logits)"]
    by_model = [one("a", "1", "scores", "k"), one("a", "2", "logits", "l")]
    assert distinct_names(by_model) == ["a@11111111-kkkk", "a@22222222-llll"]
    mixed = [*by_model, one("a", "1", "logits", "m")]
    assert len(set(distinct_names(mixed))) == 3
    assert all("@" in name for name in distinct_names(mixed))


def test_queries_are_those_made_and_the_flip_radius_comes_on_top(tmp_path: Path) -> None:
    models = {evaluation: toy_model(linear(), name="lin") for evaluation in (GRID, RADIUS)}
    for evaluation, model in models.items():
        store(tmp_path, model, evaluation)
    table, radius = load_tables(tmp_path)
    [row] = table.rows
    assert row.queries == models[GRID].calls == 5 * 64
    # Two shards, each filled up to sixteen images.
    assert row.normalised_queries == radius.rows[0].queries == models[RADIUS].calls
    assert models[RADIUS].calls > 5 * 64
    assert radius.rows[0].normalised_queries is None
    [flat] = as_json(table)["models"]
    assert (flat["queries"], flat["normalised_queries"]) == (row.queries, row.normalised_queries)


def test_images_that_answered_nonsense_were_asked_about(tmp_path: Path) -> None:
    def nan(images):
        return linear()(images) * float("nan")

    data = ToyDataset(5, broken=["toy/4"])
    model = toy_model(nan)
    store(tmp_path, toy_model(linear(), name="fine"), GRID, data)
    folder = store(tmp_path, model, GRID, data)
    assert sum(part["queries"] for part in read_manifest(folder).parts.values()) == model.calls
    [table] = load_tables(tmp_path)
    status = {row.model.name: row.status for row in table.rows}
    assert status == {"fine": "complete", "toy": "failed"}
    assert {row.model.name: row.queries for row in table.rows}["fine"] == 4 * 64


def test_a_part_whose_count_is_lost_counts_its_scored_images(tmp_path: Path) -> None:
    folder = store(tmp_path, toy_model(linear()), RADIUS)
    manifest = read_manifest(folder)
    first, second = manifest.parts
    lost = {**manifest.parts, first: manifest.parts[first] | {"queries": None}}
    save_manifest(folder, replace(manifest, parts=lost))
    [table] = load_tables(tmp_path)
    assert table.rows[0].queries == 3 * 64 + manifest.parts[second]["queries"]


@pytest.mark.parametrize("rank_by", ["normalised", "score", "matched"])
def test_label_only_models_and_those_without_a_scored_image_warn_of_nothing(
    tmp_path: Path, rank_by: str
) -> None:
    # Warnings are errors here: an empty mean must not leak.
    onehot = parse_reading("grid?target=onehot", samples=64, shape=DATA.shape)
    store(tmp_path, toy_model(linear(), access=Access.LABELS, name="labels"), onehot)
    store(tmp_path, toy_model(lambda x: linear()(x) * float("nan"), name="nothing"), GRID)
    tables = {table.rows[0].model.name: table for table in load_tables(tmp_path, rank_by=rank_by)}
    assert tables["labels"].rows[0].status == "complete"
    assert tables["labels"].rows[0].matched is None
    assert tables["nothing"].rows[0].status == "failed"


def test_a_measurement_without_its_manifest_stays_in_the_table(tmp_path: Path) -> None:
    folder = store(tmp_path, toy_model(linear(), name="lost"), GRID)
    store(tmp_path, toy_model(linear(seed=1), name="kept"), GRID)
    (folder / MANIFEST).unlink()
    [table] = load_tables(tmp_path)
    rows = {row.model.name: row for row in table.rows}
    assert (rows["kept"].status, rows["lost"].status) == ("complete", "incomplete")
    assert "verify --repair" in str(rows["lost"].error)
    json.dumps(as_json(table), allow_nan=False)
