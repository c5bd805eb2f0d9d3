"""The doors of what is really started: who may ask Ray for what, and where it listens."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.render import render
from cluster.values import ROOT, make_values

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TOKEN = "5ec4e7" * 8
VENV = Path(sys.executable).parents[1]

SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
case "$2" in
  hostnames) echo localhost; echo localhost ;;
  job) echo "JobState=RUNNING" ;;
  *) echo "$*" >> "$HOME/requeued" ;;
esac
"""


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str
    port: int
    dashboard_port: int
    agent_port: int


def free_ports(number: int) -> list[int]:
    """Return ports below those that Ray gives its workers (10002 to 19999)."""
    found = []
    for port in range(7000 + os.getpid() % 2000, 10000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == number:
            return found
    raise AssertionError("no free ports")


def home_with(folder: Path, token: str | None) -> Path:
    """Make a home as the launcher leaves it on a node."""
    (folder / ".ray").mkdir(parents=True)
    (folder / "raybench-venv").symlink_to(VENV)
    if token is not None:
        (folder / ".ray" / "auth_token").write_text(token)
        (folder / ".ray" / "auth_token").chmod(0o600)
    return folder


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RAYBENCH_"))}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | more


def end(process: subprocess.Popen[Any], mark: str) -> None:
    """End a process with all that it started: its group, then whoever still names `mark`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            continue
    for entry in Path("/proc").iterdir():
        try:
            named = entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if named and int(entry.name) != os.getpid():
            os.kill(int(entry.name), signal.SIGKILL)


def head_command(cloud: str, port: int) -> str:
    """Return the command that the launcher runs on the head, without its cloud and on `port`."""
    values = make_values(yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text()))
    config = yaml.safe_load(render(values)[f"{cloud}/cluster.yaml"])
    command = str(config["head_start_ray_commands"][-1])
    for taken in (
        " --autoscaling-config=~/ray_bootstrap_config.yaml",
        " --object-manager-port=8076",
    ):
        assert taken in command
        command = command.replace(taken, "")
    drain = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=25"
    assert drain in command
    command = command.replace(drain, drain.replace("25", "1"))  # nothing here is worth a wait
    return command.replace("--port=6379", f"--port={port}")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("doors")
    port, dashboard, agent, client = free_ports(4)
    temp = f"/tmp/rb-doors-{os.getpid()}"  # sockets below it must fit in 107 characters
    command = head_command("aws", port) + (
        f" --dashboard-port={dashboard} --dashboard-agent-listen-port={agent}"
        f" --ray-client-server-port={client} --temp-dir={temp} --block"
    )
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            env=environment(home_with(folder / "home", TOKEN)),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        found = Head(
            address=f"127.0.0.1:{port}",
            dashboard=f"http://127.0.0.1:{dashboard}",
            port=port,
            dashboard_port=dashboard,
            agent_port=agent,
        )
        try:
            for url in (
                f"{found.dashboard}/api/gcs_healthz",
                f"http://127.0.0.1:{agent}/api/healthz",
            ):
                wait_for(url, process, folder / "output")
            yield found
        finally:
            end(process, temp)
            subprocess.run(["rm", "-rf", temp], check=True, timeout=60)


def wait_for(url: str, process: subprocess.Popen[Any], output: Path) -> None:
    deadline = time.monotonic() + 180
    while status(url) != 200:
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.5)


def status(url: str, token: str | None = None) -> int | None:
    """Return the HTTP status, or None where nobody listens."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as r:
            return int(r.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def listening(port: int) -> set[str]:
    """Return the local addresses (hex, as the kernel prints them) that listen on `port`."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rpartition(":")[2], 16) == port:
                found.add(address.rpartition(":")[0])
    return found


@pytest.mark.parametrize("path", ["/api/jobs/", "/nodes?view=summary", "/api/cluster_status"])
def test_the_dashboard_asks_for_the_token(head: Head, path: str) -> None:
    url = head.dashboard + path
    assert [status(url), status(url, "wrong"), status(url, TOKEN)] == [401, 403, 200]


def test_nobody_sends_a_job_without_the_token(head: Head) -> None:
    def post(token: str | None) -> int:
        request = urllib.request.Request(
            f"{head.dashboard}/api/jobs/",
            data=b'{"entrypoint": "true"}',
            headers={"Content-Type": "application/json"}
            | ({"Authorization": f"Bearer {token}"} if token else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert [post(None), post("wrong"), post(TOKEN)] == [401, 403, 200]


def test_the_nodes_agent_asks_too_but_for_its_health(head: Head) -> None:
    agent = f"http://127.0.0.1:{head.agent_port}"
    assert status(f"{agent}/api/healthz") == 200
    assert [status(f"{agent}/logs"), status(f"{agent}/logs", "wrong")] == [401, 403]


def test_where_ray_listens(head: Head) -> None:
    assert listening(head.dashboard_port) == {"0100007F"}
    # The control port is open on every interface, which is why README.md has a firewall.
    assert listening(head.port) & {"00000000", 32 * "0"}


JOIN = """
import ray
ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
print("nodes", len(ray.nodes()))
"""


@pytest.mark.parametrize(("token", "joins"), [(TOKEN, True), ("wrong", False), (None, False)])
def test_drivers_join_with_the_token_only(
    head: Head, tmp_path: Path, token: str | None, joins: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOIN.format(address=head.address)],
        env=environment(home_with(tmp_path / "home", token), RAY_AUTH_MODE="token"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ("nodes 1" in done.stdout) is joins, done.stderr
    assert (done.returncode == 0) is joins
    if not joins:
        assert "token" in done.stderr.lower()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_does_not_start_without_a_token(tmp_path: Path, cloud: str) -> None:
    temp = f"/tmp/rb-none-{os.getpid()}"
    (port,) = free_ports(1)
    done = subprocess.run(
        ["bash", "-c", f"{head_command(cloud, port)} --temp-dir={temp}"],
        env=environment(home_with(tmp_path / "home", None)),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "AuthenticationError" in done.stderr
    assert not listening(port)


def test_the_slurm_script_scores_on_two_nodes(tmp_path: Path) -> None:
    """Real Ray and the real job; only Slurm is a stand-in, and both nodes are this machine."""
    checkout = tmp_path / "checkout"
    (checkout / "cluster").mkdir(parents=True)
    for name in ("raybench", "jobs", "cluster/run.sh"):
        (checkout / name).symlink_to(ROOT / name)
    home = home_with(tmp_path / "home", None)
    for name, body in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = home / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
        path.chmod(0o755)
    tree = yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text())
    tree["workers"] |= {"max": 2, "cpus": 1, "gpus": 0}
    tree["job"] |= {"script": "jobs/score_digits.py", "data": "digits", "n": 32, "samples": 64}
    tree["job"] |= {"cpus_per_actor": 1, "gpus_per_actor": 0, "out": "{root}/results/digits"}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    tree["slurm"] |= {"root": str(scratch), "checkout": str(checkout), "venv": str(VENV)}
    files = render(make_values(tree))
    for name in ("slurm/job.yaml", "slurm/raybench.sbatch"):
        path = checkout / "cluster" / "rendered" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[name])
    job_id = 10_000_000 + os.getpid()
    process = subprocess.Popen(
        ["bash", str(path), "zoo:mlp2", "--experiment", "slurm"],
        env=environment(
            home,
            PATH=f"{home}/bin:{os.environ['PATH']}",
            SLURM_JOB_ID=str(job_id),
            SLURM_JOB_NODELIST="localhost",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        end(process, f"/tmp/ray-{job_id}")
    assert process.returncode == 0, output
    assert "2 node(s)" in output
    table = next((scratch / "results" / "digits" / "reports").glob("*/scores.csv"))
    assert "mlp2" in table.read_text()
    assert not list((scratch / ".raybench").iterdir())
    assert not Path(f"/tmp/ray-{job_id}").exists()
    assert not (home / "requeued").exists()
