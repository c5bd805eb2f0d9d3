"""A node that gets its notice in the middle of a run: it leaves early, and nothing is charged."""

import sys
import tempfile
from pathlib import Path

import pytest
from score_material import command, make_material, part_bytes, run, stored_tables

from raybench.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

# A process of its own, as in test_lost_node.py. The node that leaves is one of ``ray start
# --block``, as in a pod: that is who gets SIGTERM there, and its workers hear nothing of it.
DRAIN_A_NODE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out, log, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
small = {"object_store_memory": 80 << 20}
cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small}
)
node = None
try:
    cluster.add_node(num_cpus=1, **small)
    start = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
    start += ["--address", cluster.address, "--object-store-memory=83886080"]
    grace = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "40"}
    with log.with_name("node").open("w") as said:
        node = subprocess.Popen(start, env=os.environ | grace, stdout=said, stderr=said)
    while len(cluster.global_state._live_node_ids()) < 3:
        assert node.poll() is None
        time.sleep(0.2)
    with log.open("w") as errors:
        run = subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": cluster.address}, stderr=errors
        )
    try:
        while len(list(out.rglob("part-*.parquet"))) < 6:
            assert run.poll() is None, "over before a node could leave"
            time.sleep(0.05)
        told = time.monotonic()
        node.send_signal(signal.SIGTERM)
        node.wait(timeout=60)
        print("the node left after", round(time.monotonic() - told, 1), "s")
        assert run.poll() is None, "over before the node had left"
        code = run.wait(timeout=150)
    finally:
        run.kill()
finally:
    if node is not None:
        node.kill()
    cluster.shutdown()
sys.exit(code)
"""


def test_a_node_that_is_told_to_end_is_left_in_good_order(tmp_path: Path) -> None:
    # Slow enough that seconds of work are left when the node has gone.
    material = make_material(tmp_path / "material", images=48, rounds=500)
    expected, out, log = tmp_path / "expected", tmp_path / "out", tmp_path / "stderr"
    assert main(command(material, expected, "--runner", "local", "--quiet")[3:]) == 0
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as folder:
        script = [sys.executable, "-c", DRAIN_A_NODE, str(out), str(log)]
        done = run(
            [*script, *command(material, out, "--actors", "2", "--max-attempts", "1")],
            timeout=280,
            RAY_TMPDIR=folder,
            RAY_ADDRESS="",
        )
    said = log.read_text()
    assert done.returncode == 0, done.stdout + done.stderr + said
    # Long before the 40 s it might have stayed: a node that holds no worker goes by itself.
    left = float(done.stdout.partition("the node left after ")[2].partition(" s")[0])
    assert left < 25, done.stdout
    assert said.count("worker-left: ") == 1, said
    assert "its node is told to end" in said
    for word in ("worker-lost", "retry:", "failed:"):
        assert word not in said
    assert part_bytes(out) == part_bytes(expected)
    assert stored_tables(out) == stored_tables(expected)
