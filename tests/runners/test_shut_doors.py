"""A cluster with a token: who has it joins, who has not is told so, and how to mend it."""

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

TOKEN = secrets.token_hex(24)

JOIN = """
import sys
from raybench.core.errors import InputError
from raybench.core.work import Resources
from raybench.runners.ray import ray_session
try:
    with ray_session(Resources(address=sys.argv[1] or None)):
        print("joined")
except InputError as error:
    print("refused:", error)
"""


@dataclass(frozen=True)
class Head:
    address: str
    folder: Path
    output: Path


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBENCH_"))}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | more


def free_port() -> int:
    """Return a port below those that Ray gives its workers (10002 to 19999)."""
    for port in range(7000 + os.getpid() % 2000, 10000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        output = folder / "output"
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}",
            "--num-cpus=1", "--include-dashboard=false", f"--temp-dir={folder}", "--block",
            "--object-store-memory=83886080",
        ]  # fmt: skip
        with output.open("w") as stream:
            process = subprocess.Popen(
                command,
                env=environment(
                    folder,
                    RAY_AUTH_MODE="token",
                    RAY_AUTH_TOKEN=TOKEN,
                    RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="0",
                ),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + 90
            while "Ray runtime started" not in output.read_text():
                assert process.poll() is None, output.read_text()
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.2)
            yield Head(f"127.0.0.1:{port}", folder, output)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)


def join(head: Head, home: Path, address: str | None = None, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", JOIN, head.address if address is None else address],
        env=environment(home, **more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_with_the_token_one_joins(head: Head, tmp_path: Path) -> None:
    assert join(head, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) == "joined\n"
    (tmp_path / "token").write_text(TOKEN)
    path = str(tmp_path / "token")
    assert join(head, tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=path) == "joined\n"


@pytest.mark.parametrize(
    ("given", "now"),
    [
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"},
            r"RAY_AUTH_MODE=token \(now token\) and the token in RAY_AUTH_TOKEN \(now set\)",
        ),
        (
            {"RAY_AUTH_MODE": "token"},
            r"\(now token\) and the token in RAY_AUTH_TOKEN \(now not set",
        ),
        ({"RAY_AUTH_MODE": "disabled"}, r"RAY_AUTH_MODE=token \(now disabled\)"),
        ({"RAY_AUTH_TOKEN": TOKEN}, r"RAY_AUTH_MODE=token \(now not set\)"),
        ({}, r"RAY_AUTH_MODE=token \(now not set\)"),
    ],
)
def test_without_it_one_is_told_so_within_seconds(
    head: Head, tmp_path: Path, given: dict[str, str], now: str
) -> None:
    begun = time.monotonic()
    said = join(head, tmp_path, **given)
    assert said.startswith(
        f"refused: Ray at the address {head.address!r} does not let this process in ("
    )
    assert re.search(now, said), said
    assert "no Ray cluster could be joined" not in said
    assert "wrong" not in said
    assert TOKEN not in said
    assert time.monotonic() - begun < 20


def test_the_cluster_that_was_left_here_asks_too(head: Head, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text(head.address)
        said = join(head, tmp_path, address="", RAY_AUTH_MODE="disabled", RAY_TMPDIR=folder)
    left = f"the cluster that 'ray start' left here, {head.address!r}"
    assert said.startswith(f"refused: Ray at {left} does not let this process in (")
