"""Scoring until decided as a user runs it: fewer images, the same parts, verdicts that stay."""

import contextlib
import io
import json
import shutil
import sqlite3
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from score_material import part_bytes
from sklearn.datasets import load_digits
from torch import nn

from raybench.cli import main
from raybench.core.errors import Interrupted
from raybench.core.work import Receipt, Task
from raybench.runners.worker import ShardWorker
from raybench.sinks.store import find_manifests, read_manifest

DATA = "digits?sample_seed=0"


class Linear(nn.Module):
    """Logits linear in the pixels."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1) - 0.5) @ self.weight


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def table(self) -> dict:
        return json.loads(self.out)

    @property
    def decisions(self) -> dict:
        return self.table["sequential"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Specs: `robust` (class means), `brittle` (random), `twin` (the same as brittle)."""
    folder = tmp_path_factory.mktemp("models")
    digits = load_digits()
    means = np.stack([digits.data[digits.target == label].mean(0) for label in range(10)], 1) / 16
    weights = {
        "robust": torch.tensor(means - means.mean(1, keepdims=True), dtype=torch.float32),
        "brittle": torch.randn(64, 10, generator=torch.Generator().manual_seed(0)),
    }
    weights["twin"] = weights["brittle"]
    specs = {}
    for name, weight in weights.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            torch.jit.script(Linear(weight).eval()).save(str(folder / f"{name}.pt"))
        specs[name] = f"torchscript:{folder / name}.pt?shape=1x8x8&classes=10"
    return specs


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow database for all runs here: making one takes seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(scope="module")
def run(models: dict[str, str], store: Path) -> Run:
    def call(
        folder: Path,
        *more: str,
        names: str = "brittle robust",
        verb: str = "score",
        readings: tuple[str, ...] = ("flip-radius?samples=200",),
        database: Path = store,
    ) -> Result:
        arguments = [verb, *(models[name] for name in names.split())]
        arguments += [f"--reading={reading}" for reading in readings]
        arguments += ["--data", DATA, "--n", "160", "--runner", "local", "--json"]
        arguments += ["--out", str(folder), *more]
        return invoke([*arguments, "--tracking-uri", f"sqlite:///{database}"])

    return call


