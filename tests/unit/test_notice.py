"""SIGTERM to a process with a task in hand, for real: this one."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs
from unit.test_dispatch import receipt

from raybench.core.objects import read_address
from raybench.core.work import Receipt, Released, Task, Worker
from raybench.runners.notice import Notice, Reply
from raybench.sinks.parts import PartInfo, commit_part, inspect_part
from raybench.sinks.remote import Store, find_part, put_part

TASK = Task(0, 0, "m")
GRACE_S = 0.8  # of which half is kept for the answer


@pytest.fixture
def left() -> Iterator[list[int]]:
    """What the handler of before heard; it is there again after the test."""
    heard: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def noticed(grace_s: float = GRACE_S) -> Notice:
    notice = Notice(grace_s)
    notice.install()
    return notice


@contextmanager
def sigterm_after(seconds: float) -> Iterator[None]:
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    yield
    timer.join()


def busy(seconds: float) -> Callable[[Task], Receipt]:
    def worker(task: Task) -> Receipt:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(Exception):  # as kernels may that go on after an error
                time.sleep(0.01)
        return receipt(task)

    return worker


def run(notice: Notice, takes: float, expected: float | None) -> tuple[Reply, float]:
    begun = time.monotonic()
    with sigterm_after(0.1):
        reply = notice.run(busy(takes), TASK, expected)
    return reply, time.monotonic() - begun


def test_without_a_notice_a_worker_stays(left: list[int]) -> None:
    assert noticed().run(busy(0.0), TASK, 1.0) == Reply(receipt(TASK))
    assert left == []


def test_what_fits_is_finished(left: list[int]) -> None:
    notice = noticed()
    reply, _ = run(notice, takes=0.3, expected=0.4)
    assert reply.answer == receipt(TASK)
    assert reply.leaving == f"process {os.getpid()} was told to end (SIGTERM)"
    time.sleep(0.5)  # no alarm is left to ring
    again = notice.run(busy(0.0), TASK, 0.0)
    assert isinstance(again.answer, Released)
    assert again.leaving
    assert left == []


def test_what_does_not_fit_is_let_go_at_once(left: list[int]) -> None:
    reply, seconds = run(noticed(), takes=30.0, expected=30.0)
    assert reply.answer == Released("it needs 29.9 s more, 0.4 s are left")
    assert seconds < 0.35
    assert reply.leaving


@pytest.mark.parametrize("expected", [None, 0.2])
def test_what_is_unknown_or_late_goes_on_until_the_time_is_up(
    left: list[int], expected: float | None
) -> None:
    reply, seconds = run(noticed(), takes=30.0, expected=expected)
    assert isinstance(reply.answer, Released)
    assert reply.answer.text.startswith("not done after 0.")
    assert 0.45 < seconds < 0.8


def test_with_no_grace_everything_is_let_go(left: list[int]) -> None:
    for expected in (None, 10.0):
        reply, seconds = run(noticed(0.0), takes=30.0, expected=expected)
        assert isinstance(reply.answer, Released)
        assert seconds < 0.35


def test_a_second_notice_changes_nothing(left: list[int]) -> None:
    with sigterm_after(0.2):
        reply, _ = run(noticed(), takes=0.3, expected=0.4)
    assert reply.answer == receipt(TASK)
    assert left == []


def test_an_error_is_still_an_error(left: list[int]) -> None:
    def worker(task: Task) -> Receipt:
        busy(0.2)(task)
        raise ArithmeticError("poison")

    notice = noticed()
    with sigterm_after(0.1):
        reply = notice.run(worker, TASK, 0.3)
    assert isinstance(reply.answer, str)
    assert reply.answer.startswith("ArithmeticError: poison")
    assert reply.leaving


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_release_that_python_drops_is_raised_again(left: list[int]) -> None:
    """Errors in destructors go nowhere; the next alarm finds the task still there."""

    class Slow:
        def __del__(self) -> None:
            until = time.monotonic() + 0.4
            while time.monotonic() < until:
                time.sleep(0.01)

    def worker(task: Task) -> Receipt:
        thing = Slow()
        del thing
        return busy(30.0)(task)

    begun = time.monotonic()
    with sigterm_after(0.1):
        reply = noticed().run(worker, TASK, 30.0)
    assert isinstance(reply.answer, Released)
    assert time.monotonic() - begun < 2.0


def test_with_nothing_in_hand_the_process_leaves_at_once(left: list[int]) -> None:
    noticed()
    os.kill(os.getpid(), signal.SIGTERM)
    assert left == [signal.SIGTERM]


def test_a_process_told_before_it_is_set_up_leaves_and_begins_nothing(left: list[int]) -> None:
    """What handled it may have swallowed the exit, as code that catches everything does."""
    notice = noticed()
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert left == [signal.SIGTERM]
    reply = notice.run(busy(0.0), TASK, 0.0)
    assert isinstance(reply.answer, Released)
    assert reply.leaving


ROWS = pa.record_batch({"sample_id": ["a", "b"], "status": ["ok", "error"]})


NAME = "part.parquet"


def store_in(folder: Path) -> Store:
    """An object store as far as workers can tell."""
    folder.mkdir(exist_ok=True)
    return Store(read_address("s3://bucket/runs"), fs.LocalFileSystem(), str(folder))


def commit_in_folder(folder: Path, shard: int) -> PartInfo:
    return commit_part(folder, NAME, ROWS, {"shard": shard})


def put_in_store(folder: Path, shard: int) -> PartInfo:
    return put_part(store_in(folder), NAME, ROWS, {"shard": shard})


def found_in_folder(folder: Path) -> PartInfo | None:
    """As the driver's look: a part that is there and damaged is an error."""
    return inspect_part(folder / NAME) if (folder / NAME).exists() else None


