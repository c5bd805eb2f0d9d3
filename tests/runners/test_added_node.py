"""A node that joins in the middle of a run gets work, and the results are the same bytes."""

import json
import sys
import tempfile
from pathlib import Path

import pytest
from score_material import command, make_material, part_bytes, run, stored_tables

from raybench.cli import main

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

# A process of its own, as in test_lost_node.py.
ADD_A_NODE = """
import os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

out, log, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
small = {"object_store_memory": 80 << 20}
head = {"num_cpus": 0, "include_dashboard": False, **small}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    cluster.add_node(num_cpus=1, **small)
    with log.open("w") as errors:
        run = subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": cluster.address}, stderr=errors
        )
    try:
        while len(list(out.rglob("part-*.parquet"))) < 4:
            assert run.poll() is None, "over before a node could join"
            time.sleep(0.05)
        cluster.add_node(num_cpus=1, **small)
        code = run.wait(timeout=200)
    finally:
        run.kill()
finally:
    cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.parametrize("actors", ["auto", "2"])
def test_a_node_that_joins_in_the_middle_gets_work(tmp_path: Path, actors: str) -> None:
    # Slow enough that many seconds of work are left when it joins: a worker takes some to start.
    material = make_material(tmp_path / "material", images=60, rounds=500)
    expected, out, log = tmp_path / "expected", tmp_path / "out", tmp_path / "stderr"
    assert main(command(material, expected, "--runner", "local", "--quiet")[3:]) == 0
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as folder:
        script = [sys.executable, "-c", ADD_A_NODE, str(out), str(log)]
        lines = tmp_path / "run.jsonl"
        done = run(
            [*script, *command(material, out, "--actors", actors, "--log", str(lines))],
            timeout=280,
            RAY_TMPDIR=folder,
            RAY_ADDRESS="",
        )
    said = log.read_text()
    assert done.returncode == 0, done.stdout + done.stderr + said
    events = [json.loads(line) for line in lines.read_text().splitlines()]
    by_worker = [event["worker"] for event in events if event["event"] == "shard-done"]
    assert len(by_worker) == 60
    # The first alone to begin with; the one on the new node then does its share.
    assert by_worker[:4] == [0] * 4
    assert set(by_worker) == {0, 1}
    assert part_bytes(out) == part_bytes(expected)
    assert stored_tables(out) == stored_tables(expected)
