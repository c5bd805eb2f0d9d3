"""What a run on Ray shows of itself: metrics on the node's port, and lines in logs."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from runners.faulty_worker import MeasuredWorker
from score_material import command, make_material

from raybench.cli import main
from raybench.core.work import Event, Resources, Task

ray = pytest.importorskip("ray")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("cluster")]


def published() -> dict[tuple[str, str, str], float]:
    """Return (metric, model, evaluation) -> value, of ours, as Prometheus reads it off the node."""
    [node] = [node for node in ray.nodes() if node["Alive"]]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if line.startswith("ray_raybench_"):
            name = line.partition("{")[0].removeprefix("ray_raybench_")
            tags = dict(re.findall(r'(model|evaluation)="([^"]*)"', line))
            found[name, tags["model"], tags["evaluation"]] = float(line.rpartition(" ")[2])
    return found


def within(seconds: float, holds: Callable[[], Any]) -> Any:
    """Return what `holds` returns once that is true; Ray publishes every ten seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, published()
        time.sleep(0.5)
    return found


def test_metrics_are_on_the_nodes_port_by_model_and_evaluation(tmp_path: Path) -> None:
    from raybench.runners.ray import run_on_ray
    from raybench.runners.ray_metrics import Meter

    tasks = [Task(0, shard, "a") for shard in range(4)] + [Task(1, 90, "b"), Task(1, 91, "b")]
    meter = Meter([("watched-a", "grid"), ("watched-b", "pgd?eps=8/255")])
    outcome = run_on_ray(
        partial(
            MeasuredWorker,
            str(tmp_path),
            raises=frozenset({90}),
            raises_once=frozenset({2}),
        ),
        tasks,
        Resources(actors=1, max_attempts=2),
        listener=meter,
        stop=lambda: None,
    )
    assert len(outcome.failures) == 1
    # A worker that was told to end puts its shard back; which is easier said than done on time.
    meter(Event(kind="released", task=tasks[0], worker=0))
    one = partial(lambda name: published().get((name, "watched-a", "grid")))
    within(40, lambda: one("shards_released_total") == 1.0)
    found = published()
    a, b = ("watched-a", "grid"), ("watched-b", "pgd?eps=8/255")
    assert found["shards_done_total", *a] == 4.0
    assert found["shards_retried_total", *a] == 1.0
    assert found["images_total", *a] == 40.0
    assert found["images_unscored_total", *a] == 4.0
    assert found["queries_total", *a] == 4000.0
    assert found["worker_seconds_total", *a] == pytest.approx(8.0)
    assert found["model_seconds_total", *a] == pytest.approx(6.0)
    assert found["model_share", *a] == pytest.approx(0.75)
    assert found["images_per_second", *a] > 0
    assert found["shards_done_total", *b] == 1.0
    assert found["shards_failed_total", *b] == 1.0
    assert found["shards_retried_total", *b] == 1.0
    assert ("shards_failed_total", *a) not in found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"time"')]


def test_drivers_and_workers_log_with_the_ids_of_run_model_and_shard(tmp_path: Path) -> None:
    material = make_material(tmp_path / "material", images=8)
    out, log = tmp_path / "out", tmp_path / "run.jsonl"
    more = ["--actors", "1", "--quiet", "--log", str(log), "--json"]
    assert main(command(material, out, *more)[3:]) == 0
    driver = lines(log.read_text())
    run = driver[0]["run"]
    assert [line for line in driver if line["run"] != run] == []
    done = [line for line in driver if line["event"] == "shard-done"]
    assert sorted((line["model"], line["shard"]) for line in done) == [
        (model, shard) for model in ("first", "second") for shard in range(4)
    ]
    for line in done:
        assert len(line["mlflow_run"]) == 32
        assert len(line["measurement"]) == 16
        assert line["evaluation"].startswith("grid?")
        assert isinstance(line["worker"], int)
        assert 0 < line["model_seconds"] < line["seconds"]
        assert line["images"] == 2
    assert driver[-1]["event"] == "run-finished"
    # The workers' own lines are in Ray's logs, by the same ids.
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())

    def workers() -> list[dict[str, Any]]:
        found = [line for path in logs.glob("worker-*.err") for line in lines(path.read_text())]
        mine = [line for line in found if line.get("run") == run]
        return mine if len(mine) >= 8 else []

    mine = within(10, workers)
    # Its figures are Ray's metrics while it lasts, and MLflow's afterwards.
    counted = "shards_done_total", "first", done[0]["evaluation"]
    within(40, lambda: published().get(counted, 0.0) >= 4.0)
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    for run_id in {line["mlflow_run"] for line in done}:
        found = client.get_run(run_id).data.metrics
        assert (found["shards_done"], found["shards_failed"], found["shards_retried"]) == (4, 0, 0)
        assert 0 < found["model_share"] < 1
        assert found["run_images_per_second"] > 0
    assert {line["event"] for line in mine} == {"shard-computed"}
    assert sorted((line["model"], line["shard"]) for line in mine) == sorted(
        (line["model"], line["shard"]) for line in done
    )


def test_without_being_asked_workers_log_nothing(tmp_path: Path) -> None:
    material = make_material(tmp_path / "material", images=4)
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    before = sum(len(lines(path.read_text())) for path in logs.glob("worker-*.err"))
    assert main(command(material, tmp_path / "out", "--actors", "1", "--quiet", "--json")[3:]) == 0
    after = sum(len(lines(path.read_text())) for path in logs.glob("worker-*.err"))
    assert after == before
