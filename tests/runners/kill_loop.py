"""Kill workers, nodes and drivers of a run at random moments, start it again, and count.

    python kill_loop.py OUT SEED KILLS COMMAND...

A process of its own: a cluster of several nodes leaves traces in the process that holds it. Prints
one JSON object; the exit code is the last run's.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from ray.cluster_utils import Cluster

SMALL = {"object_store_memory": 80 << 20}
QUICK = {"health_check_period_ms": 500, "health_check_failure_threshold": 10}
KINDS = ("actor", "actor", "raylet", "driver")  # nodes and drivers take seconds to come back
LONGEST_S = 240.0


def main(out: Path, seed: int, kills: int, command: list[str]) -> int:
    draw = random.Random(seed)
    # The head has no cores, so that the driver's node runs no worker.
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK, **SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    done: Counter[str] = Counter()
    begun, drivers, run = time.monotonic(), 0, None
    codes: list[int] = []
    lost = 0
    try:
        nodes = [cluster.add_node(num_cpus=1, **SMALL) for _ in range(2)]
        environment = os.environ | {"RAY_ADDRESS": cluster.address}
        while True:
            # On a busy machine Ray gives up nodes that are only slow to answer.
            ended = [node for node in nodes if raylet(node).poll() is not None]
            for node in ended:
                nodes.remove(node)
                nodes.append(cluster.add_node(num_cpus=1, **SMALL))
            lost += len(ended)
            if run is None:
                drivers += 1
                run = subprocess.Popen(command, env=environment)
            if sum(done.values()) < kills and wait(draw, out, run):
                kind = strike(draw, cluster, nodes, run)
                done[kind] += kind != "none"
                told = f"{time.monotonic() - begun:.0f} s: {kind}, {parts(out)} parts"
                print(told, file=sys.stderr, flush=True)
            elif sum(done.values()) >= kills:
                run.wait(timeout=LONGEST_S)
            if run.poll() is not None:
                codes.append(run.returncode)
                if run.returncode == 0 or len(codes) > kills + 5:
                    break
                run = None
    finally:
        if run is not None:
            run.kill()
        cluster.shutdown()
    seconds = round(time.monotonic() - begun)
    told = {"kills": dict(done), "lost": lost, "drivers": drivers, "codes": codes}
    print(json.dumps(told | {"seconds": seconds}))
    return codes[-1]


def wait(draw: random.Random, out: Path, run: "subprocess.Popen[bytes]") -> bool:
    """Wait for a random moment; False where the run ended before it."""
    moment = draw.uniform(0.0, 6.0)
    if draw.random() < 0.5:  # in the middle of work, however long processes take to start
        before, until = parts(out), time.monotonic() + 60
        while parts(out) == before and run.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        moment = draw.uniform(0.0, 1.0)
    until = time.monotonic() + moment
    while time.monotonic() < until and run.poll() is None:
        time.sleep(0.02)
    return run.poll() is None


def strike(
    draw: random.Random, cluster: Cluster, nodes: list, run: "subprocess.Popen[bytes]"
) -> str:
    """Kill something with SIGKILL and return what; a node that is lost is replaced."""
    kind = draw.choice(KINDS)
    if kind == "driver":
        run.kill()
        run.wait(timeout=30)
        return kind
    if kind == "actor":
        actors = workers([raylet(node).pid for node in nodes])
        if not actors:
            return "none"  # none has started yet: another moment
        os.kill(draw.choice(actors), signal.SIGKILL)
        return kind
    node = nodes.pop(draw.randrange(len(nodes)))
    raylet(node).send_signal(signal.SIGKILL)
    nodes.append(cluster.add_node(num_cpus=1, **SMALL))
    return kind


def raylet(node) -> "subprocess.Popen[bytes]":
    return node.all_processes["raylet"][0].process


def workers(raylets: list[int]) -> list[int]:
    """Return the processes of actors below the raylets, sorted."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit():
                continue
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if command.startswith(b"ray::") and b"IDLE" not in command and parent in raylets:
            found.append(int(folder.name))
    return sorted(found)


def parts(out: Path) -> int:
    return len(list(out.rglob("part-*.parquet")))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
