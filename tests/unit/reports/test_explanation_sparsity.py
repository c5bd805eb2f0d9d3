"""The sparsity in reports is that of the stored weights, over the images that were scored."""

import json
from pathlib import Path

import numpy as np
import pytest
from stored_scores import store_scores
from toy import ToyDataset, linear, toy_model

from raybench.evaluations.readings import parse_reading
from raybench.kernels.segments import grid_segments
from raybench.metrics.sparsity import area_fractions, gini, hoyer, mask_values
from raybench.publish import publish_scores
from raybench.reports.sparsity import explanation_sparsity, sparsity_json, sparsity_markdown
from raybench.reports.summary import load_tables
from raybench.sinks.store import (
    load_rows,
    read_manifest,
)

# Four cells along nine pixels are of two sizes, so that area and number of segments differ.
DATA = ToyDataset(6, shape=(1, 9, 9), broken=["toy/5"])


def store(out: Path, name: str, text: str, seed: int) -> Path:
    model = toy_model(linear(DATA.shape, scale=0.2, seed=seed), shape=DATA.shape, name=name)
    return store_scores(out, model, parse_reading(text, samples=64, shape=DATA.shape), DATA)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("grid?cells=4", "area"),
        ("superpixel?kernel_size=1&force=true", "segments"),
    ],
)
def test_means_are_those_of_the_stored_weights(tmp_path: Path, text: str, unit: str) -> None:
    folders = {name: store(tmp_path, name, text, seed) for seed, name in enumerate("ab")}
    [table] = load_tables(tmp_path)
    found = explanation_sparsity(tmp_path, table)
    assert [one.model for one in found] == [row.model.name for row in table.rows]
    for one in found:
        rows = load_rows(folders[one.model], read_manifest(folders[one.model])).to_pylist()
        weights = [np.array(row["weights"]) for row in rows if row["status"] == "ok"]
        assert len(weights) == 5
        for suffix, relative in (("", None), ("_relative", 0.05)):
            masks = [mask_values(each, relative=relative) for each in weights]
            places = [
                grid_segments(9, 9, 4).numpy() if unit == "area" else np.arange(len(mask))
                for mask in masks
            ]
            shares = np.array(list(map(area_fractions, masks, places)))
            for index, sign in enumerate(("negative", "zero", "positive")):
                mean, low, high = one.statistics[f"{sign}{suffix}"]
                assert mean == pytest.approx(shares[:, index].mean())
                assert low <= mean <= high
        assert one.statistics["gini"][0] == pytest.approx(np.mean(list(map(gini, weights))))
        assert one.statistics["hoyer"][0] == pytest.approx(np.mean(list(map(hoyer, weights))))
        assert one.statistics["gini"][1] < one.statistics["gini"][2]
        assert one.unit == unit
    page = sparsity_markdown(table, found)
    assert f"Shares of the {unit}" in page
    assert ("every segment counts the same" in page) == (unit == "segments")
    assert len([line for line in page.splitlines() if line.startswith("| ")]) == 4
    flat = sparsity_json(found)
    assert json.loads(json.dumps(flat, allow_nan=False)) == flat
    assert flat[0]["hoyer_ci_low"] == found[0].statistics["hoyer"][1]


@pytest.mark.parametrize("text", ["coarse-gauss?cells=2", "grid?cells=2&target=prob_all"])
def test_weights_without_a_sign_or_a_mask_have_no_areas(tmp_path: Path, text: str) -> None:
    store(tmp_path, "a", text, 0)
    [table] = load_tables(tmp_path)
    assert explanation_sparsity(tmp_path, table) == []
    assert sparsity_markdown(table, []) == ""


def test_reports_carry_it(tmp_path: Path) -> None:
    store(tmp_path, "a", "grid?cells=4", 0)
    tables = load_tables(tmp_path)
    files = {path.name: path for path in publish_scores(tmp_path, tables, DATA).files}
    values = json.loads(files["scores.json"].read_text())
    assert [one["model"] for one in values["sparsity"]] == ["a"]
    assert "| model | negative | zero | positive |" in files["scores.md"].read_text()
