"""The tracker against a real sqlite store, and against servers that refuse, hang or go away.

A real ``mlflow server`` takes long to start; the one test that needs it is marked slow.
"""

import contextlib
import dataclasses
import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from shortcuts import make_database, shared_folder

from raybench.core.errors import InputError, StoreError
from raybench.core.results import ModelScore
from raybench.core.types import Access, DatasetInfo, ModelInfo
from raybench.sinks.mlflow import Tracker, TrackingUnavailable, open_tracker, redact, ui_command
from raybench.sinks.tracking import Thinned, chosen_uri

MODEL = ModelInfo(
    spec="zoo:cnn3-adv",
    name="cnn3-adv",
    access=Access.SCORES,
    input_shape=(1, 8, 8),
    num_classes=10,
    fingerprint="f" * 64,
)
DATASET = DatasetInfo(
    spec="folder:s3://AKIA1:s3cr/et@bucket/digits?split=test",
    name="digits",
    shape=(1, 8, 8),
    num_classes=10,
    size=797,
    has_labels=True,
    fingerprint="d" * 64,
)
KEY = "a" * 64
ROW = ModelScore(
    model=MODEL,
    reading="grid",
    key=KEY,
    folder="digits/cnn3-adv",
    status="complete",
    score=0.0351,
    ci_low=0.034,
    ci_high=0.0363,
    normalised=0.49,
    normalised_low=0.48,
    normalised_high=0.5,
    noise_floor=0.002,
    corrected=0.034,
    reliability=0.97,
    matched=0.03,
    confidence=0.95,
    n=797,
    queries=797000,
    images_per_second=12.5,
    r2=0.8,
    warnings=("one image in five has fewer than 5 segments",),
)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a migrated database (migrations take seconds), and what making it printed."""
    return make_database(shared_folder(tmp_path_factory, "mlflow"))


@pytest.fixture
def out(tmp_path: Path, template: tuple[Path, str]) -> Path:
    folder = tmp_path / "a b%#é"
    folder.mkdir()
    shutil.copyfile(template[0], folder / "mlflow.db")
    return folder


@pytest.fixture
def tracker(out: Path) -> Tracker:
    return open_tracker(None, out, "digits")


def start(tracker: Tracker, key: str = KEY, **params: object) -> None:
    identity = {"model": MODEL.spec, "dataset": DATASET.spec, "seed": 0, "samples": 1000}
    tracker.start(key, model=MODEL, dataset=DATASET, reading="grid", params={**identity, **params})


def runs(tracker: Tracker) -> list:
    client = tracker._client
    experiment = client.get_experiment_by_name("digits")
    return list(client.search_runs([experiment.experiment_id]))


def history(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    (run,) = runs(tracker)
    return [(m.step, m.value) for m in tracker._client.get_metric_history(run.info.run_id, name)]


def artifacts(tracker: Tracker) -> list[str]:
    (run,) = runs(tracker)
    return [item.path for item in tracker._client.list_artifacts(run.info.run_id)]


def test_first_use_makes_the_database_and_says_nothing(template: tuple[Path, str]) -> None:
    database, said = template
    assert database.stat().st_size > 100_000
    assert said == ""


def test_a_run_tells_what_was_measured(tracker: Tracker, out: Path, tmp_path: Path) -> None:
    figure = tmp_path / "fig1.png"
    figure.write_bytes(b"png")
    start(tracker)
    tracker.step(KEY, 1, {"images_done": 32, "score_so_far": 0.04})
    tracker.step(KEY, 2, {"images_done": 64, "score_so_far": 0.03})
    tracker.finish(ROW, [figure])

    (run,) = runs(tracker)
    assert run.info.run_name == "cnn3-adv · grid"
    assert run.info.status == "FINISHED"
    assert run.data.params["samples"] == "1000"
    assert {name: value for name, value in run.data.metrics.items() if name != "images_done"} == {
        "score": 0.0351, "ci_low": 0.034, "ci_high": 0.0363, "normalised": 0.49,
        "normalised_low": 0.48, "normalised_high": 0.5, "noise_floor": 0.002, "corrected": 0.034,
        "reliability": 0.97, "matched": 0.03, "confidence": 0.95, "n": 797.0, "unscored": 0.0,
        "queries": 797000.0, "images_per_second": 12.5, "r2": 0.8, "score_so_far": 0.03,
    }  # fmt: skip
    assert history(tracker, "images_done") == [(1, 32.0), (2, 64.0)]
    tags = run.data.tags
    assert tags["raybench.key"] == KEY
    assert tags["raybench.access"] == "scores"
    assert tags["raybench.model_fingerprint"] == MODEL.fingerprint
    assert tags["raybench.data_fingerprint"] == DATASET.fingerprint
    assert tags["raybench.reading"] == "grid"
    assert tags["raybench.status"] == "complete"
    assert "fewer than 5 segments" in tags["raybench.warnings"]
    assert "0.0351" in tags["mlflow.note.content"]
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", "d" * 36)
    assert artifacts(tracker) == ["fig1.png"]
    kept = list((out / "mlartifacts").rglob("fig1.png"))
    assert [path.read_bytes() for path in kept] == [b"png"]


def test_no_credential_reaches_the_store(tracker: Tracker, out: Path) -> None:
    start(tracker)
    tracker.fail(KEY, "GET https://me:hunter2@host/x?token=abc123 failed")
    (run,) = runs(tracker)
    assert run.data.params["dataset"] == "folder:s3://***@bucket/digits?split=test"
    stored = (out / "mlflow.db").read_bytes()
    for secret in (b"AKIA1", b"s3cr", b"hunter2", b"abc123"):
        assert secret not in stored


def test_a_refresh_updates_the_same_run(tracker: Tracker, out: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    for content, ri in (("old", 3.5), ("new", None)):
        table.write_text(content)
        again = open_tracker(None, out, "digits")
        start(again)
        again.finish(dataclasses.replace(ROW, ri=ri), [table])
    (run,) = runs(tracker)
    assert history(tracker, "score") == [(0, 0.0351)]
    assert run.data.tags["raybench.withdrawn"] == "ri"
    assert len(run.inputs.dataset_inputs) == 1
    assert artifacts(tracker) == ["scores.csv"]
    (kept,) = (out / "mlartifacts").rglob("scores.csv")
    assert kept.read_text() == "new"


def test_a_changed_score_replaces_the_published_one(tracker: Tracker) -> None:
    for score in (0.0351, 0.0200):
        start(tracker)
        tracker.finish(dataclasses.replace(ROW, score=score))
    (run,) = runs(tracker)
    assert run.data.metrics["score"] == 0.0200


def test_the_oldest_of_several_runs_is_taken(tracker: Tracker) -> None:
    client = tracker._client
    made = [
        client.create_run(tracker._experiment, start_time=moment, tags={"raybench.key": KEY})
        for moment in (3000, 1000, 2000)
    ]
    start(tracker)
    status = [client.get_run(run.info.run_id).info.status for run in made]
    assert [client.get_run(run.info.run_id).data.params != {} for run in made] == [
        False,
        True,
        False,
    ]
    assert status[1] == "RUNNING"
    assert len(runs(tracker)) == 3


def test_a_killed_run_resumes_as_itself(tracker: Tracker, out: Path) -> None:
    start(tracker)
    tracker.step(KEY, 1, {"images_done": 32})
    began = time.monotonic()
    tracker.kill([KEY, "never started"])
    assert time.monotonic() - began < 1.5
    (killed,) = runs(tracker)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["raybench.status"] == "killed"
    assert killed.data.tags["raybench.progress"] == "images done 32"

    resumed = open_tracker(None, out, "digits")
    start(resumed)
    (running,) = runs(tracker)
    assert running.info.run_id == killed.info.run_id
    assert running.info.status == "RUNNING"
    assert running.data.tags["raybench.status"] == "running"
    resumed.finish(ROW)
    (finished,) = runs(tracker)
    assert (finished.info.run_id, finished.info.status) == (killed.info.run_id, "FINISHED")
    assert finished.info.end_time >= killed.info.end_time


def test_a_failed_run_says_why_until_it_is_taken_up_again(tracker: Tracker) -> None:
    start(tracker)
    tracker.fail(KEY, "out of memory " + "x" * 9000)
    (run,) = runs(tracker)
    assert run.info.status == "FAILED"
    assert run.data.tags["raybench.error"].startswith("out of memory")
    assert run.data.tags["raybench.error"].endswith("…")
    start(tracker)
    (run,) = runs(tracker)
    assert "raybench.error" not in run.data.tags
    assert run.info.status == "RUNNING"


def test_a_changed_param_is_refused_and_a_missing_one_added(tracker: Tracker) -> None:
    start(tracker)
    with pytest.raises(StoreError, match=r"records samples='1000', refused '500'.*new key"):
        start(tracker, samples=500)
    start(tracker, added="later")
    (run,) = runs(tracker)
    assert run.data.params["samples"] == "1000"
    assert run.data.params["added"] == "later"
    assert tracker.unavailable is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_metrics_are_refused(tracker: Tracker, value: float) -> None:
    start(tracker)
    with pytest.raises(StoreError, match="r2 is"):
        tracker.finish(dataclasses.replace(ROW, r2=value))
    with pytest.raises(StoreError, match="score_so_far is"):
        tracker.step(KEY, 1, {"score_so_far": value})
    (run,) = runs(tracker)
    assert run.data.metrics == {}


def test_metric_names_mlflow_refuses_are_caught_here(tracker: Tracker) -> None:
    start(tracker)
    with pytest.raises(AssertionError, match=r"done\?"):
        tracker.step(KEY, 1, {"done?": 1.0})
    with pytest.raises(AssertionError, match="published at the end"):
        tracker.step(KEY, 1, {"score": 1.0})


def test_progress_shows_while_a_run_lasts(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tracker)
    sent: list[str] = []
    set_tag = tracker._client.set_tag

    def counted(run_id: str, name: str, value: str) -> None:
        sent.append(value)
        set_tag(run_id, name, value)

    monkeypatch.setattr(tracker._client, "set_tag", counted)
    monkeypatch.setattr("raybench.sinks.mlflow._FLUSH_S", 3600.0)
    for step in range(1, 950):
        tracker.step(KEY, step, {"images_done": float(step), "images_unscored": 0.0})
    assert sent == []
    monkeypatch.setattr("raybench.sinks.mlflow._FLUSH_S", 0.0)
    tracker.step(KEY, 950, {"images_done": 9500.0, "images_unscored": 0.0})
    assert sent == ["images done 9,500, images unscored 0"]
    (run,) = runs(tracker)
    assert run.data.tags["raybench.progress"] == sent[0]
    assert run.data.metrics == {}
    tracker.finish(ROW)
    assert len(history(tracker, "images_done")) == 950
    (run,) = runs(tracker)
    assert run.data.tags["raybench.progress"] == "complete"


def test_the_ranking_number_is_the_first_metric(tracker: Tracker) -> None:
    """MLflow's Compare page opens on the first metric that was logged."""
    start(tracker)
    tracker.step(KEY, 1, {"images_done": 32})
    tracker.finish(ROW)
    (run,) = runs(tracker)
    found = list(tracker._client.get_run(run.info.run_id).data.metrics)
    assert found[0] == "score"
    assert found.index("normalised") < found.index("n") < found.index("images_done")


