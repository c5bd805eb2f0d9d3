"""What becomes of entries from one refresh to the next, and what may not be ranked together."""

from dataclasses import replace
from pathlib import Path

import pytest

from raybench.core.errors import InputError, StoreError
from raybench.refresh.state import (
    Counts,
    Entry,
    Found,
    Reference,
    Selection,
    State,
    advance,
    check_protocol,
    read_state,
    state_path,
    write_state,
)

A = Found(
    spec="onnx:a.onnx",
    name="a",
    fingerprint="f-a",
    access="logits",
    dataset="d",
    measurements=("rows/a",),
)
B = replace(A, spec="onnx:b.onnx", name="b", fingerprint="f-b", measurements=("rows/b",))
BROKEN = replace(A, fingerprint=None, access=None, error="no network", measurements=())


def step(before: tuple[Entry, ...], *listed: Found, now: str, version: str = "1"):
    return advance(before, listed, now=now, version=version)


def shown(entries: tuple[Entry, ...]) -> list[tuple[str, str, str, str]]:
    return [(one.name, one.status, one.first_seen, one.last_seen) for one in entries]


def test_new_then_unchanged() -> None:
    entries, counts = step((), replace(A, computed=3), replace(B, computed=3), now="t1")
    assert counts == Counts(new=2)
    entries, counts = step(entries, A, B, now="t2")
    assert counts == Counts(unchanged=2)
    assert shown(entries) == [("a", "current", "t1", "t2"), ("b", "current", "t1", "t2")]


def test_what_had_to_be_computed_again_is_not_unchanged() -> None:
    entries, _ = step((), A, now="t1")
    _, counts = step(entries, replace(A, computed=1), now="t2")
    assert counts == Counts(new=1)


def test_a_changed_checkpoint_is_new_and_the_old_one_history() -> None:
    entries, _ = step((), A, now="t1")
    changed = replace(A, fingerprint="f-2", measurements=("rows/a2",))
    entries, counts = step(entries, changed, now="t2")
    assert counts == Counts(new=1, history=1)
    assert shown(entries) == [("a", "current", "t2", "t2"), ("a", "history", "t1", "t1")]
    assert entries[1].measurements == ("rows/a",)


def test_removed_is_history_and_may_return() -> None:
    entries, _ = step((), A, B, now="t1")
    entries, counts = step(entries, B, now="t2")
    assert counts == Counts(unchanged=1, history=1)
    assert shown(entries)[1] == ("a", "history", "t1", "t1")
    entries, counts = step(entries, A, B, now="t3")
    assert counts == Counts(unchanged=1, returned=1)
    assert shown(entries)[0] == ("a", "current", "t1", "t3")


def test_a_failure_leaves_the_earlier_results_and_gives_way_to_a_success() -> None:
    entries, _ = step((), A, now="t1")
    entries, counts = step(entries, BROKEN, now="t2")
    assert counts == Counts(failed=1, history=1)
    assert [(one.status, one.error) for one in entries] == [
        ("failed", "no network"),
        ("history", None),
    ]
    entries, counts = step(entries, BROKEN, now="t3")
    assert shown(entries)[0] == ("a", "failed", "t2", "t3")
    entries, counts = step(entries, A, now="t4")
    assert counts == Counts(returned=1)
    assert shown(entries) == [("a", "current", "t1", "t4")]


def test_a_failure_without_results_leaves_nothing_behind() -> None:
    entries, _ = step((), BROKEN, now="t1")
    entries, counts = step(entries, now="t2")
    assert (entries, counts) == ((), Counts())


def test_a_moved_file_is_renamed_and_keeps_its_day() -> None:
    entries, _ = step((), A, now="t1")
    moved = replace(A, spec="onnx:other.onnx", name="other", measurements=("rows/other",))
    entries, counts = step(entries, moved, now="t2")
    assert counts == Counts(renamed=1)
    assert shown(entries) == [("other", "current", "t1", "t2")]


def test_a_copy_of_a_listed_file_is_new() -> None:
    entries, _ = step((), A, now="t1")
    copy = replace(A, spec="onnx:copy.onnx", name="copy")
    entries, counts = step(entries, A, copy, now="t2")
    assert counts == Counts(unchanged=1, new=1)
    assert shown(entries)[1] == ("copy", "current", "t2", "t2")


def test_another_version_starts_anew_and_keeps_the_old_as_history() -> None:
    entries, _ = step((), A, now="t1")
    entries, counts = step(entries, A, now="t2", version="2")
    assert counts == Counts(new=1, history=1)
    assert [(one.status, one.benchmark_version) for one in entries] == [
        ("current", "2"),
        ("history", "1"),
    ]


PROTOCOL = {"selection": "s" * 64, "labels": "l", "seed": 0, "evaluations": ["grid", "pgd"]}


def state(version: str = "1") -> State:
    entries, counts = step((), A, BROKEN, now="t1", version=version)
    return State(
        benchmark_version=version,
        written="t1",
        seconds=1.5,
        counts=counts,
        entries=entries,
        datasets=(Selection(key="d", spec="digits", name="d", n=3, threat="linf 0.1"),),
        references=(
            Reference(
                model="a",
                dataset="d",
                threat=None,
                metric="clean_accuracy",
                value=0.5,
                source="x",
                comparable=False,
                why="y",
            ),
        ),
        protocol={"d": PROTOCOL},
    )


def test_the_state_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, state())
    assert read_state(tmp_path) == state()


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 1}', '{"schema": 2}'])
def test_a_damaged_state_is_told(tmp_path: Path, content: str) -> None:
    path = state_path(tmp_path)
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(StoreError):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"selection": "x" * 64}, "other images"),
        ({"labels": "m"}, "other labels"),
        ({"seed": 1}, "another seed"),
        ({"evaluations": ["grid"]}, "without pgd"),
        ({"evaluations": ["grid", "pgd", "fgsm"]}, "with fgsm"),
    ],
)
def test_one_version_has_one_protocol(changed: dict[str, object], part: str) -> None:
    wanted = {"d": PROTOCOL | changed}
    with pytest.raises(InputError, match=part) as caught:
        check_protocol(state(), "1", wanted)
    assert "raise benchmark_version" in str(caught.value)
    check_protocol(state(), "2", wanted)
    check_protocol(None, "1", wanted)


def test_datasets_come_and_go_within_a_version() -> None:
    check_protocol(state(), "1", {"d": PROTOCOL, "new": PROTOCOL})
    check_protocol(state(), "1", {"new": PROTOCOL})
