"""Whole jobs over models behind HTTP: faults, budgets, restarts and kills change no result."""

import contextlib
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from http_servers import FaultyProxy, Server, count_images, mlflow_route, running, serving
from score_material import REPOSITORY, make_material, stored_tables

from raybench.cli import main
from raybench.core.spec import parse
from raybench.models.http import spent
from raybench.sinks.store import find_manifests, read_manifest

IMAGES, SAMPLES = 6, 64
PROBE = 6 + 6 + 1  # the first check: all images twice, and one alone
NEEDED = IMAGES * SAMPLES + PROBE


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/invocations": mlflow_route()}) as server:
        yield server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow database for all runs here: making one takes seconds."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str


def spec(port: int, **options: object) -> str:
    base = {"protocol": "mlflow", "shape": "1x8x8", "classes": 10, "name": "api", "backoff": 0.01}
    tail = "&".join(f"{name}={value}" for name, value in (base | options).items())
    return f"http://127.0.0.1:{port}/invocations?{tail}"


def arguments(verb: str, out: Path, *models: str) -> list[str]:
    return [
        verb, *models, "--data", "digits", "--n", str(IMAGES), "--samples", str(SAMPLES),
        "--reading", "grid", "--shard-size", "2", "--out", str(out),
    ]  # fmt: skip


