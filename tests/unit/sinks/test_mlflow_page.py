"""MLflow's page as `make ui` and a run's last line start it: a door for this machine alone."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from raybench.sinks.mlflow import open_tracker, ui_command

ROOT = Path(__file__).resolve().parents[3]


@contextmanager
def served(command: list[str], port: int, log: Path) -> Iterator[str]:
    """Run `command`, and end it with all it started; yields the page's address once it answers."""
    with log.open("w") as said:
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).ok:
                    yield f"http://127.0.0.1:{port}"
                    return
            time.sleep(0.2)
        raise AssertionError(f"no answer: {log.read_text()[-2000:]}")
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(server.pid, number)
                server.wait(20)


def make() -> str:
    found = shutil.which("make")
    if found is None:
        pytest.skip("no make here")
    return found


def test_make_ui_and_a_runs_last_line_start_the_same_server() -> None:
    shown = subprocess.run(
        [make(), "-n", "-o", "setup", "ui"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout.replace("\\\n", " ")
    for text in (shown, ui_command(None, Path("demo"))):
        words = shlex.split(text)
        assert "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false" in words
        for option, value in (
            ("--backend-store-uri", "sqlite:///demo/mlflow.db"),
            ("--host", "127.0.0.1"),
            ("--allowed-hosts", "localhost:*,127.0.0.1:*"),
        ):
            assert words[words.index(option) + 1] == value


@pytest.mark.slow
def test_the_page_answers_to_its_own_name_alone_and_runs_no_jobs(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    open_tracker(None, out, "digits")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [make(), "-o", "setup", "ui", f"DEMO={out}", f"UI_PORT={port}"]
    with served(command, port, tmp_path / "log") as uri:
        ask = f"{uri}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits"
        assert requests.get(ask, timeout=60).json()["experiment"]["name"] == "digits"
        assert requests.get(ask, headers={"Host": f"localhost:{port}"}, timeout=60).ok
        for host in ("evil.example", f"evil.example:{port}", f"10.0.0.1:{port}", "192.168.1.9"):
            answer = requests.get(ask, headers={"Host": host}, timeout=60)
            assert answer.status_code == 403, host
            assert "Invalid Host header" in answer.text
        # The address of this machine in its network, where it has one: nobody listens there.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            with contextlib.suppress(OSError):
                probe.connect(("192.0.2.1", 9))
            outward = probe.getsockname()[0]
        if outward not in ("0.0.0.0", "127.0.0.1"):
            with pytest.raises(requests.ConnectionError):
                requests.get(f"http://{outward}:{port}/health", timeout=5)
        job = {"job_name": "optimize_prompts", "params": {}}
        refused = requests.post(f"{uri}/ajax-api/3.0/jobs/", json=job, timeout=60)
        assert "job execution feature is not enabled" in refused.text