def test_how_a_run_went_follows_the_ranking_number(tracker: Tracker) -> None:
    start(tracker)
    for step in (4, 9):
        tracker.step(KEY, step, {"images_done": 10.0 * step})
        tracker.record(KEY, step, {"shards_done": step, "model_share": 0.25})
    (run,) = runs(tracker)
    assert run.data.metrics == {}
    tracker.finish(ROW)
    assert history(tracker, "shards_done") == [(4, 4.0), (9, 9.0)]
    assert history(tracker, "model_share") == [(4, 0.25), (9, 0.25)]
    (run,) = runs(tracker)
    found = list(tracker._client.get_run(run.info.run_id).data.metrics)
    assert found[0] == "score"
    assert found.index("n") < found.index("shards_done")
    assert "raybench.run" not in run.data.tags


@pytest.mark.parametrize("name", ["score", "images_per_second", "robust_accuracy"])
def test_how_a_run_went_never_hides_a_published_number(tracker: Tracker, name: str) -> None:
    start(tracker)
    for keep in (tracker.step, tracker.record):
        with pytest.raises(AssertionError, match=f"published at the end only.*{name}"):
            keep(KEY, 4, {name: 1.0})


def test_a_run_that_fails_says_how_it_went_in_a_tag(tracker: Tracker) -> None:
    """As metrics they would come before the score of the run that goes on."""
    start(tracker)
    tracker.record(KEY, 4, {"shards_done": 4, "shards_failed": 2})
    tracker.fail(KEY, "2 shards failed")
    (run,) = runs(tracker)
    assert run.data.metrics == {}
    assert run.data.tags["raybench.run"] == "shards done 4, shards failed 2"
    start(tracker)
    tracker.finish(ROW)
    assert history(tracker, "shards_done") == []


