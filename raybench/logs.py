"""The log of a run: its events as JSON lines, with the ids of run, model, measurement and shard.

    display = logged(display, plan, run)          # shows as before, and logs where anyone listens

See `raybench.sinks.logs` for where the lines go. Values under ``error`` explain what went wrong;
``text`` is what the user was told.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raybench.core.plan import Measurement, Plan
from raybench.core.work import Event
from raybench.sinks.logs import LOGGER
from raybench.sinks.mlflow import Tracker

if TYPE_CHECKING:
    from raybench.driver import Display

__all__ = ["LoggedDisplay", "logging_is_on"]

_LOG = logging.getLogger(f"{LOGGER}.run")
_NAMES = {
    "started": ("shard-started", logging.INFO),
    "done": ("shard-done", logging.INFO),
    "retry": ("shard-retried", logging.WARNING),
    "released": ("shard-released", logging.WARNING),
    "failed": ("shard-failed", logging.ERROR),
    "spent": ("budget-spent", logging.ERROR),
    "worker-lost": ("worker-lost", logging.WARNING),
    "worker-left": ("worker-left", logging.INFO),
    "note": ("note", logging.WARNING),
}


def logging_is_on() -> bool:
    """Whether anyone listens to what a run does."""
    return _LOG.isEnabledFor(logging.INFO)


class LoggedDisplay:
    """A display that also logs what it shows.

    Attributes:
        trackers: where MLflow has the run of each measurement, once that is known.
    """

    def __init__(self, display: "Display", plan: Plan, run: str) -> None:
        self.trackers: Sequence[Tracker | None] = ()
        self._display = display
        self._plan = plan
        self._run = run

    def begin(
        self, measurements: Sequence[Measurement], shards: Sequence[int], done: Sequence[int]
    ) -> None:
        """Show and log what there is to do."""
        self._display.begin(measurements, shards, done)
        for index, (count, there) in enumerate(zip(shards, done, strict=True)):
            self._say(
                "measurement", logging.INFO, **self._ids(index), shards=count, shards_there=there
            )

    def event(self, event: Event) -> None:
        """Show and log one event of the runner."""
        self._display.event(event)
        if not logging_is_on():
            return
        name, level = _NAMES.get(event.kind, (event.kind, logging.INFO))
        facts: dict[str, Any] = {}
        if event.task is not None:
            facts = self._ids(event.task.measurement) | {"shard": event.task.shard}
        if event.worker is not None:
            facts["worker"] = event.worker
        if event.receipt is not None:
            receipt = event.receipt
            facts |= {
                "seconds": round(receipt.seconds, 6),
                "model_seconds": round(receipt.model_seconds, 6),
                "images": receipt.rows,
                "unscored": receipt.errors,
                "queries": receipt.queries,
                "file": receipt.file,
            }
        if event.text and event.kind != "started":
            facts["error" if level >= logging.WARNING else "text"] = event.text
        self._say(name, level, **facts)

    def note(self, text: str) -> None:
        """Show and log a sentence."""
        self._display.note(text)
        self._say("note", logging.INFO, text=text)

    def end(self) -> None:
        """The run is over; what follows is results."""
        self._display.end()

    def over(self, state: str, error: str = "") -> None:
        """Log how the run ended: finished, interrupted or failed."""
        level = logging.INFO if state == "finished" else logging.ERROR
        self._say(f"run-{state}", level, **({"error": error} if error else {}))

    def _ids(self, index: int) -> dict[str, Any]:
        measurement = self._plan.measurements[index]
        tracker = self.trackers[index] if self.trackers else None
        run_id = None if tracker is None else tracker.run_id(measurement.key)
        return {
            **({} if run_id is None else {"mlflow_run": run_id}),
            "model": measurement.model.name,
            "evaluation": measurement.evaluation.canonical(),
            "measurement": measurement.key[:16],
        }

    def _say(self, name: str, level: int, **facts: Any) -> None:
        _LOG.log(level, name, extra={"facts": {"run": self._run, **facts}})