def found_in_store(folder: Path) -> PartInfo | None:
    return find_part(store_in(folder), NAME)


def committing(commit: Callable[[Path, int], PartInfo], folder: Path) -> Worker:
    def worker(task: Task) -> Receipt:
        part = commit(folder, task.shard)
        return replace(receipt(task), file=part.file, sha256=part.sha256)

    return worker


def source(frame: FrameType) -> str:
    return Path(frame.f_code.co_filename).name


@contextmanager
def sigterm_at(line: int, files: set[str]) -> Iterator[list[str]]:
    """Send SIGTERM before the line-th line run of these source files, if it comes to it."""
    seen: list[str] = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            seen.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
            if len(seen) == line + 1:
                signal.raise_signal(signal.SIGTERM)
        return trace

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: trace if source(frame) in files else None)
    try:
        yield seen
    finally:
        sys.settrace(before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of open files
@pytest.mark.parametrize(
    ("commit", "look"), [(commit_in_folder, found_in_folder), (put_in_store, found_in_store)]
)
def test_at_whatever_line_of_a_commit_there_is_a_whole_part_or_none(
    left: list[int],
    tmp_path: Path,
    commit: Callable[[Path, int], PartInfo],
    look: Callable[[Path], PartInfo | None],
) -> None:
    """Before, during and after the task: an answer comes, and nobody has to clean up."""
    whole = committing(commit, tmp_path / "whole")(TASK)
    files = {"notice.py", "inprocess.py", "parts.py", "remote.py"}
    answers = []
    for line in range(1000):
        folder, notice = tmp_path / str(line), noticed()
        with sigterm_at(line, files) as seen:
            reply = notice.run(committing(commit, folder), TASK, 1000.0)
        if len(seen) <= line:
            break  # past the last line
        where = f"{line}: {seen[line]}"
        assert reply.answer == whole or isinstance(reply.answer, Released), where
        part = look(folder)
        assert part is None or part.sha256 == whole.sha256, where
        assert part is not None or isinstance(reply.answer, Released), where
        # The next worker is none the worse for it.
        again = Notice(GRACE_S).run(committing(commit, folder), TASK, 1.0)
        assert again == Reply(whole), where
        answers.append(isinstance(reply.answer, Released))
    # Outside the task nothing is let go: what was computed there is kept.
    assert 30 < sum(answers) < len(answers)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