def test_a_run_is_known_by_its_id_while_it_is_open(tracker: Tracker) -> None:
    assert tracker.run_id(KEY) is None
    start(tracker)
    (run,) = runs(tracker)
    assert tracker.run_id(KEY) == run.info.run_id


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 12_345])
def test_a_thinned_series_is_even_and_ends_with_the_last(count: int) -> None:
    for most in (8, 9):
        series: Thinned[int] = Thinned(most)
        for value in range(count):
            series.add(value)
        kept = series.all()
        assert kept[0] == 0
        assert kept[-1] == count - 1
        assert min(count, most // 2) <= len(kept) <= most + 1
        gaps = {after - before for before, after in itertools.pairwise(kept[:-1])}
        assert len(gaps) <= 1


def test_the_flip_radius_is_no_brittle_score(tracker: Tracker) -> None:
    start(tracker)
    reading = "flip-radius?samples=1000"
    radius = dataclasses.replace(ROW, reading=reading, score=0.49, normalised_by=reading, rank=2)
    tracker.finish(radius)
    (run,) = runs(tracker)
    assert "score" not in run.data.metrics
    assert run.data.metrics["normalised"] == 0.49
    assert run.data.tags["mlflow.note.content"].startswith("rank **2**, normalised **0.49**")
    assert "brittle-score" not in run.data.tags["mlflow.note.content"]


def test_an_experiment_opens_on_its_runs(tracker: Tracker) -> None:
    tags = tracker._client.get_experiment(tracker._experiment).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "Compare" in tags["mlflow.note.content"]


def test_a_store_that_goes_away_costs_one_warning(
    out: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    tracker = open_tracker(None, out, "digits", warn=said.append)
    start(tracker)
    (out / "mlflow.db").write_bytes(b"not a database any more" * 100)
    tracker.step(KEY, 1, {"images_done": 1.0})
    tracker.finish(ROW)
    tracker.fail(KEY, "x")
    tracker.kill([KEY])
    assert tracker.unavailable is not None
    assert len(said) == 1
    assert "raybench sync" in said[0]
    assert capfd.readouterr() == ("", "")


def test_a_deleted_experiment_is_named(tracker: Tracker, out: Path) -> None:
    tracker._client.delete_experiment(tracker._experiment)
    with pytest.raises(TrackingUnavailable, match="restore --experiment-id"):
        open_tracker(None, out, "digits")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "ftp://host", "/tmp/x"])
