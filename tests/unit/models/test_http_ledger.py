"""The budget is exact over threads and processes, and answers come back to the bit."""

import multiprocessing
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from http_spenders import keep_many, spend

from raybench.core.errors import BudgetSpentError, StoreError
from raybench.models import http_ledger
from raybench.models.http_ledger import Answers, Ledger, open_answers, open_ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def test_a_budget_is_spent_exactly_and_no_more(path: Path) -> None:
    with closing(Ledger(path, "u")) as ledger:
        ledger.reserve(60, budget=100, rps=None)
        with pytest.raises(BudgetSpentError, match="60 of 100 queries are spent"):
            ledger.reserve(41, budget=100, rps=None)
        ledger.reserve(40, budget=100, rps=None)
        with pytest.raises(BudgetSpentError):
            ledger.reserve(1, budget=100, rps=None)
        assert ledger.total == ledger.paid == 100
        ledger.refund(40)
        ledger.reserve(30, budget=100, rps=None)
        assert ledger.total == 90


def test_a_larger_budget_goes_on_and_a_smaller_one_does_not(path: Path) -> None:
    assert spend(path, 10, 100) == 100
    assert spend(path, 10, 50) == 0
    assert spend(path, 10, 130) == 30
    with closing(Ledger(path, "u")) as ledger:
        assert (ledger.total, ledger.paid) == (130, 0)


def test_threads_share_a_budget(path: Path) -> None:
    with closing(Ledger(path, "u")) as ledger, ThreadPoolExecutor(8) as pool:

        def take(_: int) -> int:
            try:
                ledger.reserve(7, budget=100, rps=None)
            except BudgetSpentError:
                return 0
            return 7

        assert sum(pool.map(take, range(40))) == 98
        assert ledger.total == 98


def test_processes_share_a_budget(path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        got = pool.starmap(spend, [(path, size, 200) for size in (3, 4, 5)])
    with closing(Ledger(path, "u")) as ledger:
        assert sum(got) == ledger.total
    assert 198 <= sum(got) <= 200


def test_turns_are_given_at_the_rate_over_all_who_ask(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(http_ledger.time, "time", lambda: now)
    with closing(Ledger(path, "u")) as one, closing(Ledger(path, "u")) as other:
        waits = [each.reserve(1, budget=None, rps=4.0) for each in (one, other, one, other)]
        assert waits == pytest.approx([0, 0.25, 0.5, 0.75])
        now = 1003.0
        assert one.reserve(1, budget=None, rps=4.0) == 0
        other.pause(5.0)
        assert one.reserve(1, budget=None, rps=4.0) == pytest.approx(5.0)
        assert one.reserve(1, budget=None, rps=None) == pytest.approx(5.25)


def test_a_clock_set_back_makes_nobody_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5000.0
    monkeypatch.setattr(http_ledger.time, "time", lambda: now)
    with closing(Ledger(path, "u")) as ledger:
        ledger.reserve(1, budget=None, rps=1.0)
        now = 1000.0
        assert ledger.reserve(1, budget=None, rps=1.0) == pytest.approx(1.0)
        assert ledger.reserve(1, budget=None, rps=1.0) == pytest.approx(2.0)


def test_a_slow_rate_keeps_a_long_queue_in_order(path: Path) -> None:
    with closing(Ledger(path, "u")) as ledger:
        waits = [ledger.reserve(1, budget=None, rps=0.01) for _ in range(20)]
    assert np.diff(waits) == pytest.approx(np.full(19, 100.0), abs=2.0)


def test_ledgers_are_by_address_and_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path))
    with (
        closing(open_ledger("http://h/a", None)) as one,
        closing(open_ledger("http://h/a", "2")) as two,
        closing(open_ledger("http://h/b", None)) as three,
        closing(open_ledger("http://h/a", None)) as same,
    ):
        one.reserve(5, budget=None, rps=None)
        assert [each.total for each in (one, two, three, same)] == [5, 0, 0, 5]
        assert one.id == same.id
        assert len({one.id, two.id, three.id}) == 3


def test_a_damaged_ledger_is_named_and_asks_nothing(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match=r"ledger\.sqlite.*move it away"):
        Ledger(path, "u")


def test_answers_come_back_to_the_bit_and_the_first_stays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    double = rng.normal(size=(5, 10))
    single = double.astype(np.float32).astype(np.float64)
    odd = np.array([[np.nan, 1.0], [-np.inf, 1e300]])
    labels = np.array([3, 1, 9], dtype=np.int64)
    with closing(Answers(tmp_path / "a.sqlite")) as answers:
        for key, values in enumerate((double, single, odd, labels)):
            name = bytes([key])
            assert answers.get(name) is None
            assert answers.keep(name, values) is values
            found = answers.get(name)
            assert found is not None
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values)
        np.testing.assert_array_equal(answers.keep(b"\0", double + 1), double)
    with closing(sqlite3.connect(tmp_path / "a.sqlite")) as file:
        sizes = dict(file.execute("SELECT kind, length(content) FROM answers").fetchall())
    assert (sizes["f"], sizes["q"]) == (5 * 10 * 4, 3 * 8)


def test_a_damaged_answer_counts_as_absent_and_is_replaced(tmp_path: Path) -> None:
    with closing(Answers(tmp_path / "a.sqlite")) as answers:
        values = np.arange(6.0).reshape(2, 3)
        answers.keep(b"k", values)
        with closing(sqlite3.connect(tmp_path / "a.sqlite")) as file, file:
            file.execute("UPDATE answers SET content = ?", (b"\0" * 24,))
        assert answers.get(b"k") is None
        answers.keep(b"k", values)
        np.testing.assert_array_equal(answers.get(b"k"), values)


def test_processes_keep_answers_side_by_side(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        pool.starmap(keep_many, [(tmp_path / "a.sqlite", 0), (tmp_path / "a.sqlite", 10)])
    with closing(Answers(tmp_path / "a.sqlite")) as answers:
        for key in range(30):
            np.testing.assert_array_equal(
                answers.get(key.to_bytes(4, "big")), np.full((2, 3), float(key))
            )


def test_both_files_lie_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path))
    began = time.monotonic()
    with closing(open_ledger("http://h/", "1")), closing(open_answers("http://h/", "1")):
        found = {path.name for path in tmp_path.glob("http/*/*.sqlite")}
    assert found == {"ledger.sqlite", "answers.sqlite"}
    assert time.monotonic() - began < 5
