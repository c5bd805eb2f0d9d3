"""``ray job submit`` of a job script against ``ray start --head``: run, refuse, stop, resume."""

import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray.job_submission import JobSubmissionClient
from score_material import REPOSITORY, make_material, part_bytes, stored_tables
from torch import nn

from raybench.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

SCRIPT = "jobs/score_imagenet.py"


@dataclass(frozen=True)
class Head:
    """A cluster of one node with a dashboard, which only holders of its token may use."""

    url: str
    env: dict[str, str] = field(repr=False)

    def submit(self, name: str, *entrypoint: str, wait: bool = True) -> tuple[int, str]:
        """Return the exit code of ``ray job submit`` and all it printed."""
        flags = ["--submission-id", name, "--working-dir", ".", *([] if wait else ["--no-wait"])]
        done = subprocess.run(
            ["ray", "job", "submit", *flags, "--", *entrypoint],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            cwd=REPOSITORY,
            env=self.env,
        )
        return done.returncode, done.stdout + done.stderr

    @cached_property
    def client(self) -> JobSubmissionClient:
        token = self.env["RAY_AUTH_TOKEN"]
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {token}"})

    def job(self, name: str) -> tuple[str, int | None]:
        """Return the status of a job and the exit code of its driver."""
        info = self.client.get_job_info(name)
        return info.status.value, info.driver_exit_code


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="rb", dir="/tmp"))
    port, dashboard, agent, client = free_ports(4)
    url = f"http://127.0.0.1:{dashboard}"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": url,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        f"--object-store-memory={100 << 20}",
    ]  # fmt: skip
    with (folder / "start.log").open("wb") as log:
        started = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=env)
    try:
        wait_for(lambda: started.poll() is not None or answers(port, dashboard, agent), 150)
        assert started.poll() is None, (folder / "start.log").read_text()
        yield Head(url, env)
    finally:
        started.terminate()  # it ends what it started; `ray stop` would end every cluster here
        try:
            started.wait(timeout=30)
        finally:
            started.kill()
            for pid in processes_with(f"RAY_TMPDIR={folder}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(*ports: int) -> bool:
    try:
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def processes_with(variable: str) -> set[int]:
    """Return the processes started with an environment variable, NAME=value."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


def wait_for(what: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def parts(out: Path) -> int:
    return len(list(out.rglob("part-*.parquet")))


def statuses(out: Path) -> set[str]:
    with sqlite3.connect(out / "mlflow.db") as database:
        return {row[0] for row in database.execute("select status from runs")}


@pytest.fixture(scope="module")
def photographs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Options that score a network on four images of a small folder of image files."""
    folder = tmp_path_factory.mktemp("photographs")
    images = folder / "images"
    images.mkdir()
    try:
        shared: Path = request.getfixturevalue("shared")
    except pytest.skip.Exception:
        model = f"torchscript:{save_network(folder / 'small.pt')}?shape=3x32x32&classes=5"
        data = f"imagenet:{images}?preprocess=Res32Crop32"
        rng = np.random.default_rng(0)
        for number in range(6):
            pixels = rng.integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.png")
    else:
        network = shared / "checkpoints/imagenet-mobilenet-v1-0.25-128/model.torchscript.pt"
        model = f"torchscript:{network}?shape=3x128x128&classes=1000"
        data = f"imagenet:{images}?preprocess=Res128Crop128"
        for path in sorted((shared / "data/nips17-dev/images").glob("*.png"))[:6]:
            (images / path.name).write_bytes(path.read_bytes())
    return [
        model, "--data", data, "--n", "4", "--samples", "128", "--reading", "grid",
        "--shard-size", "2",
    ]  # fmt: skip


def save_network(path: Path) -> Path:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 5)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, not gone
        torch.jit.script(network).save(str(path))
    return path


@pytest.fixture(scope="module")
def in_process(photographs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("in-process")
    assert main(["score", *photographs, "--out", str(out), "--runner", "local", "--quiet"]) == 0
    assert parts(out) == 2
    return out


@pytest.mark.parametrize("interpreter", [["python"], []], ids=["python", "run-bit"])
def test_a_submitted_job_gives_what_a_local_run_gives(
    head: Head, photographs: list[str], in_process: Path, tmp_path: Path, interpreter: list[str]
) -> None:
    name = f"whole-{len(interpreter)}"
    code, text = head.submit(name, *interpreter, SCRIPT, *photographs, "--out", str(tmp_path))
    assert code == 0, text
    assert head.job(name) == ("SUCCEEDED", 0)
    assert part_bytes(tmp_path) == part_bytes(in_process)
    assert stored_tables(tmp_path) == stored_tables(in_process)
    assert main(["verify", str(tmp_path)]) == 0
    assert statuses(tmp_path) == {"FINISHED"}


def test_a_bad_option_ends_the_driver_with_2(head: Head, tmp_path: Path) -> None:
    entrypoint = ["python", SCRIPT, "--n", "none", "--out", str(tmp_path / "out")]
    code, text = head.submit("bad-option", *entrypoint)
    assert code == 1, text  # Ray's own; the driver's is in the job's status
    assert head.job("bad-option") == ("FAILED", 2)
    assert "Invalid value for '--n'" in text
    assert not (tmp_path / "out").exists()
    assert "already exists" in head.submit("bad-option", *entrypoint)[1]


def test_a_stopped_job_is_killed_in_mlflow_and_resumed_by_the_same_command(
    head: Head, tmp_path: Path
) -> None:
    material = make_material(tmp_path / "material", rounds=60)
    options = [
        *material.models, "--data", material.data, "--n", "24", "--samples", "64",
        "--reading", "grid", "--shard-size", "2",
    ]  # fmt: skip
    expected, out = tmp_path / "expected", tmp_path / "out"
    assert main(["score", *options, "--out", str(expected), "--runner", "local", "--quiet"]) == 0
    # One worker: more of the middle, and the whole of the three seconds of grace is the driver's.
    entrypoint = ["python", SCRIPT, *options, "--out", str(out), "--actors", "1"]
    code, text = head.submit("stopped", *entrypoint, wait=False)
    assert code == 0, text
    wait_for(lambda: parts(out) >= 3)
    # What `ray job stop` asks for, without the seconds that command takes to start.
    assert head.client.stop_job("stopped")
    wait_for(lambda: head.job("stopped")[0] not in ("PENDING", "RUNNING"))
    log = head.client.get_job_logs("stopped")
    assert head.job("stopped")[0] == "STOPPED", log
    assert 3 <= parts(out) < 24, log
    assert statuses(out) == {"KILLED"}, log
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("part-*.parquet")}
    code, text = head.submit("resumed", *entrypoint)
    assert code == 0, text
    assert part_bytes(out) == part_bytes(expected)
    assert stored_tables(out) == stored_tables(expected)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not list(out.rglob("*.tmp"))
    assert statuses(out) == {"FINISHED"}
