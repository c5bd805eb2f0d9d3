"""Which worker gets which task, and when to stop trying: a pure state machine.

It knows no executor and no clock: a runner reports what happened, carries out the actions it gets
back, and asks `Dispatch.over` whether to go on::

    policy = Dispatch(tasks, slots=2, max_attempts=3, no_progress_s=900.0, now=clock())
    actions = policy.begin()                      # [Start(worker=0), Start(worker=1)]
    actions = policy.ready(0)                     # [Submit(worker=0, task=...), Event(...)]
    actions = policy.finished(0, receipt, now=clock())
    outcome = policy.outcome()

Policy: a worker keeps its resident model while that model has tasks waiting; then it takes a model
nobody holds, in turn; then it helps the model whose workers need longest (`Estimates`), unless they
are through before it could be loaded.
A lost worker is replaced, and only the task it held is charged an attempt. The first verdict on a
task stands: duplicates and late answers change nothing, except that a late receipt of an undecided
task is taken, since a receipt proves a committed part whoever brings it. A model whose query budget
is spent loses the tasks that wait for it; those in flight may still finish.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from raybench.core.work import Event, Outcome, Receipt, Task
from raybench.runners.estimates import Estimates

__all__ = ["MAX_LOSSES", "Action", "Dispatch", "Start", "Submit"]

MAX_LOSSES = 8
"""Workers that one slot may lose in a row, without a finished task, before it is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Make a worker and call it `worker`; the number is never used again."""

    worker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Give `task` to `worker`, which is ready and has none."""

    worker: int
    task: Task


Action = Start | Submit | Event


@dataclass(slots=True, kw_only=True)
class _Worker:
    slot: int
    ready: bool = False
    resident: str | None = None
    task: Task | None = None
    loading: bool = False  # whether `task` is the first with this resident


@dataclass(slots=True, kw_only=True)
class _Slot:
    """A place for one worker at a time, and how often it was filled in vain."""

    failed_starts: int = 0
    losses: int = 0


