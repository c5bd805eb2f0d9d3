"""What the first batch gave away, and labels that mean something else, reach the tables."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from stored_scores import store_scores
from toy import ToyDataset, linear, toy_model

from raybench.evaluations.readings import parse_reading
from raybench.reports.summary import load_tables
from raybench.reports.tables import as_json, as_text
from raybench.reports.truth import save_labels

DATA = ToyDataset(6)
GRID = parse_reading("grid", samples=64, shape=DATA.shape)


def test_the_warning_kept_with_a_model_stands_beside_its_score(tmp_path: Path) -> None:
    model = toy_model(linear(), name="noisy")
    model.info = replace(model.info, details=(("warning", "the model is randomised"),))
    store_scores(tmp_path, model, GRID, DATA)
    store_scores(tmp_path, toy_model(linear(seed=1), name="steady"), GRID, DATA)
    [table] = load_tables(tmp_path)
    warnings = {row["model"]: row["warnings"] for row in as_json(table)["models"]}
    assert "the model is randomised" in warnings["noisy"]
    assert "the model is randomised" not in warnings["steady"]
    assert "noisy: the model is randomised" in as_text(table)


def test_clean_accuracy_is_withheld_where_labels_are_of_other_classes(tmp_path: Path) -> None:
    store_scores(tmp_path, toy_model(linear(), name="three"), GRID, DATA)
    store_scores(tmp_path, toy_model(linear(classes=9), classes=9, name="nine"), GRID, DATA)
    save_labels(tmp_path, DATA.info, DATA.ids, np.zeros(6, dtype=np.int64))
    [table] = load_tables(tmp_path)
    rows = {row.model.name: row for row in table.rows}
    assert rows["three"].clean_accuracy is not None
    assert (rows["nine"].clean_accuracy, rows["nine"].clean_low) == (None, None)
    assert (
        "nine: clean accuracy is withheld: the labels are of 3 classes, the model's answers of 9"
        in as_text(table)
    )
    assert not any("withheld" in warning for warning in rows["three"].warnings)
