"""The policy of a sequential run, over numbers made up in memory: who goes on, who rests."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raybench.sequential as sequential
from raybench.config import ScoreConfig, make_config
from raybench.core.decisions import Decisions, decisions_of
from raybench.core.errors import InputError, RunError, StoreError
from raybench.core.plan import Measurement, Plan, cut_shards
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.core.work import Outcome, Task
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.radius import RadiusEvaluation
from raybench.sequential import Rounds, looks, refuse, rounds_of
from raybench.sinks.store import Manifest, new_manifest, read_manifest

FLIP = RadiusEvaluation(samples=100)
GRID = LimeEvaluation(reading="grid", samples=50, fill="0.0").resolved((1, 8, 8))


def dataset(n: int, options: str = "&sample_seed=0") -> DatasetInfo:
    return DatasetInfo(
        spec=f"digits?n={n}{options}",
        name="digits",
        shape=(1, 8, 8),
        num_classes=10,
        size=n,
        has_labels=False,
        fingerprint="f" * 64,
    )


def model(name: str) -> ModelInfo:
    return ModelInfo(
        spec=f"python:toy:{name}",
        name=name,
        access=Access.SCORES,
        input_shape=(1, 8, 8),
        num_classes=10,
        fingerprint=name * 8,
    )


@dataclass
class Game:
    """A run without models: `columns` holds each one's numbers [n], given out shard by shard."""

    out: Path
    columns: dict[str, np.ndarray]
    readings: Sequence[Any] = (FLIP,)
    shard_size: int = 8
    cuts: dict[int, int] = field(default_factory=dict)
    alpha: float = 0.05
    margin: float = 0.0
    rank_by: str = "normalised"
    said: list[str] = field(default_factory=list)
    batches: list[list[Task]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(next(iter(self.columns.values())))
        ids = tuple(f"test/{index}" for index in range(n))
        measurements = tuple(
            Measurement(model=model(name), dataset=dataset(n), evaluation=reading, seed=0)
            for reading in self.readings
            for name in self.columns
        )
        self.plan = Plan(out=str(self.out), measurements=measurements, shard_size=self.shard_size)
        self.manifests = []
        for index, measurement in enumerate(measurements):
            size = self.cuts.get(index, self.shard_size)
            self.manifests.append(new_manifest(measurement, cut_shards(ids, size), size, {}))
        self.rounds = Rounds(
            plan=self.plan,
            alpha=self.alpha,
            margin=self.margin,
            rank_by=self.rank_by,
            say=self.said.append,
        )

    def rows(self, folder: Path, manifest: Manifest, columns: Sequence[str]) -> pa.Table:
        """Return what `load_rows` would of the fake parts."""
        assert manifest.complete, "asked for shards that are not there"
        name = manifest.measurement["model"]["name"]
        cut = next(m for m in self.manifests if m.measurement == manifest.measurement).shards
        starts = np.cumsum([0] + [shard.rows for shard in cut])
        places = [
            place
            for shard in manifest.shards
            for place in range(starts[shard.index], starts[shard.index] + shard.rows)
        ]
        values = [float(self.columns[name][place]) for place in places]
        known = [not np.isnan(value) for value in values]
        return pa.table(
            {
                "sample_id": [f"test/{place}" for place in places],
                "status": ["ok" if one else "error" for one in known],
                "error": [None if one else "broken" for one in known],
                "predicted": pa.array([0 if one else None for one in known], pa.int32()),
                columns[-1]: pa.array(
                    [value if one else None for value, one in zip(values, known, strict=True)],
                    pa.float64(),
                ),
            }
        )

    def add(self, task: Task) -> None:
        manifest = self.manifests[task.measurement]
        shard = manifest.shards[task.shard]
        assert shard.file not in manifest.parts, f"{task} is there"
        part = {"rows": shard.rows, "errors": 0, "queries": 100 * shard.rows}
        self.manifests[task.measurement] = replace(
            manifest, parts=manifest.parts | {shard.file: part}
        )

    def play(self, failing: frozenset[Task] = frozenset(), how: str = "failures") -> Decisions:
        outcome = Outcome()
        while tasks := self.rounds.tasks(self.manifests, outcome):
            self.batches.append(tasks)
            for task in tasks:
                if task in failing:
                    getattr(outcome, how)[task] = "poison"
                else:
                    self.add(task)
        return self.rounds.finish(self.manifests, outcome)

    def images(self) -> dict[str, int]:
        return {
            manifest.measurement["model"]["name"]: sum(p["rows"] for p in manifest.parts.values())
            for manifest in self.manifests[: len(self.columns)]
        }


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def make(columns: dict[str, np.ndarray], **options: Any) -> Game:
        game = Game(tmp_path, columns, **options)
        monkeypatch.setattr(sequential, "load_rows", game.rows)
        return game

    return make


def verdicts(found: Decisions) -> list[tuple[str, str, str]]:
    return [(pair.lower, pair.verdict, pair.higher) for pair in found.pairs]


def around(mean: float, n: int, seed: int, width: float = 0.05) -> np.ndarray:
    return mean + width * (np.random.default_rng(seed).random(n) - 0.5)


def test_looks_grow_in_whole_shards_up_to_n() -> None:
    found = looks(1000, 16, 32)
    assert found[:4] == (32, 48, 64, 80)
    assert found[-1] == 1000
    assert all(count % 16 == 0 for count in found[:-1])
    assert list(found) == sorted(set(found))
    assert max(b / a for a, b in itertools.pairwise(found[3:])) < 1.45
    assert looks(20, 16, 32) == (20,)
    assert looks(100, 64, 32) == (64, 100)
    assert looks(33, 1, 32) == (32, 33)


def test_models_told_apart_rest_while_others_go_on(play: Any) -> None:
    n = 400
    game = play(
        {
            "a": around(0.1, n, 0),
            "b": around(0.5, n, 1),
            "c": around(0.54, n, 2),
            "d": around(0.9, n, 3),
        }
    )
    found = game.play()
    assert verdicts(found) == [
        ("a", "separated", "b"),
        ("b", "separated", "c"),
        ("c", "separated", "d"),
    ]
    images = game.images()
    assert images["a"] == images["d"] == 32
    assert 32 < images["b"] == images["c"] < n
    assert found.decided
    assert dict(found.models.values()) == images
    assert found.queries_spent == 100 * sum(images.values())
    # Groups of 16 images are filled up, so shards of 8 ask twice as much.
    assert found.queries_fixed_n == 4 * 50 * FLIP.queries(8)
    for batch in game.batches:
        assert [task.shard for task in batch] == sorted(task.shard for task in batch)


def test_a_model_that_rested_catches_up_before_a_verdict_against_its_rank_counts(play: Any) -> None:
    n = 400
    # The two that nearly tie are above the other for 32 images, and then fall below it.
    falling = np.where(np.arange(n) < 32, 0.6, 0.1) + around(0, n, 1)
    game = play({"rests": around(0.3, n, 0), "low": falling, "high": falling + 0.01})
    found = game.play()
    images = game.images()
    assert (found.pairs[0].lower, found.pairs[0].higher) == ("low", "high")
    assert images["low"] == images["high"] > 100
    # Its mean over the first 32 images lies under theirs; now they are compared on equal terms.
    assert images["rests"] == images["high"]
    assert found.pairs[1].images == images["high"]


def test_identical_models_tie_with_a_margin_and_take_all_images_without(play: Any) -> None:
    same = around(0.4, 300, 0)
    tied = play({"a": same, "b": same}, margin=0.1)
    assert verdicts(tied.play()) == [("a", "tied", "b")]
    assert tied.images()["a"] < 300
    never = play({"a": same, "b": same})
    found = never.play()
    assert verdicts(found) == [("a", "undecided", "b")]
    assert not found.decided
    assert never.images() == {"a": 300, "b": 300}
    assert "after 300 of 300 images 0 of 1 neighbours are decided; open: a / b" in never.said[-1]


def test_what_is_there_is_looked_at_first(play: Any) -> None:
    columns = {"a": around(0.1, 200, 0), "b": around(0.6, 200, 1)}
    game = play(columns)
    for measurement, count in ((0, 7), (1, 9)):
        for shard in (*range(count), 20):  # one lies apart, behind a gap
            game.add(Task(measurement, shard, "", 8))
    found = game.play()
    assert game.batches == []
    assert found.pairs[0].images == 56
    assert found.pairs[0].decided_at == 32
    assert dict(found.models.values()) == {"a": 56, "b": 72}


def test_other_readings_of_a_model_are_brought_to_the_same_images(play: Any) -> None:
    columns = {"a": around(0.1, 100, 0), "b": around(0.6, 100, 1)}
    # The stored rows of one grid measurement keep their own cut.
    game = play(columns, readings=(GRID, FLIP), cuts={0: 5})
    found = game.play()
    assert found.evaluation == FLIP.canonical()
    counts = [sum(part["rows"] for part in m.parts.values()) for m in game.manifests]
    assert counts == [35, 32, 32, 32]
    for measurement in game.plan.measurements:
        stored = read_manifest(game.out / measurement.folder)
        assert stored.stop.images == 32
        assert stored.complete
        assert not stored.owed
        assert stored.missing


@pytest.mark.parametrize("how", ["failures", "spent"])
def test_a_failed_shard_or_a_spent_budget_takes_its_model_out(play: Any, how: str) -> None:
    columns = {"a": around(0.1, 200, 0), "b": around(0.5, 200, 1), "c": around(0.52, 200, 2)}
    game = play(columns)
    bad = Task(1, 2, "b" * 8, 8)
    found = game.play(frozenset({bad}), how)
    assert verdicts(found) == [("a", "separated", "c")]
    assert sum(bad in batch for batch in game.batches) == 1
    folders = [game.out / m.folder for m in game.plan.measurements]
    assert [read_manifest(folder).stop is None for folder in folders] == [False, True, False]


def test_images_that_one_cannot_score_and_a_model_that_scores_none(play: Any) -> None:
    holed = around(0.1, 200, 0)
    holed[::3] = np.nan
    columns = {"a": holed, "b": around(0.6, 200, 1), "none": np.full(200, np.nan)}
    found = play(columns).play()
    assert verdicts(found) == [("a", "separated", "b")]


def test_lime_scores_are_unbounded_and_begin_at_the_asymptotic_start(play: Any) -> None:
    columns = {"a": around(3.0, 300, 0), "b": around(9.0, 300, 1)}
    game = play(columns, readings=(GRID,), rank_by="score")
    found = game.play()
    assert (found.method, found.column) == ("asymptotic", "score")
    assert game.images() == {"a": 64, "b": 64}
    logs = play(columns, readings=(GRID,))
    found = logs.play()
    assert found.column == "log normalised"
    assert found.pairs[0].difference == pytest.approx(np.log(3), abs=0.01)


def test_a_score_that_is_not_known_is_an_error_that_says_how_to_go_on(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    game = play({"a": around(0.1, 100, 0), "b": around(0.5, 100, 1)})

    def blank(folder: Path, manifest: Manifest, columns: Sequence[str]) -> pa.Table:
        rows = game.rows(folder, manifest, columns)
        return rows.set_column(4, columns[-1], pa.nulls(rows.num_rows, pa.float64()))

    monkeypatch.setattr(sequential, "load_rows", blank)
    with pytest.raises(RunError, match=r"a has no normalised score .*--rank-by score"):
        game.play()


def test_false_verdicts_over_many_runs_of_the_whole_policy(play: Any) -> None:
    # Four models with the same mean, and a margin that no tie may be called at wrongly.
    rng, wrong, runs = np.random.default_rng(0), 0, 8
    for _ in range(runs):
        columns = {name: rng.beta(0.4, 1.2, 96) for name in "abcd"}
        found = play(columns, alpha=0.3).play()
        wrong += any(pair.verdict == "separated" for pair in found.pairs)
    assert wrong <= 6  # of 8 at 0.3: exceeded once in 700


def test_decisions_survive_their_record(play: Any) -> None:
    game = play({"a": around(3.0, 200, 0), "b": around(9.0, 200, 1)}, readings=(GRID,))
    found = game.play()
    stop = read_manifest(game.out / game.plan.measurements[0].folder).stop
    content = json.loads((game.out / stop.record).read_text())
    assert decisions_of(content) == found
    with pytest.raises(StoreError, match="no record of a sequential run"):
        decisions_of({**content, "pairs": [{"lower": "a"}]})
    with pytest.raises(StoreError, match="no record of a sequential run"):
        decisions_of({"models": 3})


def test_names_of_a_table_replace_those_of_the_run(play: Any) -> None:
    found = play({"a": around(0.1, 64, 0), "b": around(0.6, 64, 1)}).play()
    first, second = found.models
    named = found.named({first: "a (scores)"})
    assert (named.pairs[0].lower, named.pairs[0].higher) == ("a (scores)", "b")
    assert named.models[second] == found.models[second]


def config(**options: Any) -> ScoreConfig:
    values = {"models": ["zoo:mlp2", "zoo:cnn3"], "data": "digits", "until_decided": True}
    return make_config(ScoreConfig, values | options)


def test_source_order_is_refused_with_the_spec_that_would_do() -> None:
    found = refuse(config(), dataset(100, ""))
    assert len(found) == 1
    assert "--data 'digits?sample_seed=0'" in found[0]
    assert (
        "digits?split=test&sample_seed=0"
        in refuse(config(data="digits?split=test"), dataset(100, ""))[0]
    )
    assert refuse(config(), dataset(100)) == []
    assert refuse(config(until_decided=False), dataset(100, "")) == []


def test_one_model_that_is_left_cannot_be_compared(play: Any) -> None:
    game = play({"a": around(0.1, 64, 0)})
    with pytest.raises(InputError, match="only one is left"):
        rounds_of(game.plan, config(), print)
    assert rounds_of(game.plan, config(until_decided=False), print) is None
