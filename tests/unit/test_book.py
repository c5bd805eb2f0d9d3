"""The book of a run: receipts and events in, manifests and how the run went out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runners.faulty_worker import MeasuredWorker

from raybench.book import Book
from raybench.core.plan import Measurement, Plan, cut_shards
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.core.work import Event, Outcome, Receipt, Task
from raybench.evaluations.readings import parse_reading
from raybench.sinks.headlines import ATTACK_METRICS, FINAL_METRICS
from raybench.sinks.store import new_manifest, read_manifest

SHARDS = 4


class RecordingTracker:
    """Keeps what it is told, as MLflow would."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.records: list[tuple[int, dict[str, float]]] = []

    def step(self, key: str, step: int, metrics: dict[str, float]) -> None:
        self.steps.append((step, metrics))

    def record(self, key: str, step: int, metrics: dict[str, float]) -> None:
        self.records.append((step, metrics))


@pytest.fixture
def measurement() -> Measurement:
    data = DatasetInfo(
        spec="toy", name="toy", shape=(1, 8, 8), num_classes=3, size=40, has_labels=False,
        fingerprint="d" * 64,
    )  # fmt: skip
    model = ModelInfo(
        spec="toy", name="toy", access=Access.SCORES, input_shape=(1, 8, 8), num_classes=3,
        fingerprint="f" * 64,
    )  # fmt: skip
    reading = parse_reading("grid", samples=64, shape=data.shape)
    return Measurement(model=model, dataset=data, evaluation=reading, seed=0)


def open_book(out: Path, measurement: Measurement, tracker: Any) -> Book:
    plan = Plan(out=str(out), measurements=(measurement,), shard_size=10)
    shards = cut_shards(tuple(f"toy/{index}" for index in range(40)), 10)
    manifest = new_manifest(measurement, shards, 10, {})
    return Book(plan, [manifest], [tracker])


def test_events_are_counted_and_receipts_listed(tmp_path: Path, measurement: Measurement) -> None:
    tracker = RecordingTracker()
    book = open_book(tmp_path, measurement, tracker)
    worker = MeasuredWorker(str(tmp_path))
    for shard in range(SHARDS):
        task = Task(0, shard, "m", 10)
        book.hear(Event(kind="started", task=task))
        if shard == 1:
            book.hear(Event(kind="retry", task=task))
            book.hear(Event(kind="released", task=task))
        receipt = worker(task)
        named = book.manifests[0].shards[shard].file
        book.hear(Event(kind="done", task=task, receipt=_renamed(receipt, named)))
    book.hear(Event(kind="note", text="of no measurement"))
    book.close(Outcome())
    assert read_manifest(tmp_path / measurement.folder).complete
    [(step, went)] = tracker.records
    assert step == SHARDS
    assert not went.keys() & {*FINAL_METRICS, *ATTACK_METRICS}
    assert went.pop("run_images_per_second") > 0
    assert went == {
        "shards_done": 4.0,
        "shards_failed": 0.0,
        "shards_retried": 1.0,
        "shards_released": 1.0,
        "model_share": 0.75,
    }
    assert tracker.steps == [
        (SHARDS, {"images_done": 40.0, "images_unscored": 4.0, "queries_done": 4000.0})
    ]


def test_a_run_of_failures_alone_is_told_too(tmp_path: Path, measurement: Measurement) -> None:
    tracker = RecordingTracker()
    book = open_book(tmp_path, measurement, tracker)
    task = Task(0, 2, "m", 10)
    book.hear(Event(kind="failed", task=task, text="poison"))
    book.close(Outcome({}, {task: "poison"}))
    assert read_manifest(tmp_path / measurement.folder).failures == {"2": "poison"}
    assert [went["shards_failed"] for _, went in tracker.records] == [1.0]


def _renamed(receipt: Receipt, file: str) -> Receipt:
    return replace(receipt, file=file)
