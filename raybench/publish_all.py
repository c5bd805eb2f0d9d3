"""Everything that is stored, published again: reports on disk, and runs in MLflow."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from raybench.core.robustness import AttackTable
from raybench.driver import experiment_name, start_run
from raybench.publish import Published, publish_scores
from raybench.publish_attacks import publish_attacks
from raybench.reports.agreement import Joined, join_tables, write_agreements
from raybench.reports.stored import (
    dataset_info,
    stored_folders,
)
from raybench.reports.summary import load_tables, summarise
from raybench.sinks.mlflow import Tracker, TrackingUnavailable, open_tracker
from raybench.sinks.store import read_manifest

__all__ = ["Stored", "publish_stored", "sync"]


@dataclass(frozen=True, slots=True)
class Stored:
    """All that is stored below a folder, published.

    Attributes:
        views: the scores, then the attacks; one of them where the other was not run.
        agreements: score against robust accuracy, where both are known of the same models.
        files: every report written.
    """

    views: tuple[Published, ...]
    agreements: tuple[Joined, ...]
    files: tuple[Path, ...]


def publish_stored(
    out: Path,
    baseline: str | None,
    rank_by: str,
    say: Callable[[str], None],
    *,
    only: Collection[Path] | None = None,
) -> Stored:
    """Write the reports of all that is stored below `out` and return what there is.

    `say` is told of every folder whose manifest cannot be read. `only` leaves out the measurement
    folders that it does not hold; where it leaves none, nothing is written.

    Raises:
        InputError: nothing is stored there.
    """
    stored = stored_folders(out)
    for _, problem in stored.damaged:
        say(f"{problem}; 'raybench verify --repair' makes it anew from the parts")
    scored, attacked = (
        [folder for folder in folders if only is None or folder in only]
        for folders in (stored.scores, stored.attacks)
    )
    views: list[Published] = []
    joined: list[Joined] = []
    if only is None and not attacked:
        scores = load_tables(out, baseline, rank_by)
        views.append(publish_scores(out, scores, None))
    elif scored:
        scores = summarise(out, scored, baseline=baseline, rank_by=rank_by)
        views.append(publish_scores(out, scores, None))
    if attacked:
        views.append(publish_attacks(out, attacked))
    if len(views) == 2:
        robust = [table for table in views[1].tables if isinstance(table, AttackTable)]
        joined = join_tables([table for table in scores if table.shown], robust)
    files = [path for view in views for path in view.files]
    return Stored(tuple(views), tuple(joined), (*files, *write_agreements(out, joined)))


def sync(
    out: Path,
    *,
    tracking_uri: str | None,
    experiment: str | None,
    baseline: str | None,
    rank_by: str,
    say: Callable[[str], None],
) -> str:
    """Push every complete measurement below `out` to MLflow, and return where (no credentials).

    Raises:
        InputError: `out` holds no results.
        TrackingUnavailable: the server does not answer.
    """
    where = ""
    for view in publish_stored(out, baseline, rank_by, say).views:
        trackers: dict[str, Tracker] = {}
        for row, files in view.rows:
            if row.status != "complete":
                continue
            measurement = read_manifest(out / row.folder).measurement
            dataset = dataset_info(measurement)
            name = experiment or experiment_name(dataset)
            if name not in trackers:
                trackers[name] = open_tracker(tracking_uri, out, name, warn=say)
            tracker = trackers[name]
            where = tracker.uri
            # Tables tell namesakes apart; runs keep the name that is part of their key.
            model = replace(row.model, name=measurement["model"]["name"])
            start_run(tracker, row.key, model, dataset, row.reading, measurement["seed"])
            tracker.finish(row, files)
            if tracker.unavailable is not None:
                raise TrackingUnavailable(f"MLflow at {where} went away: {tracker.unavailable}")
    return where
