"""What other processes do to a ledger and its answers; importable by those that are spawned."""

from contextlib import closing
from pathlib import Path

import numpy as np

from raybench.core.errors import BudgetSpentError
from raybench.models.http_ledger import Answers, Ledger


def spend(path: Path, size: int, budget: int) -> int:
    """Take `size` queries again and again until the budget is spent; return how many were got."""
    with closing(Ledger(path, "u")) as ledger:
        while True:
            try:
                ledger.reserve(size, budget=budget, rps=None)
            except BudgetSpentError:
                return ledger.paid


def keep_many(path: Path, start: int) -> None:
    """Keep twenty answers, each of its own key."""
    with closing(Answers(path)) as answers:
        for key in range(start, start + 20):
            answers.keep(key.to_bytes(4, "big"), np.full((2, 3), float(key)))
