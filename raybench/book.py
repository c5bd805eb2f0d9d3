"""The manifests of a run while it lasts: receipts in, manifests on disk, progress to MLflow."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raybench.core.plan import Plan
from raybench.core.work import Outcome, Receipt
from raybench.sinks.mlflow import Tracker
from raybench.sinks.store import Manifest, save_manifest, with_receipts

__all__ = ["Book"]

_MANIFEST_EVERY_S = 5.0


@dataclass(slots=True)
class Book:
    """The manifests of a run, kept in line with its receipts and saved every few seconds.

    Attributes:
        plan: the work.
        manifests: one for each measurement of the plan.
        trackers: where MLflow has the run of each measurement; None where it has not.
    """

    plan: Plan
    manifests: list[Manifest]
    trackers: Sequence[Tracker | None]
    _new: dict[int, list[Receipt]] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)

    def enter(self, receipt: Receipt) -> None:
        """Take a receipt; what has gathered is saved every few seconds."""
        index = receipt.task.measurement
        self._new.setdefault(index, []).append(receipt)
        if time.monotonic() - self._saved > _MANIFEST_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the manifests that have changed."""
        for index, receipts in self._new.items():
            manifest = with_receipts(self.manifests[index], receipts)
            self.manifests[index] = manifest
            save_manifest(self._folder(index), manifest)
            self._step(index, manifest)
        self._new.clear()
        self._saved = time.monotonic()

    def close(self, outcome: Outcome) -> None:
        """Write what is left, with the failures of the run, and which measurements are partial."""
        self.save()
        failures: dict[int, dict[str, str]] = {}
        for task, error in outcome.failures.items():
            failures.setdefault(task.measurement, {})[str(task.shard)] = error
        partial = {task.measurement: error for task, error in outcome.spent.items()}
        for index, manifest in enumerate(self.manifests):
            found, why = failures.get(index, {}), partial.get(index, "")
            if (found, why) != (manifest.failures, manifest.partial):
                self.manifests[index] = replace(manifest, failures=found, partial=why)
                save_manifest(self._folder(index), self.manifests[index])

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