def run(store: Path, verb: str, out: Path, *models: str) -> Result:
    """Run the command line in this process and return what it printed."""
    printed, errors = io.StringIO(), io.StringIO()
    more = ["--runner", "local", "--json", "--tracking-uri", f"sqlite:///{store}"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        code = main([*arguments(verb, out, *models), *more])
    return Result(code, printed.getvalue(), errors.getvalue())


def rows(out: Path) -> list[pa.Table]:
    return list(stored_tables(out).values())


def sent(server: Server) -> int:
    return sum(count_images(body) for *_, body in server.seen)


def test_a_score_with_faults_is_the_score_without(
    server: Server, store: Path, tmp_path: Path
) -> None:
    plain = run(store, "score", tmp_path / "plain", spec(server.server_port, batch=16))
    assert plain.code == 0, plain.stderr
    assert sent(server) == NEEDED
    said = f"asked {IMAGES * SAMPLES:,} queries and sent {IMAGES * SAMPLES:,}"
    assert said in plain.stderr
    proxy = FaultyProxy(upstream=server.server_port, seed=2, slow_s=0.8)
    budget = 3 * NEEDED
    with running(proxy.server()) as faulty:
        model = spec(faulty.server_port, batch=16, timeout=0.6, budget=budget)
        faults = run(store, "score", tmp_path / "faults", model)
        assert faults.code == 0, faults.stderr
        assert proxy.faults.total() >= 5
        assert NEEDED < proxy.images <= budget
        assert spent(parse(model)) == (proxy.images, budget)
        assert f"{proxy.images:,} of a budget of {budget:,}" in faults.stderr
    [before], [after] = rows(tmp_path / "plain"), rows(tmp_path / "faults")
    assert before.equals(after)
    [one], [other] = (json.loads(each.stdout)["models"] for each in (plain, faults))
    for name in ("score", "ci_low", "ci_high", "normalised", "corrected", "queries"):
        assert one[name] == other[name], name


def test_a_spent_budget_stops_one_model_and_a_larger_one_goes_on(
    server: Server, store: Path, tmp_path: Path
) -> None:
    local = make_material(tmp_path / "material").models[0].replace("classes=3", "classes=3&name=b")
    out, port = tmp_path / "out", server.server_port
    first = run(store, "score", out, spec(port, budget=200, version="1"), local)
    assert first.code == 4, first.stderr
    assert "budget spent: api has 2 shards left" in first.stderr
    assert "run the same command with a larger budget=" in first.stderr
    assert sent(server) <= 200
    status = {row["model"]: row for row in json.loads(first.stdout)["models"]}
    assert (status["api"]["status"], status["b"]["status"]) == ("incomplete", "complete")
    assert "of 200 queries are spent" in status["api"]["error"]
    manifests = {
        str(one.measurement["model"]["name"]): one
        for one in map(read_manifest, find_manifests(out))
    }
    assert "of 200 queries are spent" in manifests["api"].partial
    assert (len(manifests["api"].parts), manifests["api"].failures) == (1, {})
    assert (manifests["b"].partial, manifests["b"].complete) == ("", True)
    assert mlflow_status(store, manifests["api"].measurement["key"]) == ("KILLED", "partial")

    kept = sent(server)
    again = run(store, "score", out, spec(port, budget=200, version="1"), local)
    assert again.code == 4
    assert sent(server) == kept  # not one question more, not even the first check

    second = run(store, "score", out, spec(port, budget=1000, version="1"), local)
    assert second.code == 0, second.stderr
    assert sent(server) == NEEDED  # nothing was paid twice
    [whole] = [one for one in map(read_manifest, find_manifests(out)) if one.parts.keys() and
               one.measurement["model"]["name"] == "api"]  # fmt: skip
    assert (whole.partial, whole.complete) == ("", True)
    assert mlflow_status(store, whole.measurement["key"]) == ("FINISHED", "complete")
    reference = run(store, "score", tmp_path / "ref", spec(port, version="1", cache="false"), local)
    assert reference.code == 0
    for before, after in zip(rows(out), rows(tmp_path / "ref"), strict=True):
        assert before.equals(after)


def mlflow_status(store: Path, key: str) -> tuple[str, str]:
    with contextlib.closing(sqlite3.connect(store)) as file:
        [(run_id,)] = file.execute(
            "SELECT run_uuid FROM tags WHERE key = 'raybench.key' AND value = ?", (key,)
        ).fetchall()
        [(state,)] = file.execute(
            "SELECT status FROM runs WHERE run_uuid = ?", (run_id,)
        ).fetchall()
        [(status,)] = file.execute(
            "SELECT value FROM tags WHERE key = 'raybench.status' AND run_uuid = ?", (run_id,)
        ).fetchall()
    return state, status


def test_a_budget_that_does_not_even_pay_the_check_is_refused(
    server: Server, store: Path, tmp_path: Path
) -> None:
    result = run(store, "score", tmp_path / "out", spec(server.server_port, budget=10))
    assert result.code == 4
    assert "raybench: api: 6 of 10 queries are spent" in result.stderr
    assert sent(server) == 6


def test_a_plan_pays_for_its_pilot_alone_and_the_run_goes_on(
    server: Server, store: Path, tmp_path: Path
) -> None:
    out, port = tmp_path / "out", server.server_port
    spent_plan = run(store, "plan", out, spec(port, budget=100))
    assert spent_plan.code == 4
    assert "budget spent: api:" in spent_plan.stderr
    planned = run(store, "plan", out, spec(port, budget=1000))
    assert planned.code == 0, planned.stderr
    forecast = json.loads(planned.stdout)
    assert forecast["rows"][0]["queries_left"] == NEEDED - sent(server)
    scored = run(store, "score", out, spec(port, budget=1000))
    assert scored.code == 0, scored.stderr
    assert sent(server) == NEEDED


def test_wrong_input_is_told_without_credentials(store: Path, tmp_path: Path) -> None:
    model = "https://anna:hunter2@api.example.com/x?protocol=mlflow&shape=1x8x8&classes=10"
    for text in (model, "https://api.example.com/x?protocol=mlflow&token=hunter2", f"{model}&odd"):
        result = run(store, "score", tmp_path / "out", text)
        assert result.code == 2
        assert "hunter2" not in result.stderr + result.stdout
    down = run(store, "score", tmp_path / "out", spec(9, shape="1x8x8"))
    assert down.code == 2
    assert "is the server running at http://127.0.0.1:9/invocations?" in down.stderr


def slow_route(seconds: float):
    answer = mlflow_route()

    def slow(body: bytes, headers: dict[str, str]):
        time.sleep(seconds)
        return answer(body, headers)

    return slow


def start(out: Path, model: str, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "raybench", *arguments("score", out, model), *more]
    return subprocess.Popen(
        command, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def wait_until(server: Server, queries: int, child: subprocess.Popen[bytes]) -> None:
    began = time.monotonic()
    while sent(server) < queries:
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - began < 120
        time.sleep(0.02)


@pytest.mark.slow
def test_kills_never_exceed_the_budget_nor_pay_for_what_was_answered(
    server: Server, store: Path, tmp_path: Path
) -> None:
    server.routes["/invocations"] = slow_route(0.1)
    out = tmp_path / "out"
    in_flight = 4 * 8  # requests of 8, four at a time, may be lost in a kill
    model = spec(server.server_port, batch=8, budget=NEEDED + 2 * in_flight)
    for queries in (PROBE + 60, PROBE + 200):
        child = start(out, model, "--runner", "local", "--tracking-uri", f"sqlite:///{store}")
        wait_until(server, queries, child)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        time.sleep(0.3)
        counted = spent(parse(model))[0]
        assert queries <= sent(server) <= counted <= NEEDED + 2 * in_flight
    done = run(store, "score", out, model)
    assert done.code == 0, done.stderr
    assert sent(server) <= spent(parse(model))[0] <= NEEDED + 2 * in_flight
    server.routes["/invocations"] = mlflow_route()
    fresh = spec(server.server_port, batch=8, cache="false")
    assert run(store, "score", tmp_path / "fresh", fresh).code == 0
    assert rows(out)[0].equals(rows(tmp_path / "fresh")[0])


@pytest.mark.ray
@pytest.mark.slow
def test_workers_share_the_budget_exactly(server: Server, store: Path, tmp_path: Path) -> None:
    server.routes["/invocations"] = slow_route(0.05)
    out = tmp_path / "out"
    uri = ("--tracking-uri", f"sqlite:///{store}", "--address", "local", "--actors", "2")
    for budget, code in ((250, 4), (NEEDED + 64, 0)):
        model = spec(server.server_port, batch=8, budget=budget)
        child = start(out, model, *uri)
        assert child.wait(timeout=400) == code
        assert sent(server) <= budget
        assert spent(parse(model))[0] == sent(server)
    assert sent(server) == NEEDED
    server.routes["/invocations"] = mlflow_route()
    fresh = spec(server.server_port, batch=8, cache="false")
    assert run(store, "score", tmp_path / "fresh", fresh).code == 0
    assert rows(out)[0].equals(rows(tmp_path / "fresh")[0])