def test_uris_mlflow_cannot_use_are_the_users_mistake(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected http"):
        open_tracker(uri, tmp_path, "e")


def test_a_question_mark_in_the_output_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose another output folder"):
        open_tracker(None, tmp_path / "why?", "e")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"text, and long enough to have a header" * 10)
    with pytest.raises(TrackingUnavailable, match="not a database"):
        open_tracker(None, tmp_path, "e")


def test_a_database_server_that_refuses_is_unavailable_at_once(
    closed_port: int, tmp_path: Path
) -> None:
    began = time.monotonic()
    with pytest.raises(TrackingUnavailable) as caught:
        open_tracker(f"postgresql://me:hunter2@127.0.0.1:{closed_port}/db", tmp_path, "e")
    assert time.monotonic() - began < 5
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def serving(reply: bytes | None) -> Iterator[int]:
    """Serve on a port: `reply` to every request, or (None) accept and never answer."""
    stop = threading.Event()
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = server.accept()
                    connection.settimeout(None)
                    held.append(connection)
                    if reply is not None:
                        connection.recv(65536)
                        connection.sendall(reply)
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            thread.join()
            for connection in held:
                connection.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nOK"
SICK = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
SHUT = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("reply", [None, SICK, SHUT, OK], ids=["hangs", "503", "401", "not-mlflow"])
def test_a_server_that_cannot_serve_is_unavailable_within_seconds(
    reply: bytes | None, tmp_path: Path
) -> None:
    with serving(reply) as port:
        began = time.monotonic()
        with pytest.raises(TrackingUnavailable, match=r"raybench sync") as caught:
            open_tracker(f"http://me:hunter2@127.0.0.1:{port}", tmp_path, "e")
    assert time.monotonic() - began < 5
    assert "hunter2" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_server_that_refuses_is_unavailable_at_once(closed_port: int, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TrackingUnavailable):
        open_tracker(f"http://127.0.0.1:{closed_port}", tmp_path, "e")
    assert time.monotonic() - began < 5


