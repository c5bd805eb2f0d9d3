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
A lost worker is replaced, and only the task it held is charged an attempt. One that is told to end
(`leaving`) finishes what it holds if there is time, else the task is put back uncharged; either way
it is replaced. The first verdict on a
task stands: duplicates and late answers change nothing, except that a late receipt of an undecided
task is taken, since a receipt proves a committed part whoever brings it. A model whose query budget
is spent loses the tasks that wait for it; those in flight may still finish.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from raybench.core.work import Event, Outcome, Receipt, Task
from raybench.runners.actions import Action, Start, Stop, Submit
from raybench.runners.places import MAX_LOSSES, Loss, Places
from raybench.runners.queues import Queues

__all__ = ["MAX_LOSSES", "MAX_RELEASES", "Action", "Dispatch", "Start", "Stop", "Submit"]

MAX_RELEASES = 5
"""Times that a task may be put back uncharged; then it may be what ends its workers.

Fewer than MAX_LOSSES, so that such a task is charged before its slot is suspected.
"""


@dataclass(slots=True, kw_only=True)
class _Worker:
    slot: int
    ready: bool = False
    resident: str | None = None
    task: Task | None = None
    loading: bool = False  # whether `task` is the first with this resident
    since: float = 0.0  # when it was given `task`
    until: float | None = None  # when it ends, once it was told to
    why: str = ""


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
        self._queues = Queues()
        for task in self._attempts:
            self._queues.add(task)
        self._workers: dict[int, _Worker] = {}
        self._idle: dict[int, None] = {}
        self._places = Places(slots, max_failed_starts=max_attempts)
        self._next_worker = 0
        self._leaving: dict[int, None] = {}
        self._releases: Counter[Task] = Counter()
        self._killers: set[Task] = set()
        self._receipts: dict[Task, Receipt] = {}
        self._failures: dict[Task, str] = {}
        self._dropped: dict[Task, str] = {}
        self._spent: dict[str, str] = {}  # models whose query budget is spent: what said so
        self._gave_up: str | None = None
        self._max_attempts = max_attempts
        self._no_progress_s = no_progress_s
        self._now = self._last_progress = now
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
            self._queues.add(task)
        self._now = self._last_progress = now
        return self._fill_slots() + self._assign()

    def widen(self, slots: int) -> list[Action]:
        """Return what follows where there is room for `slots` workers, if that is more than so far.

        With less room nothing changes: workers that have no place wait for one.
        """
        self._places.widen(slots)
        return self._fill_slots()

    def ready(self, worker: int) -> list[Action]:
        """Return what `worker`, made and waiting, shall do."""
        known = self._workers.get(worker)
        if known is None or known.ready:
            return []
        known.ready = True
        self._places.ready(known.slot)
        self._idle[worker] = None
        return self._assign()

    def finished(self, worker: int, receipt: Receipt, *, now: float) -> list[Action]:
        """Return what follows the receipt of a task, which may be late or a duplicate."""
        actions: list[Action] = []
        self._now = now
        task = receipt.task
        if task in self._attempts:
            del self._attempts[task]
            self._queues.remove(task)
            self._receipts[task] = receipt
            self._last_progress = now
            actions.append(Event(kind="done", task=task, receipt=receipt, worker=worker))
        known = self._release(worker, task)
        if known is not None:
            self._places.worked(known.slot)
            self._queues.estimates.timed(task, receipt.seconds, loaded=known.loading)
        return actions + self._see_off(worker) + self._assign()

    def failed(self, worker: int, task: Task, error: str) -> list[Action]:
        """Return what follows an error of `task`; the worker lives on."""
        if self._release(worker, task) is None:
            return []
        return self._charge(task, error, worker) + self._see_off(worker) + self._assign()

    def spent(self, worker: int, task: Task, error: str) -> list[Action]:
        """Return what follows where the query budget of the model of `task` ended it.

        The tasks that wait for that model are dropped with it: none of them could do better.
        """
        if self._release(worker, task) is None:
            return []
        self._spent.setdefault(task.resident, error)
        self._drop(task)
        for other in self._queues.clear(task.resident):
            self._drop(other)
        note = Event(kind="spent", task=task, text=error, worker=worker)
        return [note, *self._see_off(worker), *self._assign()]

    def leaving(
        self, worker: int, reason: str, *, now: float, until: float = math.inf
    ) -> list[Action]:
        """Return what follows the notice that `worker` ends at `until`; it gets no further task.

        It is stopped at once where it holds no task, or one that would take longer by what such
        tasks took so far. One of which nothing is known may go on until then.
        """
        self._now = max(self._now, now)
        known = self._workers.get(worker)
        if known is None or known.until is not None:
            return []
        known.until, known.why = until, reason
        self._leaving[worker] = None
        if known.task is None:
            return self._see_off(worker) + self._assign()
        needs = self._queues.estimates.expected(known.task, loading=known.loading)
        if needs is None or known.since + needs <= until:
            return []
        more = max(0.0, known.since + needs - self._now)
        left = f"it needs {more:.1f} s more, {max(0.0, until - self._now):.1f} s are left"
        return self.released(worker, known.task, f"{reason}; {left}", now=now)

    def released(self, worker: int, task: Task, reason: str, *, now: float) -> list[Action]:
        """Return what follows where `worker`, which leaves, could not finish `task`.

        The task is put back before the others of its model and costs no attempt, until that has
        happened MAX_RELEASES times.
        """
        self._now = max(self._now, now)
        known = self._workers.get(worker)
        if known is None or known.task != task:
            return []
        if known.until is None:
            known.until, known.why = now, reason
            self._leaving[worker] = None
        self._release(worker, task)
        return self._put_back(task, reason, worker) + self._see_off(worker) + self._assign()

    def lost(self, worker: int, reason: str, *, told: bool = False) -> list[Action]:
        """Return what follows the loss of `worker`, or the failure to make it.

        `told`: it, or its machine, was told to end, so that the task it held costs no attempt. So
        it is with one that was leaving anyway.
        """
        known = self._workers.get(worker)
        if known is None:
            return []
        told = told or known.until is not None
        where = "at work" if known.task else "while idle" if known.ready else "at its start"
        # A task that killed before says nothing new about the slot: its attempts bound the harm.
        killed = known.ready and known.task in self._killers
        if told:
            loss = Loss.TOLD if known.task or not known.ready else Loss.EXCUSED
        else:
            loss = Loss.AT_START if not known.ready else Loss.EXCUSED if killed else Loss.ALIVE
        kind, text = "worker-left" if told else "worker-lost", f"worker {worker} {where}: {reason}"
        actions: list[Action] = [Event(kind=kind, task=known.task, text=text, worker=worker)]
        actions += self._empty(worker, loss, reason)
        if known.task is not None and told:
            actions += self._put_back(known.task, reason, worker)
        elif known.task is not None:
            self._killers.add(known.task)
            text = f"the worker died computing it: {reason}"
            actions += self._charge(known.task, text, worker)
        if self._attempts and self._gave_up is None and self._places.hopeless:
            what = "keep running" if self._places.any_ready else "be started"
            self._gave_up = f"no worker could {what}; the last one was lost {where}: {reason}"
        return actions + self._fill_slots() + self._assign()

    def tick(self, now: float) -> list[Action]:
        """Return what time alone brings about; give up when no task has finished for too long."""
        if self.over:
            return []
        self._now = max(self._now, now)
        late: list[Action] = []
        for worker in list(self._leaving):
            known = self._workers[worker]
            if known.task is not None and known.until is not None and now >= known.until:
                late += self.released(worker, known.task, f"{known.why}; its time is up", now=now)
        if now - self._last_progress <= self._no_progress_s:
            return late + self._lose_patience(now)
        held = [f"{w.task} on worker {n}" for n, w in self._workers.items() if w.task]
        shown = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
        num_ready = sum(w.ready for w in self._workers.values())
        self._gave_up = (
            f"no task finished for {self._no_progress_s:g} s: {len(self._attempts)} undecided, "
            f"{num_ready} of {len(self._workers)} workers ready, in flight: {shown or 'none'}; "
            "if tasks may take that long, raise no_progress_s"
        )
        return late

    def _lose_patience(self, now: float) -> list[Action]:
        """Send idle workers to help after all, where those they left alone are slower than thought.

        Otherwise one slow task could keep others waiting behind it while workers stand by.
        """
        if not self._queues or not self._idle:
            self._standing_by = None
            return []
        if self._standing_by is None:
            self._standing_by = now
        if now - self._standing_by <= self._queues.estimates.patience():
            return []
        self._standing_by = None
        return self._assign(eager=True)

    def _fill_slots(self) -> list[Action]:
        """Start workers in free slots while there are more undecided tasks than workers."""
        actions: list[Action] = []
        wanted = 0 if self._gave_up is not None else len(self._attempts)
        while self._places.any_free and len(self._workers) < wanted:
            worker, self._next_worker = self._next_worker, self._next_worker + 1
            self._workers[worker] = _Worker(slot=self._places.take())
            actions.append(Start(worker=worker))
        return actions

    def _assign(self, *, eager: bool = False) -> list[Action]:
        """Give waiting tasks to idle workers: first those that hold the right model.

        `eager`: help also where that does not seem to end anything sooner.
        """
        if not self._queues or not self._idle or self._gave_up is not None:
            return []
        actions: list[Action] = []
        holders = [n for n in self._idle if self._workers[n].resident is not None]
        for number in holders:
            resident = self._workers[number].resident
            if resident is not None and self._queues.wait_for(resident):
                actions += self._submit(number, resident)
        for number in list(self._idle):
            chosen = self._queues.choose(len(self._workers), eager=eager)
            if chosen is None:
                break
            actions += self._submit(number, chosen)
        return actions

    def _submit(self, number: int, resident: str) -> list[Action]:
        worker = self._workers[number]
        worker.loading = worker.resident != resident
        if worker.loading:
            self._queues.hold(resident)
            if worker.resident is not None:
                self._queues.let_go(worker.resident)
            worker.resident = resident
        task = self._queues.pop(resident)
        worker.task, worker.since = task, self._now
        del self._idle[number]
        seconds = self._queues.estimates.expected(task, loading=worker.loading)
        note = Event(kind="started", task=task, text=f"on worker {number}", worker=number)
        return [Submit(worker=number, task=task, seconds=seconds), note]

    def _release(self, number: int, task: Task) -> _Worker | None:
        """Return the worker that held `task`, now idle; None when the answer is a stray."""
        worker = self._workers.get(number)
        if worker is None or worker.task != task:
            return None
        worker.task = None
        if worker.until is None:
            self._idle[number] = None
        return worker

    def _see_off(self, number: int) -> list[Action]:
        """Stop the worker if it is leaving and holds nothing, and start another elsewhere."""
        worker = self._workers.get(number)
        if worker is None or worker.until is None or worker.task is not None:
            return []
        text = f"worker {number}: {worker.why}"
        left: list[Action] = [
            Stop(worker=number),
            Event(kind="worker-left", text=text, worker=number),
        ]
        loss = Loss.EXCUSED if worker.ready else Loss.TOLD
        return left + self._empty(number, loss, worker.why) + self._fill_slots()

    def _empty(self, number: int, loss: Loss, reason: str) -> list[Action]:
        """Forget a worker; its slot is free, or has had enough and closes."""
        worker = self._workers.pop(number)
        self._idle.pop(number, None)
        self._leaving.pop(number, None)
        if worker.resident is not None:
            self._queues.let_go(worker.resident)
        if not self._places.empty(worker.slot, loss) or not self._places.num_open:
            return []
        some = f"{self._places.num_open} of {self._places.count}"
        return [Event(kind="note", text=f"going on with {some} workers: {reason}")]

    def _put_back(self, task: Task, reason: str, worker: int) -> list[Action]:
        """Queue a task that its worker could not finish again, before the others, uncharged."""
        if task not in self._attempts:
            return []
        if task.resident in self._spent:
            self._drop(task)
            return []
        self._releases[task] += 1
        if self._releases[task] > MAX_RELEASES:
            text = f"put back {MAX_RELEASES} times before: {reason}"
            return self._charge(task, text, worker)
        self._queues.add(task, first=True)
        return [Event(kind="released", task=task, text=f"put back: {reason}", worker=worker)]

    def _charge(self, task: Task, error: str, worker: int) -> list[Action]:
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
            text = f"after {used} attempts: {error}"
            return [Event(kind="failed", task=task, text=text, worker=worker)]
        self._queues.add(task)
        text = f"attempt {used} of {self._max_attempts} failed: {error}"
        return [Event(kind="retry", task=task, text=text, worker=worker)]

    def _drop(self, task: Task) -> None:
        """Decide an undecided task: its model's query budget is spent."""
        if self._attempts.pop(task, None) is not None:
            self._dropped[task] = self._spent[task.resident]
