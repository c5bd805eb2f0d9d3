"""What a run does, as metrics of Ray: on each node's metrics port, in the dashboard, in Prometheus.

    meter = Meter([("resnet50", "grid?samples=1000")])   # model and evaluation of each measurement
    run_on_ray(..., listener=meter)

The driver counts, from the events it hears, so that nothing counts twice and retries show as such.
Ray publishes what a process counted every ten seconds, under ``ray_`` and these names (counters get
``_total``), with the tags ``model`` and ``evaluation``.
"""

import time
from collections.abc import Sequence

from ray.util.metrics import Counter, Gauge

from raybench.core.tally import Tally
from raybench.core.work import Event

__all__ = ["Meter"]

_TAGS = ("model", "evaluation")
_COUNTERS = {
    "done": ("raybench_shards_done", "Shards computed."),
    "failed": ("raybench_shards_failed", "Shards given up after their last attempt."),
    "retried": ("raybench_shards_retried", "Attempts of shards that failed and were repeated."),
    "released": ("raybench_shards_released", "Shards put back by workers that had to leave."),
    "images": ("raybench_images", "Images of the shards computed."),
    "unscored": ("raybench_images_unscored", "Images that could not be scored."),
    "queries": ("raybench_queries", "Images that the model was asked about."),
    "seconds": ("raybench_worker_seconds", "Seconds that workers took for the shards computed."),
    "model_seconds": (
        "raybench_model_seconds",
        "Of them, seconds in the model's own forward and backward passes.",
    ),
}
_GAUGES = {
    "images_per_second": (
        "raybench_images_per_second",
        "Images a second of wall time, over the run so far.",
    ),
    "model_share": (
        "raybench_model_share",
        "Share of the workers' time in the model's own forward and backward passes, 0 to 1.",
    ),
}


class Meter:
    """A listener that counts events by model and evaluation; Ray must be connected."""

    def __init__(self, labels: Sequence[tuple[str, str]]) -> None:
        self._labels = [dict(zip(_TAGS, label, strict=True)) for label in labels]
        self._tallies = [Tally() for _ in labels]
        self._counters = {
            field: Counter(name, description=text, tag_keys=_TAGS)
            for field, (name, text) in _COUNTERS.items()
        }
        self._gauges = {
            field: Gauge(name, description=text, tag_keys=_TAGS)
            for field, (name, text) in _GAUGES.items()
        }

    def __call__(self, event: Event) -> None:
        """Count `event`."""
        if event.task is None:
            return
        tally, tags = self._tallies[event.task.measurement], self._labels[event.task.measurement]
        before = {field: getattr(tally, field) for field in _COUNTERS}
        tally.add(event, now=time.monotonic())
        for field, counter in self._counters.items():
            more = getattr(tally, field) - before[field]
            if more > 0:
                counter.inc(more, tags=tags)
        if event.receipt is not None:
            for field, gauge in self._gauges.items():
                gauge.set(getattr(tally, field), tags=tags)
