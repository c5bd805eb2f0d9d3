"""A report of what ``raybench refresh`` keeps: history, failures, published values."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raybench.cli import main
from raybench.report import write_report
from raybench.sinks.store import find_folders, read_manifest

pytestmark = pytest.mark.usefixtures("no_drawing")
WHEN = "2026-11-20T01:02:03+00:00"


@pytest.fixture
def out(stored_results: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    shutil.copytree(stored_results, folder, ignore=shutil.ignore_patterns("report", "reports"))
    return folder


def entry(out: Path, name: str, /, **changed: Any) -> dict[str, Any]:
    """Return the entry of a stored model, with all that is stored of it."""
    found = [folder for folder in find_folders(out) if _model(folder)["name"] == name]
    model = _model(found[0])
    return {
        "spec": model["spec"],
        "name": name,
        "fingerprint": model["fingerprint"],
        "dataset": "data-1",
        "status": "current",
        "error": None,
        "first_seen": WHEN,
        "last_seen": WHEN,
        "measurements": [folder.relative_to(out).as_posix() for folder in found],
    } | changed


def _model(folder: Path) -> dict[str, Any]:
    return dict(read_manifest(folder).measurement["model"])


def save_state(out: Path, entries: list[dict[str, Any]], references: list[dict[str, Any]]) -> None:
    dataset = read_manifest(find_folders(out)[0]).measurement["dataset"]
    state = {
        "schema": 1, "benchmark_version": "2026.1", "written": WHEN, "seconds": 63.4,
        "new": 2, "unchanged": 1, "failed": 1, "entries": entries, "references": references,
        "datasets": [
            {
                "key": "data-1", "spec": dataset["spec"], "name": "data", "n": 24,
                "threat": "linf 0.1", "fingerprint": dataset["fingerprint"],
            }
        ],
    }  # fmt: skip
    (out / "leaderboard").mkdir(exist_ok=True)
    (out / "leaderboard" / "state.json").write_text(json.dumps(state))


def reference(model: str, metric: str, value: float, threat: str | None, **changed: Any) -> dict:
    return {
        "model": model, "dataset": "data-1", "threat": threat, "metric": metric, "value": value,
        "source": "a paper", "comparable": True, "why": "the same 24 images",
    } | changed  # fmt: skip


def report(out: Path, say=lambda text: pytest.fail(text)) -> tuple[str, dict[str, Any]]:
    written = write_report(out, None, "normalised", say)
    content = json.loads((written.page.parent / "leaderboard.json").read_text())
    return written.page.read_text(), content


def names(content: dict[str, Any]) -> set[str]:
    return {row["model"] for table in content["scores"] for row in table["models"]}


def test_history_is_named_and_not_ranked(out: Path) -> None:
    evil = next(f["name"] for f in map(_model, find_folders(out)) if "img" in f["name"])
    save_state(
        out,
        [entry(out, "plain"), entry(out, evil), entry(out, "plain-adv", status="history")],
        [],
    )
    page, content = report(out)
    assert names(content) == {"plain", evil}
    assert "no longer asked for; 6 measurements are kept" in page
    assert "Benchmark version 2026.1" in page
    assert "refreshed 2026-11-20 01:02 in 63 s: 2 new, 1 unchanged, 1 failed" in page
    assert {one["name"]: one["status"] for one in content["entries"]}["plain-adv"] == "history"


def test_a_failure_stands_beside_the_table_with_its_error(out: Path) -> None:
    broken = entry(
        out, "plain", status="failed", name="broken.pt", spec="torchscript:/x/broken.pt",
        fingerprint=None, measurements=[], error="torchscript:/x/broken.pt: <no> archive",
    )  # fmt: skip
    save_state(out, [entry(out, "plain"), entry(out, "plain-adv"), broken], [])
    page, content = report(out, say=[].append)
    assert names(content) == {"plain", "plain-adv"}
    assert "broken.pt: torchscript:/x/broken.pt: &lt;no&gt; archive" in page
    markdown = (out / "report" / "leaderboard.md").read_text()
    assert "## Failed" in markdown
    assert "&lt;no> archive" in markdown


def test_what_a_leaderboard_does_not_know_is_left_out_and_told(out: Path) -> None:
    save_state(out, [entry(out, "plain"), entry(out, "plain-adv")], [])
    said: list[str] = []
    _, content = report(out, said.append)
    assert said == [
        "6 stored measurements belong to no entry of the leaderboard and are left out of the "
        "ranking"
    ]
    assert content["problems"] == said
    assert names(content) == {"plain", "plain-adv"}


def test_published_values_stand_beside_ours(out: Path) -> None:
    every = [one["name"] for one in map(_model, find_folders(out))]
    models = sorted(set(every))
    save_state(
        out,
        [entry(out, name) for name in models],
        [
            reference("plain", "robust_accuracy", 0.5, "linf 1/10"),
            reference("plain", "robust_accuracy", 0.25, "linf 0.3"),
            reference("plain-adv", "clean_accuracy", 0.4, None, comparable=False, why="other"),
            reference("plain-adv", "brittle_score", 0.6, None, comparable=False, why="unread"),
            *(
                reference(name, "robust_accuracy", place / 10, "l2 0.5")
                for place, name in enumerate(models)
            ),
        ],
    )
    page, content = report(out)
    lines = {(one["model"], one["metric"], one["threat"]): one for one in content["published"]}
    within = lines["plain", "robust_accuracy", "linf 1/10"]
    (table,) = [one for one in content["robustness"] if one["threat"] == "linf 0.1"]
    (ours,) = [row for row in table["models"] if row["model"] == "plain"]
    assert within["ours"] == ours["robust_accuracy"]
    assert within["comparable"] is True
    assert within["difference"] == pytest.approx(ours["robust_accuracy"] - 0.5)
    beyond = lines["plain", "robust_accuracy", "linf 0.3"]
    assert (beyond["ours"], beyond["comparable"], beyond["difference"]) == (None, False, None)
    assert beyond["why"] == "not measured here within linf 0.3"
    clean = lines["plain-adv", "clean_accuracy", None]
    assert (clean["comparable"], clean["why"], clean["difference"]) == (False, "other", None)
    assert clean["ours"] is not None
    assert lines["plain-adv", "brittle_score", None]["ours"] is not None
    assert "Published values beside ours" in page
    assert {one["threat"] for one in content["agreement"]} >= {"l2 0.5 (published values)"}


def test_a_damaged_state_is_told_and_everything_is_ranked(out: Path) -> None:
    (out / "leaderboard").mkdir()
    (out / "leaderboard" / "state.json").write_text('{"schema": 1')
    said: list[str] = []
    page, content = report(out, said.append)
    assert "state.json is damaged" in said[0]
    assert "state.json is damaged" in page
    assert len(names(content)) == 3


def test_a_leaderboard_on_which_everything_failed_has_a_page(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_state(
        out,
        [entry(out, "plain", status="failed", measurements=[], error="no such file")],
        [],
    )
    shutil.rmtree(out / "rows")
    assert main(["report", str(out)]) == 0
    page = (out / "report" / "index.html").read_text()
    assert "nothing is ranked" in page
    assert "no such file" in page
