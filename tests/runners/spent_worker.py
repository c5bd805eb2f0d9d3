"""A worker whose models have budgets of tasks, importable by Ray's worker processes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runners.faulty_worker import FaultyWorker

from raybench.core.errors import BudgetSpentError
from raybench.core.work import Receipt, Task


@dataclass(frozen=True)
class SpentWorker:
    """Answers so many tasks of each model, over all processes, and then says it is spent."""

    folder: str
    budgets: Mapping[str, int]
    inner: FaultyWorker = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner", FaultyWorker(self.folder))

    def __call__(self, task: Task) -> Receipt:
        receipt = self.inner(task)
        for number in range(self.budgets.get(task.resident, 1 << 30)):
            try:
                Path(self.folder, f"ticket-{task.resident}-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            return receipt
        raise BudgetSpentError(f"{task.resident}: no tickets left")
