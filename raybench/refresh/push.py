"""MLflow as a view of the leaderboard: an experiment for each dataset, family and version.

``out/leaderboard/mlflow.json`` remembers what each run shows, so that a refresh touches only runs
whose numbers are new. What could not be pushed is not remembered, and pushed next time.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raybench.core.errors import StoreError
from raybench.core.keys import digest
from raybench.core.results import ModelScore
from raybench.core.robustness import AttackScore
from raybench.refresh.tables import View
from raybench.reports.stored import dataset_info
from raybench.sinks.headlines import ATTACK_METRICS, FINAL_METRICS, headline
from raybench.sinks.mlflow import Tracker, TrackingUnavailable, open_tracker, redact
from raybench.sinks.parts import write_atomically
from raybench.sinks.store import read_manifest
from raybench.sinks.tracking import chosen_uri

__all__ = ["Pushed", "experiment", "push"]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What MLflow has: a digest of what each run shows, by "URI experiment key"."""

    path: Path
    shown: dict[str, str]

    @classmethod
    def read(cls, out: Path) -> "Pushed":
        """Return what is remembered; nothing where the file is absent or damaged."""
        path = out / "leaderboard" / "mlflow.json"
        try:
            content = json.loads(path.read_bytes())
            return cls(path, {str(key): str(value) for key, value in content.items()})
        except (OSError, ValueError, AttributeError):
            return cls(path, {})

    def save(self) -> None:
        """Write it."""
        content = json.dumps(self.shown, indent=0, sort_keys=True)
        write_atomically(self.path, content.encode())

    def lacks(self, keys: Collection[str], uri: str | None) -> bool:
        """Whether one of the measurements `keys` was never pushed to `uri`."""
        head = f"{_store(uri)} "
        known = {name.rpartition(" ")[2] for name in self.shown if name.startswith(head)}
        return not set(keys) <= known


def experiment(dataset: str, family: str, version: str) -> str:
    """Return the experiment of a dataset's scores ("lime") or attacks under a version."""
    return f"{dataset}-{family}-v{version}"


def push(
    out: Path,
    views: Sequence[View],
    version: str,
    uri: str | None,
    started: Mapping[tuple[str, str], tuple[Tracker | None, frozenset[str]]],
    say: Callable[[str], None],
) -> None:
    """Publish every row whose numbers are new, and close the runs that this refresh started.

    Args:
        out: output folder.
        views: the rows.
        version: the benchmark version.
        uri: tracking URI; None is the store in `out`.
        started: by dataset and family, the tracker whose runs were started and their keys.
        say: told once where MLflow cannot be used.
    """
    pushed = Pushed.read(out)
    for view in views:
        for family in ("lime", "attack"):
            pairs = zip(view.rows, view.families, strict=True)
            rows = [row for row, of in pairs if of == family]
            where = (view.ranked.dataset, family)
            tracker, keys = started.get(where, (None, frozenset[str]()))
            if where in started and tracker is None:
                continue  # it was said when the run began that MLflow cannot be used
            name = experiment(view.ranked.dataset, family, version)
            head = f"{_store(uri)} {name}"
            news = [
                (row, files)
                for row, files in rows
                if row.key in keys or pushed.shown.get(f"{head} {row.key}") != _shows(row)
            ]
            if not any(row.status == "complete" or row.key in keys for row, _ in news):
                continue
            try:
                tracker = tracker or open_tracker(uri, out, name, warn=say)
            except TrackingUnavailable as error:
                say(str(error))
                return
            for row, files in news:
                _push_row(out, tracker, row, files, row.key in keys)
                if tracker.unavailable is None and row.status == "complete":
                    pushed.shown[f"{head} {row.key}"] = _shows(row)
    pushed.save()


def _store(uri: str | None) -> str:
    """Return what tells one store from another; credentials are no part of it."""
    uri = chosen_uri(uri)
    return "local" if uri is None else redact(uri)


def _push_row(
    out: Path,
    tracker: Tracker,
    row: ModelScore | AttackScore,
    files: Sequence[Path],
    is_started: bool,
) -> None:
    if row.status != "complete":
        if is_started:
            tracker.fail(row.key, row.error or row.status)
        return
    if not is_started:
        # It draws in a library of figures, which a refresh without news should not wait for.
        from raybench.driver import start_run

        try:
            measurement = read_manifest(out / row.folder).measurement
        except StoreError:
            return
        model = replace(row.model, name=measurement["model"]["name"])
        dataset = dataset_info(measurement)
        start_run(tracker, row.key, model, dataset, row.reading, measurement["seed"])
    tracker.finish(row, files)


def _shows(row: ModelScore | AttackScore) -> str:
    """Return a digest of what a run shows of `row`; the speed of the workers is no news."""
    names = FINAL_METRICS if isinstance(row, ModelScore) else ATTACK_METRICS
    facts: dict[str, Any] = {
        name: getattr(row, name) for name in names if name != "images_per_second"
    }
    if isinstance(row, ModelScore):
        facts |= {"baseline": row.baseline, "warnings": list(row.warnings)}
    facts["status"] = row.status
    return digest(facts | ({"headline": headline(row)} if row.status == "complete" else {}))[:16]