class Dispatch:
    """Decides over a set of tasks, which may be added to, and at most `slots` workers at a time.

    Every call costs O(1), and O(slots + models) where a worker changes its model or is lost. Times
    are seconds of any clock that never runs backwards.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        *,
        slots: int,
        max_attempts: int,
        no_progress_s: float,
        now: float,
    ) -> None:
        self._attempts = dict.fromkeys(tasks, 0)  # undecided tasks: attempts used up
        self._waiting: dict[str, OrderedDict[Task, None]] = {}
        self._estimates = Estimates()
        for task in self._attempts:
            self._estimates.queued(task)
            self._waiting.setdefault(task.resident, OrderedDict())[task] = None
        self._num_waiting = len(self._attempts)
        # Models with waiting tasks that no worker holds, in turn; and how many hold the others.
        self._unserved: OrderedDict[str, None] = OrderedDict.fromkeys(self._waiting)
        self._served: dict[str, int] = {}
        self._workers: dict[int, _Worker] = {}
        self._idle: dict[int, None] = {}
        self._slots = [_Slot() for _ in range(slots)]
        self._free = list(range(slots))[::-1]
        self._num_open = slots
        self._next_worker = 0
        self._any_ready = False
        self._killers: set[Task] = set()
        self._receipts: dict[Task, Receipt] = {}
        self._failures: dict[Task, str] = {}
        self._dropped: dict[Task, str] = {}
        self._spent: dict[str, str] = {}  # models whose query budget is spent: what said so
        self._gave_up: str | None = None
        self._max_attempts = max_attempts
        self._no_progress_s = no_progress_s
        self._last_progress = now
        self._standing_by: float | None = None  # since when workers are idle while tasks wait

    @property
    def over(self) -> bool:
        """Whether every task is decided, or the run gave up."""
        return not self._attempts or self._gave_up is not None

    def outcome(self) -> Outcome:
        """Return what was achieved so far."""
        receipts, failures = dict(self._receipts), dict(self._failures)
        return Outcome(receipts, failures, self._gave_up, dict(self._dropped))

    def begin(self) -> list[Action]:
        """Return the first actions: a start for each slot, at most one for each task."""
        return self._fill_slots()

    def add(self, tasks: Iterable[Task], *, now: float) -> list[Action]:
        """Return what follows `tasks` that nobody has seen before; workers are kept for them."""
        for task in tasks:
            assert task not in self._attempts, f"the same task twice: {task}"
            assert task not in self._receipts, f"already done: {task}"
            assert task not in self._failures, f"already given up: {task}"
            if task.resident in self._spent:
                self._dropped[task] = self._spent[task.resident]
                continue
            self._attempts[task] = 0
            self._waiting.setdefault(task.resident, OrderedDict())[task] = None
            self._estimates.queued(task)
            self._num_waiting += 1
            if task.resident not in self._served:
                self._unserved[task.resident] = None
        self._last_progress = now
        return self._fill_slots() + self._assign()

    def ready(self, worker: int) -> list[Action]:
        """Return what `worker`, made and waiting, shall do."""
        known = self._workers.get(worker)
        if known is None or known.ready:
            return []
        known.ready = self._any_ready = True
        self._slots[known.slot].failed_starts = 0
        self._idle[worker] = None
        return self._assign()

    def finished(self, worker: int, receipt: Receipt, *, now: float) -> list[Action]:
        """Return what follows the receipt of a task, which may be late or a duplicate."""
        actions: list[Action] = []
        task = receipt.task
        if task in self._attempts:
            del self._attempts[task]
            self._take_back(task)
            self._receipts[task] = receipt
            self._last_progress = now
            actions.append(Event(kind="done", task=task, receipt=receipt))
        known = self._release(worker, task)
        if known is not None:
            self._slots[known.slot].losses = 0
            self._estimates.timed(task, receipt.seconds, loaded=known.loading)
        return actions + self._assign()

    def failed(self, worker: int, task: Task, error: str) -> list[Action]:
        """Return what follows an error of `task`; the worker lives on."""
        if self._release(worker, task) is None:
            return []
        return self._charge(task, error) + self._assign()

    def spent(self, worker: int, task: Task, error: str) -> list[Action]:
        """Return what follows where the query budget of the model of `task` ended it.

        The tasks that wait for that model are dropped with it: none of them could do better.
        """
        if self._release(worker, task) is None:
            return []
        self._spent.setdefault(task.resident, error)
        self._drop(task)
        waiting = self._waiting[task.resident]
        self._num_waiting -= len(waiting)
        for other in waiting:
            self._estimates.taken(other)
            self._drop(other)
        waiting.clear()
        self._unserved.pop(task.resident, None)
        return [Event(kind="spent", task=task, text=error), *self._assign()]

    def lost(self, worker: int, reason: str) -> list[Action]:
        """Return what follows the loss of `worker`, or the failure to make it."""
        known = self._workers.pop(worker, None)
        if known is None:
            return []
        self._idle.pop(worker, None)
        if known.resident is not None:
            self._let_go(known.resident)
        where = "at work" if known.task else "while idle" if known.ready else "at its start"
        actions: list[Action] = [
            Event(kind="worker-lost", task=known.task, text=f"worker {worker} {where}: {reason}")
        ]
        if self._blame_slot(known):
            self._num_open -= 1
            if self._num_open:
                text = f"going on with {self._num_open} of {len(self._slots)} workers: {reason}"
                actions.append(Event(kind="note", text=text))
        else:
            self._free.append(known.slot)
        if known.task is not None:
            self._killers.add(known.task)
            actions += self._charge(known.task, f"the worker died computing it: {reason}")
        if self._attempts and self._gave_up is None and self._hopeless():
            what = "keep running" if self._any_ready else "be started"
            self._gave_up = f"no worker could {what}; the last one was lost {where}: {reason}"
        return actions + self._fill_slots() + self._assign()

    def tick(self, now: float) -> list[Action]:
        """Return what time alone brings about; give up when no task has finished for too long."""
        if self.over:
            return []
        if now - self._last_progress <= self._no_progress_s:
            return self._lose_patience(now)
        held = [f"{w.task} on worker {n}" for n, w in self._workers.items() if w.task]
        shown = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        num_ready = sum(w.ready for w in self._workers.values())
        self._gave_up = (
            f"no task finished for {self._no_progress_s:g} s: {len(self._attempts)} undecided, "
            f"{num_ready} of {len(self._workers)} workers ready, in flight: {shown or 'none'}; "
            "if tasks may take that long, raise no_progress_s"
        )
        return []

    def _lose_patience(self, now: float) -> list[Action]:
        """Send idle workers to help after all, where those they left alone are slower than thought.

        Otherwise one slow task could keep others waiting behind it while workers stand by.
        """
        if not self._num_waiting or not self._idle:
            self._standing_by = None
            return []
        if self._standing_by is None:
            self._standing_by = now
        if now - self._standing_by <= self._estimates.patience():
            return []
        self._standing_by = None
        return self._assign(eager=True)

    def _fill_slots(self) -> list[Action]:
        """Start workers in free slots while there are more undecided tasks than workers."""
        actions: list[Action] = []
        while self._free and len(self._workers) < len(self._attempts) and self._gave_up is None:
            worker, self._next_worker = self._next_worker, self._next_worker + 1
            self._workers[worker] = _Worker(slot=self._free.pop())
            actions.append(Start(worker=worker))
        return actions

    def _assign(self, *, eager: bool = False) -> list[Action]:
        """Give waiting tasks to idle workers: first those that hold the right model.

        `eager`: help also where that does not seem to end anything sooner.
        """
        if not self._num_waiting or not self._idle or self._gave_up is not None:
            return []
        actions: list[Action] = []
        holders = [n for n in self._idle if self._workers[n].resident is not None]
        for number in holders:
            resident = self._workers[number].resident
            if resident is not None and self._waiting[resident]:
                actions += self._submit(number, resident)
        for number in list(self._idle):
            chosen = self._choose(eager=eager)
            if chosen is None:
                break
            actions += self._submit(number, chosen)
        return actions

    def _choose(self, *, eager: bool) -> str | None:
        """Return the model an idle worker should load next, or None when nothing waits."""
        if self._unserved:
            return next(iter(self._unserved))
        return self._estimates.next_model(len(self._workers), eager=eager)

    def _submit(self, number: int, resident: str) -> list[Action]:
        worker = self._workers[number]
        worker.loading = worker.resident != resident
        if worker.loading:
            self._unserved.pop(resident, None)
            self._served[resident] = self._served.get(resident, 0) + 1
            self._estimates.held(resident, 1)
            if worker.resident is not None:
                self._let_go(worker.resident)
            worker.resident = resident
        task, _ = self._waiting[resident].popitem(last=False)
        self._estimates.taken(task)
        self._num_waiting -= 1
        worker.task = task
        del self._idle[number]
        note = Event(kind="started", task=task, text=f"on worker {number}")
        return [Submit(worker=number, task=task), note]

    def _let_go(self, resident: str) -> None:
        """Count one holder less; a model with work and no holder waits for its turn again."""
        self._served[resident] -= 1
        self._estimates.held(resident, -1)
        if not self._served[resident]:
            del self._served[resident]
            if self._waiting[resident]:
                self._unserved[resident] = None

    def _release(self, number: int, task: Task) -> _Worker | None:
        """Return the worker that held `task`, now idle; None when the answer is a stray."""
        worker = self._workers.get(number)
        if worker is None or worker.task != task:
            return None
        worker.task = None
        self._idle[number] = None
        return worker

    def _take_back(self, task: Task) -> None:
        """Take a task decided by a late receipt out of the queue, if it was back there."""
        queue = self._waiting[task.resident]
        if task in queue:
            del queue[task]
            self._estimates.taken(task)
            self._num_waiting -= 1
            if not queue:
                self._unserved.pop(task.resident, None)

    def _charge(self, task: Task, error: str) -> list[Action]:
        """Use up one attempt: queue the task again, behind the others, or report it."""
        if task not in self._attempts:
            return []
        if task.resident in self._spent:
            self._drop(task)
            return []
        self._attempts[task] += 1
        used = self._attempts[task]
        if used >= self._max_attempts:
            del self._attempts[task]
            self._failures[task] = error
            return [Event(kind="failed", task=task, text=f"after {used} attempts: {error}")]
        self._waiting[task.resident][task] = None
        self._estimates.queued(task)
        self._num_waiting += 1
        if task.resident not in self._served:
            self._unserved[task.resident] = None
        text = f"attempt {used} of {self._max_attempts} failed: {error}"
        return [Event(kind="retry", task=task, text=text)]

    def _drop(self, task: Task) -> None:
        """Decide an undecided task: its model's query budget is spent."""
        if self._attempts.pop(task, None) is not None:
            self._dropped[task] = self._spent[task.resident]

    def _blame_slot(self, worker: _Worker) -> bool:
        """Return whether the slot of a lost worker has had enough, and closes."""
        slot = self._slots[worker.slot]
        if not worker.ready:
            slot.failed_starts += 1
        # A task that killed before says nothing new about the slot: its attempts bound the harm.
        elif worker.task not in self._killers:
            slot.losses += 1
        return slot.failed_starts >= self._max_attempts or slot.losses >= MAX_LOSSES

    def _hopeless(self) -> bool:
        """Whether no slot is open, or each slot failed to start before any worker was ready."""
        if not self._num_open:
            return True
        failed = [slot.failed_starts for slot in self._slots]
        return not self._any_ready and all(failed) and sum(failed) >= self._max_attempts