def invoke(arguments: list[str]) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def decided(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("decided")
    options = ("--until-decided", "--margin", "0.15")
    # Of its own: other runs of the same measurements change their runs in MLflow.
    result = run(out, *options, names="brittle robust twin", database=out / "mlflow.db")
    assert result.code == 0, result.err
    return out, result


def verdicts(result: Result) -> dict[str, str]:
    return {
        f"{pair['lower']} {pair['higher']}": pair["verdict"] for pair in result.decisions["pairs"]
    }


def images(result: Result) -> dict[str, int]:
    return {row["model"]: row["n"] for row in result.table["models"]}


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Return a list that every task computed from now on is added to."""
    seen: list[Task] = []
    compute = ShardWorker.__call__

    def call(self: ShardWorker, task: Task) -> Receipt:
        seen.append(task)
        return compute(self, task)

    monkeypatch.setattr(ShardWorker, "__call__", call)
    return seen


def test_stops_when_every_pair_of_neighbours_is_decided(decided: tuple[Path, Result]) -> None:
    out, result = decided
    assert verdicts(result) == {"robust brittle": "separated", "brittle twin": "tied"}
    assert result.decisions["decided"] is True
    assert result.decisions["method"] == "betting"
    assert result.decisions["pairs_covered"] == 3
    for pair in result.decisions["pairs"]:
        counts, lows, highs = zip(*pair["path"], strict=True)
        assert list(counts) == sorted(counts)
        assert list(lows) == sorted(lows)
        assert list(highs) == sorted(highs, reverse=True)
        decisive = pair["path"][counts.index(pair["decided_at"])]
        if pair["verdict"] == "separated":
            assert decisive[1] > 0
        else:
            assert -0.15 <= decisive[1] <= 0 <= decisive[2] <= 0.15
    tables = {row["model"]: row for row in result.table["models"]}
    # The first is told from its only neighbour early, and rests while the twins go on.
    assert tables["robust"]["n"] < tables["brittle"]["n"] == tables["twin"]["n"] < 160
    for row in tables.values():
        assert row["status"] == "complete"
        assert row["fixed_n"] == 160
        assert row["queries_fixed_n"] == 160 * 200
        assert row["queries"] == row["n"] * 200
    assert tables["brittle"]["tied"] == ["twin"]
    assert tables["robust"]["tied"] == []
    spent = sum(row["queries"] for row in tables.values())
    assert result.decisions["queries_spent"] == spent
    assert result.decisions["queries_fixed_n"] == 3 * 160 * 200
    assert len(part_bytes(out)) == spent // 200 // 16


def test_text_says_what_was_decided_and_saved(decided: tuple[Path, Result]) -> None:
    out, result = decided
    shown = invoke(["show", str(out)])
    assert shown.code == 0
    text = " ".join(shown.out.split())
    most = images(result)["twin"]
    assert f"n = {images(result)['robust']} to {most} of 160" in text
    assert f"Every two neighbours are decided at {most} of 160 images" in text
    assert "of the 96,000 of fixed n" in text
    assert "robust < brittle [" in text
    assert "brittle = twin [" in text
    assert "tied within ±0.15" in text
    assert "1 robust" in text
    assert "2= brittle" in text
    assert list(out.glob("reports/*/fig7_sequences.png"))
    again = invoke(["show", str(out), "--json"])
    assert again.decisions == result.decisions


def test_without_a_margin_nothing_ties_and_all_images_are_used(run: Run, tmp_path: Path) -> None:
    result = run(tmp_path, "--until-decided", names="brittle twin")
    assert result.code == 0, result.err
    assert verdicts(result) == {"brittle twin": "undecided"}
    assert result.decisions["decided"] is False
    assert images(result) == {"brittle": 160, "twin": 160}
    assert result.decisions["queries_spent"] == result.decisions["queries_fixed_n"]
    text = " ".join(invoke(["show", str(tmp_path)]).out.split())
    assert "1 of 1 neighbours are still undecided at 160 of 160 images" in text
    assert "n = 160 ·" in text


def test_going_on_computes_nothing_twice(
    decided: tuple[Path, Result], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, result = decided
    shutil.copytree(out, tmp_path / "again")
    seen = counted(monkeypatch)
    options = ("--until-decided", "--margin", "0.15")
    again = run(tmp_path / "again", *options, names="brittle robust twin")
    assert again.code == 0
    assert not seen
    assert again.table == result.table
    # A smaller margin needs more images of the twins, and none of the other.
    finer = run(
        tmp_path / "again", "--until-decided", "--margin", "0.1", names="brittle robust twin"
    )
    assert images(finer)["twin"] > images(result)["twin"]
    assert images(finer)["robust"] == images(result)["robust"]
    more = sum(images(finer).values()) - sum(images(result).values())
    assert len(seen) == len(set(seen)) == more // 16


def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(
    decided: tuple[Path, Result], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch)
    compute = ShardWorker.__call__

    def stop(self: ShardWorker, task: Task) -> Receipt:
        if len(seen) == 7:
            raise Interrupted(130)
        return compute(self, task)

    options = ("--until-decided", "--margin", "0.15")
    with monkeypatch.context() as patch:
        patch.setattr(ShardWorker, "__call__", stop)
        assert run(tmp_path, *options, names="brittle robust twin").code == 130
    assert len(part_bytes(tmp_path)) == 7
    result = run(tmp_path, *options, names="brittle robust twin")
    assert result.code == 0
    assert len(seen) == len(set(seen)) == len(part_bytes(decided[0]))
    assert part_bytes(tmp_path) == part_bytes(decided[0])
    assert result.decisions == decided[1].decisions


def test_a_plain_run_completes_the_same_measurement(
    decided: tuple[Path, Result], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = decided
    shutil.copytree(out, tmp_path / "whole")
    before = part_bytes(out)
    seen = counted(monkeypatch)
    whole = run(tmp_path / "whole", names="brittle robust twin")
    assert whole.code == 0
    assert len(seen) == len(set(seen)) == 3 * 10 - len(before)
    after = part_bytes(tmp_path / "whole")
    assert {name: after[name] for name in before} == before
    plain = run(tmp_path / "plain", names="brittle robust twin")
    assert part_bytes(tmp_path / "plain") == after
    timeless = [
        [row | {"images_per_second": None} for row in result.table["models"]]
        for result in (whole, plain)
    ]
    assert timeless[0] == timeless[1]
    assert "sequential" not in whole.table
    assert {row["fixed_n"] for row in whole.table["models"]} == {None}
    # And back: everything is there, so it is decided by all of it at once, at the same looks.
    back = run(
        tmp_path / "whole", "--until-decided", "--margin", "0.15", names="brittle robust twin"
    )
    assert verdicts(back) == verdicts(decided[1])
    assert [p["decided_at"] for p in back.decisions["pairs"]] == [
        p["decided_at"] for p in decided[1].decisions["pairs"]
    ]


def test_an_early_stop_is_sound_and_repaired_alone(
    decided: tuple[Path, Result], tmp_path: Path
) -> None:
    out = shutil.copytree(decided[0], tmp_path / "damaged")
    assert invoke(["verify", str(out)]).code == 0
    before = part_bytes(out)
    victim = out / next(iter(before))
    victim.write_bytes(b"damaged")
    assert invoke(["verify", str(out)]).code == 3
    mended = invoke(["verify", str(out), "--repair", "--runner", "local", "--json"])
    assert mended.code == 0, mended.err
    assert part_bytes(out) == before
    shown = json.loads(invoke(["show", str(out), "--json"]).out)
    assert shown["sequential"] == decided[1].decisions


def test_plan_still_counts_all_images(
    decided: tuple[Path, Result], run: Run, tmp_path: Path
) -> None:
    out = shutil.copytree(decided[0], tmp_path / "planned")
    planned = run(out, names="robust brittle", verb="plan")
    assert planned.code == 0, planned.err
    left = {row["model"]: row["queries_left"] for row in json.loads(planned.out)["rows"]}
    pilot = 2 * 16 * 200  # shards that the plan itself computes
    done = {row["model"]: row["queries"] for row in decided[1].table["models"]}
    assert left == {name: 160 * 200 - done[name] - pilot for name in left}


def test_two_readings_stop_together(run: Run, tmp_path: Path) -> None:
    readings = ("grid?samples=32&fill=0", "flip-radius?samples=200")
    result = run(tmp_path, "--until-decided", readings=readings)
    assert result.code == 0, result.err
    assert result.table["reading"].startswith("grid")
    assert verdicts(result) == {"robust brittle": "separated"}
    assert result.decisions["evaluation"] == "flip-radius?samples=200"
    counts = {
        (read_manifest(folder).measurement["evaluation"], len(read_manifest(folder).parts))
        for folder in find_manifests(tmp_path)
    }
    assert len({count for _, count in counts}) == 1
    spent = sum(row["queries"] + row["normalised_queries"] for row in result.table["models"])
    assert result.decisions["queries_spent"] == spent


def test_unbounded_scores_go_by_the_asymptotic_sequence(run: Run, tmp_path: Path) -> None:
    options = ("--until-decided", "--rank-by", "score", "--samples", "64")
    result = run(tmp_path, *options, readings=("grid?fill=0",))
    assert result.code == 0, result.err
    assert result.decisions["method"] == "asymptotic"
    assert result.decisions["column"] == "score"
    assert min(images(result).values()) >= 64
    assert set(verdicts(result).values()) == {"separated"}


def test_mlflow_tells_what_was_spent(decided: tuple[Path, Result]) -> None:
    with contextlib.closing(sqlite3.connect(decided[0] / "mlflow.db")) as database:
        tags = dict(
            database.execute(
                "select p.value, t.value from tags t join params p on p.run_uuid = t.run_uuid "
                "where t.key = 'raybench.decided' and p.key = 'model'"
            ).fetchall()
        )
        metrics = {
            (model, key): value
            for model, key, value in database.execute(
                "select p.value, m.key, m.value from latest_metrics m join params p "
                "on p.run_uuid = m.run_uuid where p.key = 'model'"
            )
        }
    for model, count in images(decided[1]).items():
        assert tags[model] == f"{count} of 160 images"
        assert metrics[model, "queries_spent"] == count * 200
        assert metrics[model, "queries_fixed_n"] == 160 * 200


def test_a_model_that_fails_does_not_hold_up_the_others(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ShardWorker.__call__

    def call(self: ShardWorker, task: Task) -> Receipt:
        if task.measurement == 1 and task.shard == 1:
            raise ArithmeticError("poison")
        return compute(self, task)

    monkeypatch.setattr(ShardWorker, "__call__", call)
    result = run(tmp_path, "--until-decided", "--margin", "0.15", names="brittle robust twin")
    assert result.code == 3
    assert verdicts(result) == {"brittle twin": "tied"}
    rows = {row["model"]: row for row in result.table["models"]}
    assert rows["robust"]["status"] == "failed"
    assert rows["brittle"]["status"] == rows["twin"]["status"] == "complete"
    assert rows["twin"]["n"] < 160


def test_shard_size_changes_looks_and_no_number(
    decided: tuple[Path, Result], run: Run, tmp_path: Path
) -> None:
    options = ("--until-decided", "--margin", "0.15", "--shard-size", "10")
    result = run(tmp_path, *options, names="brittle robust twin")
    assert verdicts(result) == verdicts(decided[1])
    ends = {
        (pair["lower"], look[0]): look[1:]
        for found in (result, decided[1])
        for pair in found.decisions["pairs"]
        for look in pair["path"]
    }
    for found in (result, decided[1]):
        for pair in found.decisions["pairs"]:
            for look in pair["path"]:
                assert look[1:] == pytest.approx(ends[pair["lower"], look[0]], abs=1e-9)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--data", "digits"), "--data 'digits?sample_seed=0'"),
        (("--rank-by", "matched"), "cannot rank by matched"),
        (("--margin", "-1"), "margin: Input should be greater than or equal to 0"),
        (("--margin", "nan"), "margin"),
        (("--alpha", "0"), "alpha: Input should be greater than 0"),
        (("--alpha", "0.7"), "alpha: Input should be less than 0.5"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    run: Run, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    result = run(tmp_path / "none", "--until-decided", *options)
    assert result.code == 2
    assert problem in result.err
    assert not (tmp_path / "none").exists()


def test_options_that_nothing_takes_and_a_single_model_are_refused(
    run: Run, tmp_path: Path
) -> None:
    result = run(tmp_path / "none", "--margin", "0.1", "--alpha", "0.1")
    assert result.code == 2
    assert "alpha, margin: only until_decided takes it" in result.err
    result = run(tmp_path / "none", "--until-decided", names="robust")
    assert result.code == 2
    assert "give at least two" in result.err
    assert not (tmp_path / "none").exists()


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("cluster")
def test_ray_keeps_its_workers_and_decides_the_same(
    decided: tuple[Path, Result], run: Run, tmp_path: Path
) -> None:
    options = ("--until-decided", "--margin", "0.15", "--runner", "ray", "--actors", "2")
    result = run(tmp_path, *options, names="brittle robust twin")
    assert result.code == 0, result.err
    assert part_bytes(tmp_path) == part_bytes(decided[0])
    assert result.decisions == decided[1].decisions
