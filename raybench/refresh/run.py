"""One refresh of a leaderboard: prepare, compute what is new in one run, publish, write the state.

::

    file = load_leaderboard(Path("leaderboard.yaml"))
    done = refresh(file, file.means(), make_display(), StopFlag())
"""

import fcntl
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from raybench.config import RunConfig
from raybench.core.errors import InputError, RunError
from raybench.job import Job, ready_out
from raybench.refresh.export import export_model_info
from raybench.refresh.file import LeaderboardFile
from raybench.refresh.planning import Planned
from raybench.refresh.preparation import Prepared, prepare
from raybench.refresh.push import Pushed, experiment, push
from raybench.refresh.state import Entry, Found, Selection, State, advance, read_state, write_state
from raybench.refresh.status import write_status
from raybench.refresh.tables import (
    Ranked,
    Row,
    make_views,
    recall_tables,
    save_tables,
    tables_token,
)
from raybench.signals import StopFlag, catch_signals
from raybench.sinks.mirror import pull, push_leaderboard, reports_sent

if TYPE_CHECKING:
    from raybench.driver import Computed, Display
    from raybench.sinks.mlflow import Tracker

__all__ = ["Refreshed", "refresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What a refresh came to.

    Attributes:
        out: the output folder.
        state: as written.
        ranked: the tables of each dataset.
        computed: shards computed.
        loaded: models that had to be loaded for planning; the others were recalled.
        gave_up: why the run ended early, or None.
        spent: whether a model's query budget ended its work.
    """

    out: Path
    state: State
    ranked: tuple[Ranked, ...]
    computed: int
    loaded: int
    gave_up: str | None = None
    spent: bool = False

    @property
    def failed(self) -> tuple[Entry, ...]:
        """The listed entries that have no complete results."""
        return tuple(entry for entry in self.state.entries if entry.status == "failed")

    @property
    def exit_code(self) -> int:
        """0 when every listed entry is measured, 4 when a query budget is spent, else 3."""
        if self.spent:
            return 4
        return 3 if self.failed or self.gave_up else 0


def refresh(
    file: LeaderboardFile,
    means: RunConfig,
    display: "Display",
    flag: StopFlag,
    *,
    rehash: bool = False,
    began: float | None = None,
) -> Refreshed:
    """Bring the leaderboard of `file` up to date and return what it came to.

    Only what no earlier run has stored is computed, all of it in one run. See
    `raybench.models.known` for what is taken to be unchanged; `rehash` takes nothing for granted.

    Args:
        file: the leaderboard.
        means: what the run may take, and where it writes.
        display: shows the run.
        flag: asks it to stop.
        rehash: load every model and read every byte that is stored.
        began: `time.monotonic` when the command was given; by default now.

    Raises:
        InputError: mistakes in the file, all of them; a protocol that changed within one version.
        Interrupted: asked to stop; what is committed stays, and the same command goes on.
        RunError: another refresh of this folder is running.
        StoreError: the state of the last refresh is damaged, or an object store fails.
    """
    began = time.monotonic() if began is None else began
    out = means.out.absolute()
    with _alone(out):
        with catch_signals(flag, at_once=True):
            store = ready_out(out, [line.spec for line in file.models])
            pull(out, parts=True, empty=True)
            before = read_state(out)
            work = prepare(file, means, before, display.note, rehash=rehash, store=store)
        ending = _Ending(file, means, work, display, rehash, began)
        if not work.jobs:
            with catch_signals(flag, at_once=True):
                with reports_sent(out, display.note):
                    done = ending(None)
                push_leaderboard(out)
                return done
        # Drawing and Ray cost seconds to import, which a refresh without news should not pay.
        from raybench.driver import compute

        experiments = [
            experiment(opened.line.name, _family(job), file.benchmark_version)
            for opened, job in work.jobs
        ]
        done = compute([job for _, job in work.jobs], means, display, flag, ending, experiments)
        with catch_signals(flag, at_once=True):
            push_leaderboard(out)
        return done


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the lock of the leaderboard in `out`: two refreshes would write one state.

    Raises:
        InputError: the folder cannot be made.
        RunError: another one holds it.
    """
    folder = out / "leaderboard"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("ab")
    except OSError as error:
        raise InputError(f"out {out} cannot be used: {error}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another refresh of {out} is running; wait for it, or end it"
            ) from error
        except OSError:
            pass  # a file system without locks: the state is still written whole
        yield


def _family(job: Job) -> str:
    return "attack" if job.plan.measurements[0].evaluation.family == "attack" else "lime"


@dataclass(frozen=True, slots=True)
class _Ending:
    """What follows the computing: tables, MLflow, exports, the state."""

    file: LeaderboardFile
    means: RunConfig
    work: Prepared
    display: "Display"
    rehash: bool
    began: float

    def __call__(self, computed: "Computed | None") -> Refreshed:
        """Publish what is stored, `computed` of it now, and return what the refresh came to."""
        file, work = self.file, self.work
        ranked = self._tables(computed)
        export_model_info(work.out, ranked, work.planned, work.imported, file.benchmark_version)
        state = self._state(ranked, computed)
        write_state(work.out, state)
        write_status(work.out, state)
        outcome = None if computed is None else computed.outcome
        return Refreshed(
            out=work.out,
            state=state,
            ranked=tuple(ranked),
            computed=0 if outcome is None else len(outcome.receipts),
            loaded=work.loaded,
            gave_up=None if outcome is None else outcome.gave_up,
            spent=outcome is not None and bool(outcome.spent),
        )

    def _tables(self, computed: "Computed | None") -> list[Ranked]:
        file, work = self.file, self.work
        token = tables_token(work.out, work.planned, work.baselines, file.rank_by)
        kept = None if self.rehash or computed is not None else recall_tables(work.out, token)
        if kept is not None:
            keys = {row.key for one in kept for row in one.rows() if row.status == "complete"}
            if not Pushed.read(work.out).lacks(keys, self.means.tracking_uri):
                return kept
        views = make_views(work.out, work.opened, work.planned, work.baselines, file.rank_by)
        push(
            work.out,
            views,
            file.benchmark_version,
            self.means.tracking_uri,
            self._started(computed),
            self.display.note,
        )
        ranked = [view.ranked for view in views]
        save_tables(work.out, token, ranked)
        return ranked

    def _started(
        self, computed: "Computed | None"
    ) -> dict[tuple[str, str], "tuple[Tracker | None, frozenset[str]]"]:
        """Return the trackers of this run by dataset and family, with the runs they opened."""
        if computed is None:
            return {}
        outcome = computed.outcome
        ran = bool(outcome.receipts or outcome.failures or outcome.gave_up or outcome.spent)
        return {
            (opened.line.name, _family(job)): (
                tracker,
                frozenset(one.key for one in job.plan.measurements) if ran else frozenset(),
            )
            for (opened, job), tracker in zip(self.work.jobs, computed.trackers, strict=True)
        }

    def _state(self, ranked: list[Ranked], computed: "Computed | None") -> State:
        file, work = self.file, self.work
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = {(one.dataset, row.key): row for one in ranked for row in one.rows()}
        counts: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        if computed is not None:
            measurements = computed.plan.measurements
            counts.update(measurements[task.measurement].key for task in computed.outcome.receipts)
            for task, error in computed.outcome.spent.items():
                reasons[measurements[task.measurement].key] = f"the query budget is spent: {error}"
            if computed.outcome.gave_up is not None:
                for one in measurements:
                    text = f"not finished: {computed.outcome.gave_up}"
                    reasons.setdefault(one.key, text)
        listed = [_found(entry, rows, reasons, counts) for entry in work.planned]
        earlier = () if work.before is None else work.before.entries
        entries, tally = advance(earlier, listed, now=now, version=file.benchmark_version)
        return State(
            benchmark_version=file.benchmark_version,
            written=now,
            seconds=time.monotonic() - self.began,
            counts=tally,
            entries=entries,
            datasets=_selections(work, entries),
            references=work.references,
            protocol={one.line.name: one.protocol(file.seed) for one in work.opened},
        )


def _found(
    entry: Planned,
    rows: Mapping[tuple[str, str], Row],
    reasons: Mapping[str, str],
    computed: Mapping[str, int],
) -> Found:
    error = entry.error
    for one in entry.measurements:
        row = rows.get((entry.opened.line.name, one.key))
        if error is None and (row is None or row.status != "complete"):
            text = reasons.get(one.key) or (row and row.error) or "no results are stored"
            error = f"{one.evaluation.canonical()}: {text.splitlines()[0]}"
    info = entry.info
    return Found(
        spec=entry.listed.spec,
        name=entry.name,
        fingerprint=None if info is None else info.fingerprint,
        access=None if info is None else info.access.name.lower(),
        dataset=entry.opened.selection.key,
        error=error,
        measurements=tuple(one.folder for one in entry.measurements),
        notes=entry.notes,
        computed=sum(computed.get(one.key, 0) for one in entry.measurements),
    )


def _selections(work: Prepared, entries: tuple[Entry, ...]) -> tuple[Selection, ...]:
    """Return the datasets of this refresh, and earlier ones that history refers to."""
    mine = {one.selection.key: one.selection for one in work.opened}
    wanted = {entry.dataset for entry in entries} - set(mine)
    earlier = () if work.before is None else work.before.datasets
    return (
        *mine.values(),
        *(replace(one, current=False) for one in earlier if one.key in wanted),
    )
