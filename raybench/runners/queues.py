"""The tasks that wait for a worker, model by model, and how many workers hold each model.

    queues = Queues()
    queues.add(task)
    resident = queues.choose(workers=4)        # the model that a worker without work should load
    queues.hold(resident)
    task = queues.pop(resident)
    queues.let_go(resident)

Which worker is idle, and how often a task was tried, is the policy's.
"""

from collections import OrderedDict

from raybench.core.work import Task
from raybench.runners.estimates import Estimates

__all__ = ["Queues"]


class Queues:
    """Tasks in order for each model; `estimates` knows what they should take.

    Every call costs O(1), `choose` at times O(models with tasks that wait).
    """

    def __init__(self) -> None:
        self.estimates = Estimates()
        self._waiting: dict[str, OrderedDict[Task, None]] = {}
        self._num = 0
        # Models with waiting tasks that no worker holds, in turn; and how many hold the others.
        self._unserved: OrderedDict[str, None] = OrderedDict()
        self._served: dict[str, int] = {}

    def __len__(self) -> int:
        """How many tasks wait."""
        return self._num

    def add(self, task: Task, *, first: bool = False) -> None:
        """Let a task wait behind the others of its model, or before them."""
        queue = self._waiting.setdefault(task.resident, OrderedDict())
        queue[task] = None
        if first:
            queue.move_to_end(task, last=False)
        self.estimates.queued(task)
        self._num += 1
        if task.resident not in self._served:
            self._unserved[task.resident] = None

    def wait_for(self, resident: str) -> bool:
        """Return whether tasks wait for the model."""
        return bool(self._waiting[resident])

    def pop(self, resident: str) -> Task:
        """Return the first task of the model, which waits no more."""
        task, _ = self._waiting[resident].popitem(last=False)
        self._forget(task)
        return task

    def remove(self, task: Task) -> None:
        """Let a task wait no more, if it does."""
        queue = self._waiting[task.resident]
        if task in queue:
            del queue[task]
            self._forget(task)
            if not queue:
                self._unserved.pop(task.resident, None)

    def clear(self, resident: str) -> list[Task]:
        """Return the tasks that waited for the model; none does any more."""
        queue = self._waiting[resident]
        gone = list(queue)
        queue.clear()
        for task in gone:
            self._forget(task)
        self._unserved.pop(resident, None)
        return gone

    def choose(self, workers: int, *, eager: bool) -> str | None:
        """Return the model that one of `workers` should load next, or None: none of them.

        One that nobody holds, in turn; else as `Estimates.next_model` says.
        """
        if self._unserved:
            return next(iter(self._unserved))
        return self.estimates.next_model(workers, eager=eager)

    def hold(self, resident: str) -> None:
        """Count one more worker that holds the model."""
        self._unserved.pop(resident, None)
        self._served[resident] = self._served.get(resident, 0) + 1
        self.estimates.held(resident, 1)

    def let_go(self, resident: str) -> None:
        """Count one holder less; a model with work and no holder waits for its turn again."""
        self._served[resident] -= 1
        self.estimates.held(resident, -1)
        if not self._served[resident]:
            del self._served[resident]
            if self._waiting[resident]:
                self._unserved[resident] = None

    def _forget(self, task: Task) -> None:
        self.estimates.taken(task)
        self._num -= 1
