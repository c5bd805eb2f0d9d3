"""The manifests of a run while it lasts: receipts in, manifests on disk, progress to MLflow."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raybench.core.errors import StoreError
from raybench.core.plan import Plan
from raybench.core.tally import Tally
from raybench.core.work import Event, Outcome, Receipt
from raybench.sinks.cuts import settle
from raybench.sinks.mlflow import Tracker
from raybench.sinks.store import Manifest, save_manifest, with_receipts

__all__ = ["Book"]

_MANIFEST_EVERY_S = 5.0
# Writing a large manifest to a store takes seconds, in which the driver does nothing else.
_SHARE_SAVING = 0.05


@dataclass(slots=True)
class Book:
    """The manifests of a run, kept in line with its receipts and saved every few seconds.

    An object store that does not take a manifest now gets it with the next ones: the parts are
    there, and a later run would adopt them. Only at the end it is an error.

    Attributes:
        plan: the work.
        manifests: one for each measurement of the plan.
        trackers: where MLflow has the run of each measurement; None where it has not.
        tallies: what this run did, by the index of a measurement; none where it did nothing.
    """

    plan: Plan
    manifests: list[Manifest]
    trackers: Sequence[Tracker | None]
    tallies: dict[int, Tally] = field(default_factory=dict)
    _told: dict[int, dict[str, float]] = field(default_factory=dict)
    _new: dict[int, list[Receipt]] = field(default_factory=dict)
    _entered: set[int] = field(default_factory=set)
    _behind: dict[int, StoreError] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)
    _pause_s: float = _MANIFEST_EVERY_S

    def hear(self, event: Event) -> None:
        """Count an event, and take its receipt if it has one."""
        if event.task is not None:
            tally = self.tallies.setdefault(event.task.measurement, Tally())
            tally.add(event, now=time.monotonic())
        if event.receipt is not None:
            self.enter(event.receipt)

    def enter(self, receipt: Receipt) -> None:
        """Take a receipt; what has gathered is saved every few seconds."""
        index = receipt.task.measurement
        self._new.setdefault(index, []).append(receipt)
        self._entered.add(index)
        if time.monotonic() - self._saved > self._pause_s:
            self.save()

    def save(self) -> None:
        """Write the manifests that have changed."""
        began = time.monotonic()
        for index in self._behind.keys() - self._new.keys():
            self._write(index)
        for index, receipts in self._new.items():
            manifest = with_receipts(self.manifests[index], receipts)
            self.manifests[index] = manifest
            self._write(index)
            self._step(index, manifest)
        self._new.clear()
        self._saved = time.monotonic()
        self._pause_s = max(_MANIFEST_EVERY_S, (self._saved - began) / _SHARE_SAVING)

    def settle(self) -> list[str]:
        """Bring the parts of this run from an object store, and return every surprise there.

        Raises:
            StoreError: the store fails.
        """
        self.save()
        notes = []
        for index in sorted(self._entered):
            manifest, found = settle(self._folder(index), self.manifests[index])
            if manifest != self.manifests[index]:
                self.manifests[index] = manifest
                self._write(index)
            notes += [f"{self.plan.measurements[index].model.name}: {note}" for note in found]
        return notes

    def close(self, outcome: Outcome) -> None:
        """Write what is left, with the failures of the run, and which measurements are partial.

        Raises:
            StoreError: an object store does not take a manifest.
        """
        self.save()
        for index in self.tallies:
            self._record(index)
        failures: dict[int, dict[str, str]] = {}
        for task, error in outcome.failures.items():
            failures.setdefault(task.measurement, {})[str(task.shard)] = error
        partial = {task.measurement: error for task, error in outcome.spent.items()}
        for index, manifest in enumerate(self.manifests):
            found, why = failures.get(index, {}), partial.get(index, "")
            if (found, why) != (manifest.failures, manifest.partial):
                self.manifests[index] = replace(manifest, failures=found, partial=why)
                self._write(index)
        for failure in self._behind.values():
            raise StoreError(
                f"{failure}. Every computed part is in the store: run the same command again, and "
                "nothing is computed twice"
            ) from failure

    def _write(self, index: int) -> None:
        self._behind.pop(index, None)
        try:
            save_manifest(self._folder(index), self.manifests[index])
        except StoreError as error:
            self._behind[index] = error

    def _folder(self, index: int) -> Path:
        return Path(self.plan.out) / self.plan.measurements[index].folder

    def _step(self, index: int, manifest: Manifest) -> None:
        tracker = self.trackers[index]
        if tracker is None:
            return
        parts = manifest.parts.values()
        metrics = {
            "images_done": float(sum(part["rows"] for part in parts)),
            "images_unscored": float(sum(part["errors"] for part in parts)),
            "queries_done": float(sum(part["queries"] or 0 for part in parts)),
        }
        tracker.step(self.plan.measurements[index].key, len(manifest.parts), metrics)
        self._record(index)

    def _record(self, index: int) -> None:
        """Tell MLflow how the run goes, where that has changed."""
        tracker, tally = self.trackers[index], self.tallies.get(index)
        if tracker is None or tally is None or _of_run(tally) == self._told.get(index):
            return
        self._told[index] = _of_run(tally)
        step = len(self.manifests[index].parts)
        tracker.record(self.plan.measurements[index].key, step, self._told[index])


def _of_run(tally: Tally) -> dict[str, float]:
    """Return how a run went, as metrics of MLflow."""
    return {
        "shards_done": float(tally.done),
        "shards_failed": float(tally.failed),
        "shards_retried": float(tally.retried),
        "shards_released": float(tally.released),
        # Not "images_per_second", which is published with the score: of one worker, by all parts.
        "run_images_per_second": tally.images_per_second,
        "model_share": tally.model_share,
    }
