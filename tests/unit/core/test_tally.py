"""Counts of a run's events, measurement by measurement."""

import pytest

from raybench.core.tally import Tally
from raybench.core.work import Event, Receipt, Task

TASK = Task(0, 3, "m")


def receipt(**more: float) -> Receipt:
    facts = {"rows": 10, "errors": 1, "queries": 1000, "seconds": 4.0, "model_seconds": 3.0}
    return Receipt(task=TASK, file="f", sha256="0", size=1, **facts | more)


def test_every_kind_counts_where_it_belongs() -> None:
    tally = Tally()
    kinds = ["started", "retry", "started", "released", "started", "failed", "worker-lost", "note"]
    for second, kind in enumerate(kinds):
        tally.add(Event(kind=kind, task=TASK), now=100.0 + second)
    assert (tally.done, tally.failed, tally.retried, tally.released) == (0, 1, 1, 1)
    assert tally.images_per_second == 0.0
    assert tally.model_share == 0.0
    tally.add(Event(kind="done", task=TASK, receipt=receipt()), now=105.0)
    tally.add(Event(kind="done", task=TASK, receipt=receipt(model_seconds=1.0)), now=110.0)
    assert (tally.done, tally.images, tally.unscored, tally.queries) == (2, 20, 2, 2000)
    assert tally.images_per_second == pytest.approx(20 / 10.0)
    assert tally.model_share == pytest.approx(4.0 / 8.0)


def test_a_part_that_was_there_already_divides_nothing_by_zero() -> None:
    tally = Tally()
    found = receipt(seconds=0.0, model_seconds=0.0, queries=0)
    tally.add(Event(kind="done", task=TASK, receipt=found), now=5.0)
    assert tally.done == 1
    assert tally.images_per_second == 0.0
    assert tally.model_share == 0.0