def test_a_server_that_hangs_later_is_given_up_in_the_grace_period(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    said: list[str] = []
    with serving(None) as port:
        uri = f"http://127.0.0.1:{port}"
        tracker = Tracker(MlflowClient(tracking_uri=uri), "1", uri, tmp_path, said.append)
        tracker._runs = {key * 64: key * 32 for key in "abcdef"}
        began = time.monotonic()
        tracker.kill(list(tracker._runs))
        assert time.monotonic() - began < 2.5
    assert len(said) == 1
    assert capfd.readouterr() == ("", "")


def test_the_environment_is_left_as_it_was(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    start(tracker)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:pass@host:5000/p", "https://***@host:5000/p"),
        ("https://token@host/p", "https://***@host/p"),
        ("postgresql://u:p%40ss@db/x", "postgresql://***@db/x"),
        ("folder:s3://AK:se/cr/et@bucket/a", "folder:s3://***@bucket/a"),
        ("http://host:5000/a@b/c", "http://host:5000/a@b/c"),
        ("s3://bucket/name@x", "s3://bucket/name@x"),
        ("http://h/x?token=abc&n=3", "http://h/x?token=***&n=3"),
        ("http://h/x?n=3&X-Amz-Signature=ab%2Fc&m=1", "http://h/x?n=3&X-Amz-Signature=***&m=1"),
        (
            "parquet:s3://b/x%3Faccess_key=AK%26region=eu?n=1",
            "parquet:s3://b/x%3Faccess_key=***%26region=eu?n=1",
        ),
        ("a://u:p@h failed, b://v:q@k too", "a://***@h failed, b://***@k too"),
        ("timm:net?tokenizer=b&author=me", "timm:net?tokenizer=b&author=me"),
        ("digits?n=100&split=test", "digits?n=100&split=test"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


def test_ui_command() -> None:
    local = ui_command(None, Path("my results"))
    assert local.startswith("MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false ")
    assert local.endswith(
        " ui --host 127.0.0.1 --allowed-hosts 'localhost:*,127.0.0.1:*' "
        "--backend-store-uri 'sqlite:///my results/mlflow.db'"
    )
    assert ui_command("https://u:p@host", Path("x")) == "python -m webbrowser 'https://***@host'"


def test_an_address_from_the_environment_is_used_where_none_is_given(
    tmp_path: Path, template: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/ours.db")
    shutil.copyfile(template[0], tmp_path / "ours.db")
    tracker = open_tracker(None, tmp_path / "out", "digits")
    assert tracker.uri == f"sqlite:///{tmp_path}/ours.db"
    assert not (tmp_path / "out" / "mlflow.db").exists()
    assert f"sqlite:///{tmp_path}/ours.db" in ui_command(None, tmp_path / "out")
    given = f"sqlite:///{tmp_path}/given.db"
    assert chosen_uri(given) == given
    for nothing in ("", " "):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", nothing)
        assert chosen_uri(None) is None
        assert chosen_uri("") is None


def test_an_address_from_the_environment_that_no_store_has_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(InputError, match=r"tracking URI './mlruns': expected .*MLflow 3 refuses"):
        open_tracker(None, tmp_path, "digits")


@pytest.mark.slow
def test_a_real_server_then_its_death(tmp_path: Path, closed_port: int) -> None:
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1",
        "--port", str(closed_port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination", str(tmp_path / "kept"),
    ]  # fmt: skip
    uri = f"http://127.0.0.1:{closed_port}"
    said: list[str] = []
    figure = tmp_path / "fig1.svg"
    figure.write_text("<svg/>")
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with contextlib.suppress(requests.RequestException):
                    if requests.get(f"{uri}/health", timeout=2).ok:
                        break
                time.sleep(0.5)
            # Its first answers take seconds, whatever /health says; a tracker waits for three.
            for call in ("experiments/get-by-name?experiment_name=Default", "experiments/list"):
                requests.get(f"{uri}/api/2.0/mlflow/{call}", timeout=60)
            tracker = open_tracker(uri, tmp_path / "out", "digits", warn=said.append)
            start(tracker)
            tracker.step(KEY, 1, {"images_done": 32.0})
            tracker.kill([KEY])
            assert runs(tracker)[0].info.status == "KILLED"
            start(tracker)
            tracker.finish(ROW, [figure])
            (run,) = runs(tracker)
            assert (run.info.status, run.data.metrics["score"]) == ("FINISHED", 0.0351)
            assert artifacts(tracker) == ["fig1.svg"]
            assert said == []
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)
        start(tracker, "b" * 64)
        tracker.kill([KEY])
    assert len(said) == 1
