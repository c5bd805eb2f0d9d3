"""What waits for each model, in seconds where tasks like it were timed, and who needs more workers.

    estimates = Estimates()
    estimates.queued(task)                 # waits for a worker
    estimates.taken(task)                  # waits no more
    estimates.timed(task, seconds, loaded=False)
    estimates.held(resident, 1)            # one more worker holds the model
    estimates.next_model(workers)          # the model that a worker without work should load

Tasks of one measurement are alike: one model, one evaluation, shards of one size. Those of a
measurement that nobody timed count with the mean of all that were.
"""

import math
from dataclasses import dataclass

from raybench.core.work import Task

__all__ = ["Estimates"]

# How far, in loads of a model, the workers of a model may be late before they are sent help; and
# after how many timings for each model with work the balance is struck anew. Chosen by simulation
# (tests/unit/test_dispatch_scale.py); what is computed does not depend on them.
_TOLERANCE = 2.0
_STALE = 0.25


@dataclass(slots=True)
class _Measurement:
    """The tasks of one measurement: how many wait, and how long those took that were timed."""

    waiting: int = 0
    timed: int = 0
    mean: float = 0.0


@dataclass(slots=True)
class _Model:
    """What waits for one model: seconds where they are known, tasks where not; and its workers."""

    seconds: float = 0.0
    untimed: int = 0
    waiting: int = 0
    holders: int = 0


class Estimates:
    """Seconds of work that wait, by model; see the module.

    Every call costs O(1), `next_model` at times O(models with tasks that wait).
    """

    def __init__(self) -> None:
        self._measurements: dict[int, _Measurement] = {}
        self._models: dict[str, _Model] = {}
        self._busy: dict[str, _Model] = {}  # those with tasks that wait
        self._mean, self._timed = 0.0, 0
        self._load, self._loads = 0.0, 0
        self._late: list[str] = []  # a model for each worker it lacks, the most pressing last
        self._since = 0

    def queued(self, task: Task) -> None:
        """Count `task` among those that wait."""
        self._count(task, 1)
        self._busy[task.resident] = self._models[task.resident]

    def taken(self, task: Task) -> None:
        """Count `task` no more: it was given to a worker, or decided."""
        self._count(task, -1)
        if not self._models[task.resident].waiting:
            del self._busy[task.resident]

    def held(self, resident: str, change: int) -> None:
        """Count `change` more workers that hold the model."""
        self._models[resident].holders += change

    def timed(self, task: Task, seconds: float, *, loaded: bool) -> None:
        """Take note that `task` took `seconds`, with `loaded` the loading of its model included.

        No seconds at all, as of a part that was there already, say nothing.
        """
        if seconds <= 0:
            return
        self._since += 1
        known = self._measurements[task.measurement]
        if loaded:
            if known.timed:
                self._loads += 1
                self._load += (max(0.0, seconds - known.mean) - self._load) / self._loads
            return
        self._timed += 1
        self._mean += (seconds - self._mean) / self._timed
        model = self._models[task.resident]
        if known.timed:
            model.seconds -= known.mean * known.waiting
        else:
            model.untimed -= known.waiting
        known.timed += 1
        known.mean += (seconds - known.mean) / known.timed
        model.seconds += known.mean * known.waiting

    def expected(self, task: Task, *, loading: bool) -> float | None:
        """Return the seconds that `task` should take, or None where nothing like it was timed.

        `loading`: its model has to be loaded too, which counts with what loads took so far.
        """
        known = self._measurements.get(task.measurement)
        if known is None or not known.timed:
            return None
        return known.mean + (self._load if loading else 0.0)

    def patience(self) -> float:
        """Return the seconds after which a worker that stands by was told wrong."""
        return self._load + self._mean

    def next_model(self, workers: int, *, eager: bool = False) -> str | None:
        """Return the model that one of `workers`, out of work, should load; None: none of them.

        First those that would be late (see `_strike`), then the one whose workers need longest,
        unless they are through before it is loaded elsewhere; `eager` does not look at that.
        """
        if self._since >= _STALE * len(self._busy):
            self._strike(workers)
        while self._late:
            resident = self._late.pop()
            if resident in self._busy:
                return resident
        longest = max(
            self._busy,
            key=lambda name: self._seconds(self._busy[name]) / self._hands(name),
            default=None,
        )
        if longest is None:
            return None
        model, hands = self._busy[longest], self._hands(longest)
        # Those that hold it are half through a task each; then they take what waits in turns.
        each = self._seconds(model) / model.waiting
        worth = each * (math.ceil(model.waiting / hands) + 0.5) >= self._load + each
        return longest if worth or eager else None

    def _strike(self, workers: int) -> None:
        """Find the models that will be late with the workers they have.

        All that waits, shared among all workers, takes T. A worker gets through T / c tasks of
        length c by then, and one that is at work half a task less; a model with more waiting than
        its workers get through lacks some. Long tasks go first, since short ones fit in at the end.
        """
        self._since = 0
        share = sum(map(self._seconds, self._busy.values())) / max(1, workers)
        late: list[tuple[float, str]] = []
        for resident, model in self._busy.items():
            each = self._seconds(model) / model.waiting
            if each <= 0:
                continue
            rounds = math.floor((share + _TOLERANCE * self._load) / each - 0.5)
            needed = (
                math.ceil(model.waiting / rounds) if rounds >= 1 else model.holders + model.waiting
            )
            late += [(each, resident)] * (needed - model.holders)
        self._late = [resident for _, resident in sorted(late)]

    def _hands(self, resident: str) -> int:
        return max(1, self._models[resident].holders)

    def _seconds(self, model: _Model) -> float:
        # Before anything was timed, every task counts the same.
        return model.seconds + model.untimed * (self._mean or 1.0)

    def _count(self, task: Task, change: int) -> None:
        known = self._measurements.setdefault(task.measurement, _Measurement())
        model = self._models.setdefault(task.resident, _Model())
        known.waiting += change
        model.waiting += change
        if known.timed:
            model.seconds += change * known.mean
        else:
            model.untimed += change
