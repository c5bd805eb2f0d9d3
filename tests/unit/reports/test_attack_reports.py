"""Robust accuracy from stored rows: the worst case image by image, and what is said of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from score_material import make_material
from shortcuts import draw_nothing

from raybench.cli import main
from raybench.core.robustness import AttackTable
from raybench.metrics.intervals import wilson
from raybench.publish_attacks import publish_attacks
from raybench.reports.attack_figures import share_standing
from raybench.reports.attack_text import attacks_as_json, attacks_as_markdown, attacks_as_text
from raybench.reports.attacks import attack_tables, read_attacks
from raybench.reports.stored import stored_folders
from raybench.sinks.store import read_manifest


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks under two attacks within two budgets, stored by a run in this process."""
    folder = tmp_path_factory.mktemp("attacks")
    material, out = make_material(folder / "material", images=24), folder / "out"
    arguments = ["attack", *material.models, "--data", material.data, "--out", str(out)]
    arguments += ["--attack", "fgsm,square?queries=40", "--eps", "0.02,0.1", "--runner", "local"]
    # Nobody listens there: neither MLflow nor the figures of this run are the subject.
    arguments += ["--tracking-uri", "http://127.0.0.1:9"]
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert main([*arguments, "--shard-size", "10", "--quiet"]) == 0
    return out


def tables_of(out: Path) -> list[AttackTable]:
    return attack_tables(out, read_attacks(stored_folders(out).attacks))


def test_robust_accuracy_is_the_worst_case_image_by_image(stored: Path) -> None:
    members = read_attacks(stored_folders(stored).attacks)
    for table in attack_tables(stored, members):
        for row in table.rows:
            keys = {attack.key for attack in row.attacks}
            own = [m for m in members if m.manifest.measurement["key"] in keys]
            assert len(own) == 2
            rows = [member.rows.to_pylist() for member in own if member.rows is not None]
            robust = [
                all(not r["already_wrong"] and not r["success"] for r in image)
                for image in zip(*rows, strict=True)
            ]
            right = [not image["already_wrong"] for image in rows[0]]
            assert row.n == 24
            assert row.robust_accuracy == pytest.approx(np.mean(robust))
            assert row.clean_accuracy == pytest.approx(np.mean(right))
            assert (row.robust_low, row.robust_high) == wilson(sum(robust), 24)
            assert row.robust_accuracy <= min(a.accuracy for a in row.attacks)
            for attack in row.attacks:
                assert attack.attacked == sum(right)
                assert attack.success_rate == pytest.approx(
                    1 - attack.accuracy * 24 / attack.attacked
                )


def test_a_larger_budget_never_helps(stored: Path) -> None:
    by_eps = {table.eps: table for table in tables_of(stored)}
    assert set(by_eps) == {"0.02", "0.1"}
    small = {row.model.name: row.robust_accuracy for row in by_eps["0.02"].rows}
    for row in by_eps["0.1"].rows:
        assert row.robust_accuracy <= small[row.model.name]
    assert any(row.robust_accuracy < small[row.model.name] for row in by_eps["0.1"].rows)


def test_json_has_fractions_under_the_promised_names(stored: Path, capsys) -> None:
    assert main(["show", str(stored), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["tables"]) == 2
    for table in content["tables"]:
        for model in table["models"]:
            assert 0 <= model["robust_accuracy"] <= model["clean_accuracy"] <= 1
            low, high = model["robust_accuracy_ci_low"], model["robust_accuracy_ci_high"]
            assert low <= model["robust_accuracy"] <= high
            assert [attack["attack"] for attack in model["attacks"]] == ["fgsm", "square"]
            assert model["queries"] == sum(attack["queries"] for attack in model["attacks"])


def test_text_names_attacks_budget_and_bound(stored: Path) -> None:
    for table in tables_of(stored):
        for page in (attacks_as_text(table), attacks_as_markdown(table)):
            assert f"linf {table.eps}" in page
            assert "upper bound" in " ".join(page.split())
            for row in table.rows:
                assert row.model.name in page
        assert all(len(line) <= 100 for line in attacks_as_text(table).splitlines())
        json.dumps(attacks_as_json(table), allow_nan=False)


def test_ranks_are_by_robust_accuracy(stored: Path) -> None:
    for table in tables_of(stored):
        shares = [row.robust_accuracy for row in table.rows]
        assert shares == sorted(shares, reverse=True)
        assert [row.rank for row in table.rows] == [1, 2]


def test_effort_curves_start_clean_and_end_attacked(stored: Path) -> None:
    for member in read_attacks(stored_folders(stored).attacks):
        curve = share_standing(member, "found_queries", np.array([-1.0, 1e9]))
        assert curve[0] == pytest.approx(member.right.mean())
        assert curve[1] == pytest.approx(member.standing().mean())


def test_reports_are_written(stored: Path) -> None:
    published = publish_attacks(stored, stored_folders(stored).attacks)
    names = {path.name for path in published.files}
    assert {"robustness.json", "robustness.csv", "robustness.md", "robust.png"} <= names
    assert {"robust.svg", "effort.png", "security.png", "security.svg"} <= names
    assert all(path.stat().st_size > 0 for path in published.files)
    assert len(published.rows) == 8


def test_an_incomplete_attack_publishes_nothing(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(stored, out)
    folder = stored_folders(out).attacks[0]
    next(folder.glob("part-*.parquet")).unlink()
    hurt = [
        t for t in tables_of(out) for row in t.rows for a in row.attacks if a.status != "complete"
    ]
    assert len(hurt) == 1
    model = read_manifest(folder).measurement["model"]["name"]
    row = next(row for row in hurt[0].rows if row.model.name == model)
    assert row.robust_accuracy is None
    assert row.rank is None
