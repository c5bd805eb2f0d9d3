"""The page of a report, put together from tables: one section for each selection of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raybench.core.errors import StoreError
from raybench.core.keys import digest, slug
from raybench.core.results import ModelScore
from raybench.core.robustness import AttackScore
from raybench.publish import explanation_panels
from raybench.publish_all import Stored
from raybench.refresh.state import State
from raybench.report_facts import (
    about,
    cost_view,
    entry_grid,
    failed_entries,
    provenance,
    published_grid,
    unranked_grid,
)
from raybench.report_published import Line
from raybench.report_tables import ImageTables
from raybench.report_views import Sheet, reading_view, robust_view, scatter_plot, tiles
from raybench.reports.agreement import Joined
from raybench.reports.html import DatasetView, Page
from raybench.reports.html_tables import correlation_grid, shown_spec
from raybench.sinks.store import Manifest, read_manifest

__all__ = ["Selection", "make_page"]

_GALLERY = 6  # models whose explanations are shown
_OPEN = 2  # budgets that are unfolded


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The tables of one selection of images, and what they are compared with."""

    tables: ImageTables
    joined: tuple[Joined, ...]
    published: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Store:
    """What lies on disk: the folder, figures by the key of their measurement, manifests."""

    out: Path
    figures: Mapping[str, Sequence[Path]]
    drawn: frozenset[Path]
    manifests: Mapping[str, Manifest]


def make_page(
    out: Path,
    stored: Stored,
    selections: Sequence[Selection],
    state: State | None,
    problems: Sequence[str],
    files: Sequence[str],
) -> Page:
    """Return the page of what was published.

    Args:
        out: folder that raybench wrote.
        stored: what was published, for its figures.
        selections: what is ranked.
        state: a leaderboard's, or None.
        problems: sentences that readers must see first.
        files: names of the files beside the page.
    """
    rows = [
        (one.tables.dataset.name, row) for one in selections for row in one.tables.measurements()
    ]
    store = _Store(
        out=out,
        figures={row.key: files for view in stored.views for row, files in view.rows},
        drawn=frozenset(stored.files),
        manifests=_manifests(out, [row.folder for _, row in rows]),
    )
    names = dict.fromkeys(one.tables.dataset.name for one in selections)
    kinds = {
        "leaderboard.json": "every number of this page in full precision",
        "leaderboard.csv": "one line for each model and table",
        "leaderboard.md": "the tables in Markdown",
    }
    return Page(
        title=f"Robustness report: {', '.join(names) or 'nothing is ranked'}",
        about=about(list(store.manifests.values()), state),
        problems=tuple(problems),
        datasets=tuple(_dataset(store, one, state) for one in selections),
        entries=unranked_grid(rows) if state is None else entry_grid(state),
        provenance=tuple(provenance(list(store.manifests.values()))),
        files=tuple((name, kinds.get(name, "fragment for a model card")) for name in files),
    )


def _manifests(out: Path, folders: Sequence[str]) -> dict[str, Manifest]:
    """Return the manifests that can be read, each once; what is wrong with others was told."""
    found = {}
    for folder in dict.fromkeys(folders):
        try:
            found[folder] = read_manifest(out / folder)
        except StoreError:
            continue
    return found


def _dataset(store: _Store, one: Selection, state: State | None) -> DatasetView:
    tables, info = one.tables, one.tables.dataset
    ident = f"{slug(info.name)}-{info.fingerprint[:8]}"
    shown = tables.shown
    readings = []
    for place, table in enumerate(shown):
        rows = [row for row in table.rows if row.status == "complete"]
        half = _GALLERY // 2
        ends = rows if len(rows) <= _GALLERY else rows[:half] + rows[-half:]
        readings.append(
            reading_view(
                store.out,
                table,
                explanation_panels(store.out, table, ends) if ends else [],
                _sheets(store, table.rows),
                ident=f"{ident}-reading-{place + 1}",
                first=place == 0,
            )
        )
    cost, cost_note = cost_view(list(tables.measurements()), store.manifests)
    return DatasetView(
        id=ident,
        name=info.name,
        facts=_facts(tables),
        tiles=tuple(tiles(tables, one.joined)),
        failed=tuple(failed_entries(state, info.fingerprint)),
        readings=tuple(readings),
        budgets=tuple(
            robust_view(
                table,
                _sheets(store, list(table.measurements())),
                f"{ident}-budget-{place + 1}",
                first=place < _OPEN,
            )
            for place, table in enumerate(tables.attacks)
        ),
        security=tuple(sheet.figure() for sheet in _security(store, tables)),
        correlations=correlation_grid(one.joined) if one.joined else None,
        plots=tuple(
            scatter_plot(joined, shown=joined.field == joined.scores.rank_by)
            for joined in one.joined
            if joined.scores is shown[0]
        ),
        # Of further readings one chart each is enough: the table has every correlation.
        further_plots=tuple(
            scatter_plot(joined, shown=True)
            for joined in one.joined
            if joined.scores is not shown[0] and joined.field == "score"
        ),
        published=published_grid(one.published) if one.published else None,
        cost=cost,
        cost_note=cost_note,
    )


def _facts(tables: ImageTables) -> str:
    info = tables.dataset
    shape = " x ".join(map(str, info.shape))
    classes = f", {info.num_classes} classes" if info.num_classes else ""
    labels = "labels used for accuracies alone" if info.has_labels else "no labels"
    return (
        f"{info.size:,} images of {shape}{classes}; {labels}; {shown_spec(info.spec)}; "
        f"fingerprint {info.fingerprint[:12]}"
    )


def _sheets(store: _Store, rows: Sequence[ModelScore | AttackScore]) -> list[Sheet]:
    found = dict.fromkeys(path for row in rows for path in store.figures.get(row.key, ()))
    return [Sheet(path) for path in found if path.suffix == ".png"]


def _security(store: _Store, tables: ImageTables) -> list[Sheet]:
    """Return the figures that span several budgets, which belong to no single table."""
    info = tables.dataset
    folders = [
        f"{slug(info.name)}-attack-{digest([info.fingerprint, seed])[:8]}"
        for seed in sorted({table.seed for table in tables.attacks})
    ]
    paths = [store.out / "reports" / folder / "security.png" for folder in folders]
    return [Sheet(path) for path in paths if path in store.drawn]
