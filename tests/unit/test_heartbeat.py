"""Signs of life: written, read, told from those of the dead."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import raybench.heartbeat as module
from raybench.core.errors import Interrupted
from raybench.core.work import Event, Task
from raybench.heartbeat import SILENT_S, Sign, heartbeat, signs

RUN = "2026-07-27T10:00:00.000000+00:00"
TASK = Task(0, 0, "m")


def test_a_driver_says_that_it_is_there_and_how_it_ended(tmp_path: Path) -> None:
    with heartbeat(tmp_path, RUN, ["a" * 64]):
        [sign] = signs(tmp_path)
        assert (sign.run, sign.pid, sign.state) == (RUN, os.getpid(), "running")
        assert sign.measurements == ("a" * 16,)
        assert sign.alive(time.time())
    [sign] = signs(tmp_path)
    assert sign.state == "finished"
    assert not sign.alive(time.time())


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (Interrupted(143), "interrupted", ""),
        (KeyboardInterrupt(), "interrupted", ""),
        (ValueError("no such thing"), "failed", "ValueError: no such thing"),
    ],
)
def test_it_says_how_it_failed(tmp_path: Path, error: BaseException, state: str, text: str) -> None:
    with pytest.raises(type(error)), heartbeat(tmp_path, RUN, []):
        raise error
    [sign] = signs(tmp_path)
    assert (sign.state, sign.error) == (state, text)


def test_it_counts_what_is_in_flight_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.02)
    with heartbeat(tmp_path, RUN, []) as beat:
        for shard in range(3):
            beat.hear(Event(kind="started", task=Task(0, shard, "m")))
        beat.hear(Event(kind="released", task=TASK))
        beat.hear(Event(kind="note", text="n"))
        first = signs(tmp_path)[0].beat
        deadline = time.monotonic() + 5
        while signs(tmp_path)[0].busy != 2 or signs(tmp_path)[0].beat == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_folder_that_takes_no_file_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "drivers").write_text("in the way")
    with heartbeat(tmp_path, RUN, []):
        assert signs(tmp_path) == []


KILLED = """
import sys, time
from pathlib import Path
from raybench.heartbeat import heartbeat
with heartbeat(Path(sys.argv[1]), "2026", []):
    print("there", flush=True)
    time.sleep(60)
"""


def test_a_killed_driver_is_known_to_be_dead_and_forgotten_by_the_next(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "there\n"
        [sign] = signs(tmp_path)
        assert sign.alive(time.time())
        process.send_signal(signal.SIGKILL)
    [sign] = signs(tmp_path)
    assert sign.state == "running"
    assert not sign.alive(time.time())
    with heartbeat(tmp_path, RUN, []):
        assert [sign.pid for sign in signs(tmp_path)] == [os.getpid()]


def sign(**more: object) -> Sign:
    facts = {"run": RUN, "host": "elsewhere", "pid": 1, "boot": "1", "beat": 1000.0}
    return Sign(**facts | more)


def test_elsewhere_silence_tells() -> None:
    assert sign().alive(1000.0 + SILENT_S)
    assert not sign().alive(1001.0 + SILENT_S)
    assert not sign(state="finished").alive(1000.0)


def test_another_process_of_that_number_is_not_the_driver() -> None:
    own = sign(host=socket.gethostname(), pid=os.getpid(), boot="0", beat=time.time())
    assert not own.alive(time.time())
    assert replace(own, boot=module._boot(os.getpid())).alive(time.time() + 1e6)


def test_drivers_on_one_folder_do_not_write_over_each_other(tmp_path: Path) -> None:
    (tmp_path / "drivers").mkdir()
    other = json.dumps({"schema": 1} | {
        "run": RUN, "host": "elsewhere", "pid": 9, "boot": "1", "beat": time.time(),
        "state": "running", "busy": 4, "measurements": ["b" * 16], "error": "",
    })  # fmt: skip
    (tmp_path / "drivers" / "elsewhere-9.json").write_text(other)
    (tmp_path / "drivers" / "damaged.json").write_text("{")
    (tmp_path / "drivers" / "newer.json").write_text('{"schema": 2}')
    with heartbeat(tmp_path, RUN, []):
        assert sorted(sign.pid for sign in signs(tmp_path)) == sorted([9, os.getpid()])
