"""SIGTERM to the processes of workers: what they hold is finished or put back, and they go."""

import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from runners.faulty_worker import TimedWorker, calls, make_slowly

from raybench.core.work import Event, Outcome, Resources, Task

ray_runner = pytest.importorskip("raybench.runners.ray")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("cluster")]


class Executioner:
    """Listens to a run, and sends SIGTERM to one worker at the moment it is told to."""

    def __init__(self, folder: Path, *, at_call: int, after_s: float) -> None:
        self.folder, self.at_call, self.after_s = folder, at_call, after_s
        self.events: list[Event] = []
        self.pid, self.sent = 0, 0.0
        self._due = 0.0

    def stop(self) -> None:
        """Polled by the runner a few times a second."""
        if self.pid or not (self.folder / "calls").exists():
            return
        seen = calls(self.folder)
        if len(seen) >= self.at_call:
            self._due = self._due or time.monotonic() + self.after_s
            if time.monotonic() >= self._due:
                self.pid, self.sent = seen[self.at_call - 1][2], time.monotonic()
                os.kill(self.pid, signal.SIGTERM)

    def kinds(self) -> Counter[str]:
        return Counter(event.kind for event in self.events)

    def wait_until_gone(self, seconds: float) -> None:
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < self.sent + seconds, "the worker is still there"
            time.sleep(0.05)


def run(
    tasks: list[Task], worker: partial[TimedWorker], who: Executioner, **more: float
) -> Outcome:
    outcome = ray_runner.run_on_ray(
        worker,
        tasks,
        Resources(max_attempts=1, **more),
        listener=who.events.append,
        stop=who.stop,
    )
    assert outcome.receipts.keys() == set(tasks), who.events
    assert (outcome.failures, outcome.gave_up) == ({}, None)
    return outcome


def test_a_shard_that_fits_in_the_grace_is_finished(tmp_path: Path) -> None:
    tasks = [Task(0, shard, "m") for shard in range(4)]
    who = Executioner(tmp_path, at_call=3, after_s=0.3)
    run(tasks, partial(TimedWorker, str(tmp_path), seconds=1.0), who, actors=1, grace_s=20.0)
    seen = calls(tmp_path)
    # Nothing was computed twice: the third shard by the process that was told, the last by another.
    assert [shard for shard, _, _ in seen] == [0, 1, 2, 3]
    assert [pid == who.pid for _, _, pid in seen] == [True, True, True, False]
    assert who.kinds()["worker-left"] == 1
    assert not who.kinds().keys() & {"retry", "released", "worker-lost"}
    who.wait_until_gone(5)


def test_a_shard_that_does_not_fit_is_released_at_once(tmp_path: Path) -> None:
    tasks = [Task(0, shard, "m") for shard in range(3)]
    who = Executioner(tmp_path, at_call=3, after_s=0.3)
    run(tasks, partial(TimedWorker, str(tmp_path), seconds=3.0), who, actors=1, grace_s=2.0)
    seen = calls(tmp_path)
    assert [shard for shard, _, _ in seen] == [0, 1, 2, 2]
    assert seen[2][2] == who.pid != seen[3][2]
    [released] = [event for event in who.events if event.kind == "released"]
    assert released.task == tasks[2]
    assert released.worker == 0
    assert released.text.startswith("put back: it needs 2.")
    assert released.text.endswith(" s more, 1.0 s are left")
    assert not who.kinds().keys() & {"retry", "worker-lost"}
    who.wait_until_gone(5)


def test_without_any_timing_it_goes_on_until_the_grace_is_nearly_over(tmp_path: Path) -> None:
    who = Executioner(tmp_path, at_call=1, after_s=0.0)
    slow = partial(TimedWorker, str(tmp_path), seconds=3.0)
    run([Task(0, 0, "m")], slow, who, actors=1, grace_s=2.0)
    [released] = [event for event in who.events if event.kind == "released"]
    assert "not done after 1." in released.text
    assert [shard for shard, _, _ in calls(tmp_path)] == [0, 0]


def test_an_idle_worker_leaves_at_once_and_no_task_is_blamed(tmp_path: Path) -> None:
    """The first shard is done when the second has begun; its worker idles until more come."""
    tasks, late = [Task(0, 100, "m"), Task(1, 0, "n")], [Task(0, 101, "m"), Task(1, 102, "n")]
    who = Executioner(tmp_path, at_call=0, after_s=0.0)

    def stop() -> None:
        if not who.pid and who.kinds()["done"] == 1:
            pids = {shard: pid for shard, _, pid in calls(tmp_path)}
            assert pids[100] != pids[0]
            who.pid, who.sent = pids[100], time.monotonic()
            os.kill(who.pid, signal.SIGTERM)
            who.wait_until_gone(10)

    rounds = iter([late, []])
    outcome = ray_runner.run_on_ray(
        partial(TimedWorker, str(tmp_path), seconds=2.0, waits=frozenset({100})),
        tasks,
        Resources(max_attempts=1, actors=2),
        listener=who.events.append,
        stop=stop,
        more=lambda outcome: next(rounds),
    )
    assert outcome.receipts.keys() == {*tasks, *late}
    assert (outcome.failures, outcome.gave_up) == ({}, None)
    assert not who.kinds().keys() & {"retry", "worker-lost", "failed"}
    assert who.pid not in [pid for shard, _, pid in calls(tmp_path) if shard > 100]


def test_a_worker_that_is_told_before_it_is_ready_is_no_failed_start(tmp_path: Path) -> None:
    who = Executioner(tmp_path, at_call=0, after_s=0.0)

    def stop() -> None:
        made = tmp_path / "made"
        if not who.pid and made.exists() and (text := made.read_text()):
            who.pid, who.sent = int(text), time.monotonic()
            os.kill(who.pid, signal.SIGTERM)

    tasks = [Task(0, 0, "m")]
    outcome = ray_runner.run_on_ray(
        partial(make_slowly, str(tmp_path), 60.0),
        tasks,
        Resources(max_attempts=1, actors=1),  # of which a failed start would be the last
        listener=who.events.append,
        stop=stop,
    )
    assert outcome.receipts.keys() == set(tasks), who.events
    assert outcome.gave_up is None
    assert not who.kinds().keys() & {"retry", "worker-lost", "failed"}
    [left] = [event for event in who.events if event.kind == "worker-left"]
    assert left.text.startswith("worker 0 at its start: ")
    who.wait_until_gone(20)
