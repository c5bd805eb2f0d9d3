"""A worker node that is lost in the middle of a run: the others finish it, to the same bytes."""

import sys
import tempfile
from pathlib import Path

import pytest
from score_material import command, make_material, part_bytes, run, stored_tables

from raybench.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

# A process of its own: a cluster of several nodes leaves traces in the process that holds it, and
# the other tests share one. The head has no cores, so that the driver's node runs no worker.
LOSE_A_NODE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out, log, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
small = {"object_store_memory": 80 << 20}
quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick, **small}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
    with log.open("w") as errors:
        run = subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": cluster.address}, stderr=errors
        )
    try:
        while len(list(out.rglob("part-*.parquet"))) < 6:
            assert run.poll() is None, "over before a node could be lost"
            time.sleep(0.05)
        raylet = nodes[0].all_processes["raylet"][0].process
        raylet.send_signal(signal.SIGKILL)
        print("parts when the node was lost:", len(list(out.rglob("part-*.parquet"))))
        code = run.wait(timeout=150)
    finally:
        run.kill()
    print("alive:", len(cluster.global_state._live_node_ids()))
finally:
    cluster.shutdown()
sys.exit(code)
"""


def test_a_run_survives_the_loss_of_a_node(tmp_path: Path) -> None:
    # Slow enough that seconds of work are left when the node goes: Ray takes two to notice.
    material = make_material(tmp_path / "material", images=36, rounds=400)
    expected, out, log = tmp_path / "expected", tmp_path / "out", tmp_path / "stderr"
    assert main(command(material, expected, "--runner", "local", "--quiet")[3:]) == 0
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as folder:
        script = [sys.executable, "-c", LOSE_A_NODE, str(out), str(log)]
        done = run(
            [*script, *command(material, out, "--actors", "2")],
            timeout=220,
            RAY_TMPDIR=folder,
            RAY_ADDRESS="",
        )
    said = log.read_text()
    assert done.returncode == 0, done.stdout + done.stderr + said
    assert "alive: 2" in done.stdout
    assert "worker-lost" in said
    assert part_bytes(out) == part_bytes(expected)
    assert stored_tables(out) == stored_tables(expected)
    assert main(["verify", str(out)]) == 0
