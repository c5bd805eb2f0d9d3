"""What only processes can suffer: workers killed at work, at their start, or by their task."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
from runners.faulty_worker import FaultyWorker, ThreadsWorker, calls, make_dead

from raybench.core.errors import InputError, Interrupted
from raybench.core.work import Event, Resources, Task

ray_runner = pytest.importorskip("raybench.runners.ray")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180), pytest.mark.usefixtures("cluster")]

TASKS = [Task(0, shard, "m") for shard in range(8)]


def never() -> None:
    return None


@pytest.mark.parametrize("how", ["dies_once", "exits_once"])
def test_a_lost_worker_is_replaced_and_only_its_task_charged(tmp_path: Path, how: str) -> None:
    events: list[Event] = []
    outcome = ray_runner.run_on_ray(
        partial(FaultyWorker, str(tmp_path), **{how: frozenset({3})}),
        TASKS,
        Resources(actors=2),
        listener=events.append,
        stop=never,
    )
    assert set(outcome.receipts) == set(TASKS)
    assert (outcome.failures, outcome.gave_up) == ({}, None)
    assert [event.task.shard for event in events if event.kind == "worker-lost"] == [3]
    assert [event.task.shard for event in events if event.kind == "retry"] == [3]
    attempts = [shard for shard, _, _ in calls(tmp_path)]
    assert [attempts.count(shard) for shard in range(8)] == [1, 1, 1, 2, 1, 1, 1, 1]


def test_a_task_that_always_kills_is_reported_and_the_rest_finish(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = ray_runner.run_on_ray(
        partial(FaultyWorker, str(tmp_path), dies=frozenset({5})),
        TASKS,
        Resources(actors=2, max_attempts=3),
        listener=lambda event: None,
        stop=never,
    )
    assert set(outcome.receipts) == set(TASKS) - {TASKS[5]}
    assert list(outcome.failures) == [TASKS[5]]
    assert "the worker died computing it: ActorDiedError" in outcome.failures[TASKS[5]]
    assert [shard for shard, _, _ in calls(tmp_path)].count(5) == 3
    time.sleep(1.0)  # Ray reports deaths from a thread of its own, by default on stdout
    assert capsys.readouterr().out == ""


def test_workers_that_die_at_their_start_end_the_run() -> None:
    outcome = ray_runner.run_on_ray(
        make_dead, TASKS, Resources(actors=2), listener=lambda event: None, stop=never
    )
    assert outcome.gave_up is not None
    assert "no worker could be started" in outcome.gave_up
    assert "ActorDiedError" in outcome.gave_up


def test_a_hung_task_ends_at_the_deadline_and_names_itself(tmp_path: Path) -> None:
    outcome = ray_runner.run_on_ray(
        partial(FaultyWorker, str(tmp_path), seconds=3600.0),
        TASKS[:1],
        Resources(actors=1, no_progress_s=15.0),
        listener=lambda event: None,
        stop=never,
    )
    assert outcome.gave_up is not None
    assert "no task finished for 15 s" in outcome.gave_up
    assert str(TASKS[0]) in outcome.gave_up


def test_stop_kills_workers_at_once(tmp_path: Path) -> None:
    begun: list[float] = []

    def stop() -> int | None:
        if not begun and (tmp_path / "calls").exists():
            begun.append(time.monotonic())
        return 130 if begun else None

    with pytest.raises(Interrupted) as caught:
        ray_runner.run_on_ray(
            partial(FaultyWorker, str(tmp_path), seconds=3600.0),
            TASKS,
            Resources(actors=1),
            listener=lambda event: None,
            stop=stop,
        )
    assert caught.value.exit_code == 130
    assert time.monotonic() - begun[0] < 5
    [(_, _, pid)] = calls(tmp_path)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the worker outlived the run by 10 s"
        time.sleep(0.05)


def test_threads_follow_the_cores_reserved(tmp_path: Path) -> None:
    outcome = ray_runner.run_on_ray(
        partial(ThreadsWorker, str(tmp_path)),
        TASKS[:1],
        Resources(actors=1, cpus_per_actor=2),
        listener=lambda event: None,
        stop=never,
    )
    assert [receipt.file for receipt in outcome.receipts.values()] == ["2"]


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        (Resources(cpus_per_actor=1000), "1 worker(s) of 1000 CPU"),
        (Resources(gpus_per_actor=512), "and 512 GPU each do not fit"),
        (Resources(actors=8, cpus_per_actor=900), "8 worker(s) of 900 CPU"),
        (Resources(gpus_per_actor=1.5), "gpus_per_actor above 1 must be a whole number"),
    ],
)
def test_what_can_never_be_placed_is_refused(
    tmp_path: Path, resources: Resources, says: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        ray_runner.run_on_ray(
            partial(FaultyWorker, str(tmp_path)),
            TASKS,
            resources,
            listener=lambda event: None,
            stop=never,
        )
    assert says in str(caught.value)
    assert time.monotonic() - begun < 5


def run_script(body: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", body]
    return subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


ADDRESS = """
from raybench.core.errors import InputError
from raybench.core.work import Resources
from raybench.runners.ray import ray_session
try:
    with ray_session(Resources({})):
        pass
except InputError as error:
    print(error)
"""


def test_addresses_of_another_kind_are_refused() -> None:
    ran = run_script(ADDRESS.format(""), RAY_ADDRESS="http://127.0.0.1:8265")
    assert "RAY_ADDRESS 'http://127.0.0.1:8265' is not a cluster's own address" in ran.stdout


def test_an_address_without_a_cluster_is_refused() -> None:
    ran = run_script(ADDRESS.format("address='127.0.0.1:9'"), RAY_ADDRESS="")
    assert "no Ray cluster could be joined at the address '127.0.0.1:9'" in ran.stdout, ran.stderr


TERMINATED = """
import os, signal, sys, threading
from raybench.core.errors import Interrupted
from raybench.core.work import Resources
from raybench.runners.ray import ray_session
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    with ray_session(Resources(address="local")):
        threading.Event().wait(30)
except Interrupted as error:
    sys.exit(error.exit_code)
"""


def test_sigterm_while_ray_starts_is_an_interruption() -> None:
    assert run_script(TERMINATED).returncode == 128 + signal.SIGTERM


ALONE = """
import signal
from raybench.core.work import Resources
from raybench.runners.ray import ray_session
mine = lambda number, frame: None
signal.signal(signal.SIGTERM, mine)
with ray_session(Resources()):
    assert signal.getsignal(signal.SIGTERM) is mine
print("done")
"""


def test_a_cluster_that_is_gone_is_not_waited_for_and_sigterm_stays_the_drivers() -> None:
    # Not tmp_path: Ray's sockets lie below, and their paths may have 107 characters.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()
        Path(folder, "ray", "ray_current_cluster").write_text("127.0.0.1:9")
        ran = run_script(ALONE, RAY_TMPDIR=folder, RAY_ADDRESS="")
    assert ran.stdout == "done\n", ran.stderr
