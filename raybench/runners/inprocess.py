"""Every task in this process, one after the other: the runner a debugger works in."""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator

from raybench.core.errors import BudgetSpentError, Interrupted
from raybench.core.work import Event, Outcome, Receipt, Resources, Spent, Task, Worker

__all__ = ["attempt", "describe", "run_in_process"]


def run_in_process(
    make_worker: Callable[[], Worker],
    tasks: Iterable[Task],
    resources: Resources,
    *,
    listener: Callable[[Event], None],
    stop: Callable[[], int | None],
    more: Callable[[Outcome], Iterable[Task]] | None = None,
) -> Outcome:
    """Return what a plain loop over `tasks` achieved, model by model in order of appearance.

    The tasks of a model whose query budget is spent are dropped, those of the others go on.

    Of `resources` it heeds `max_attempts`, and `no_progress_s` between tasks: nothing can cut a
    call short in its own process. A worker that cannot be made is not tried twice, since nothing
    has changed in between.

    Raises:
        Interrupted: `stop` gave an exit code before a task was begun.
    """
    todo = list(tasks)
    if not todo:
        return Outcome()
    try:
        worker = make_worker()
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        return Outcome(gave_up=f"no worker could be started: {describe(error)}")
    outcome = Outcome()
    last_progress = time.monotonic()
    spent: dict[str, str] = {}
    for task in _in_turn(todo, more, outcome):
        if task.resident in spent:
            outcome.spent[task] = spent[task.resident]
            continue
        for used in range(1, resources.max_attempts + 1):
            _poll(stop)
            if time.monotonic() - last_progress > resources.no_progress_s:
                reason = f"no task finished for {resources.no_progress_s:g} s; the next: {task}"
                return Outcome(outcome.receipts, outcome.failures, reason, outcome.spent)
            listener(Event(kind="started", task=task, text="in this process"))
            answer = attempt(worker, task)
            if isinstance(answer, Receipt):
                outcome.receipts[task] = answer
                last_progress = time.monotonic()
                listener(Event(kind="done", task=task, receipt=answer))
                break
            if isinstance(answer, Spent):
                outcome.spent[task] = spent[task.resident] = answer.text
                listener(Event(kind="spent", task=task, text=answer.text))
                break
            if used < resources.max_attempts:
                text = f"attempt {used} of {resources.max_attempts} failed: {answer}"
                listener(Event(kind="retry", task=task, text=text))
            else:
                outcome.failures[task] = answer
                text = f"after {used} attempts: {answer}"
                listener(Event(kind="failed", task=task, text=text))
    return outcome


def _in_turn(
    tasks: Iterable[Task],
    more: Callable[[Outcome], Iterable[Task]] | None,
    outcome: Outcome,
) -> Iterator[Task]:
    """Yield `tasks` model by model in order of appearance, then what `more` has, until it has none.

    `outcome` is filled by the caller in between.
    """
    while True:
        models: dict[str, list[Task]] = {}
        for task in tasks:
            models.setdefault(task.resident, []).append(task)
        for group in models.values():
            yield from group
        if not models or more is None:
            return
        tasks = more(outcome)


def _poll(stop: Callable[[], int | None]) -> None:
    code = stop()
    if code is not None:
        raise Interrupted(code)


def attempt(worker: Worker, task: Task) -> Receipt | Spent | str:
    """Return the worker's receipt for `task`, or the text of the error it raised.

    An error that says that the model's query budget is spent is told apart: trying again is vain.
    """
    try:
        receipt = worker(task)
    except Interrupted:
        raise
    except BudgetSpentError as error:
        return Spent(str(error))
    except Exception as error:  # noqa: BLE001 - one task's error must not end the others
        return describe(error)
    assert receipt.task == task, f"worker answered for {receipt.task}, was given {task}"
    return receipt


def describe(error: BaseException) -> str:
    """Return a line that names the exception, then its three innermost frames."""
    head = "".join(traceback.format_exception_only(error)).strip()
    frames = "".join(traceback.format_tb(error.__traceback__)[-3:]).rstrip()
    return f"{head[:2000]}\n{frames}".rstrip()
