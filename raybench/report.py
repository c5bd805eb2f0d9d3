"""``raybench report``: everything stored in a folder as one page that people want to read.

    written = write_report(Path("results"), None, "normalised", print)
    written.page                        # results/report/index.html

Nothing is computed anew: tables, correlations and figures are those of ``raybench show``. Where
``raybench refresh`` left its state, what it lists is ranked and the rest is named.
"""

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raybench.core.errors import InputError, StoreError
from raybench.core.results import ScoreTable
from raybench.core.robustness import AttackTable
from raybench.core.spec import parse
from raybench.publish_all import Stored, publish_stored
from raybench.refresh.state import State, read_state
from raybench.report_files import cards, leaderboard_csv, leaderboard_json, leaderboard_markdown
from raybench.report_page import Selection, make_page
from raybench.report_published import PUBLISHED, published_lines, published_tables
from raybench.report_tables import ImageTables
from raybench.reports.agreement import Joined, join_tables, write_agreements
from raybench.reports.html import render_page
from raybench.sinks.parts import write_atomically
from raybench.sinks.store import find_folders

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was written: the page, and every file."""

    page: Path
    files: tuple[Path, ...]


def write_report(
    out: Path, baseline: str | None, rank_by: str, say: Callable[[str], None]
) -> Report:
    """Write the page, its figures, and the leaderboard as JSON, CSV, Markdown and model cards.

    All of it goes to ``<out>/report``, of which ``figures`` and ``cards`` are made anew.

    Args:
        out: folder that raybench wrote.
        baseline: standard model of Eq. 3; None keeps what the runs compared with.
        rank_by: "normalised", "score" or "matched".
        say: told of whatever cannot be read.

    Raises:
        InputError: nothing is stored there.
    """
    problems: list[str] = []

    def tell(text: str) -> None:
        problems.append(text)
        say(text)

    state = _state(out, tell)
    if state is None and not find_folders(out):
        raise InputError(
            f"{out} holds no results; expected a folder that raybench score, attack or refresh "
            "wrote"
        )
    stored = publish_stored(out, baseline, rank_by, tell, only=_listed(out, state, tell))
    selections = _selections(stored, state)
    tables = [one.tables for one in selections]
    folder = out / "report"
    for name in ("figures", "cards"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / name)
    figures = [*stored.files, *_published_figures(out, selections)]
    copied = _copy_figures(figures, folder / "figures")
    texts = {
        "leaderboard.json": leaderboard_json(
            tables,
            [joined for one in selections for joined in one.joined],
            [line for one in selections for line in one.published],
            state,
            problems,
        ),
        "leaderboard.csv": leaderboard_csv(tables),
        "leaderboard.md": leaderboard_markdown(tables, state, problems),
        **{f"cards/{name}": text for name, text in cards(tables).items()},
    }
    page = make_page(out, stored, selections, state, problems, list(texts))
    texts["index.html"] = render_page(page)
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return Report(page=folder / "index.html", files=(*(folder / name for name in texts), *copied))


def _state(out: Path, tell: Callable[[str], None]) -> State | None:
    try:
        return read_state(out)
    except StoreError as error:
        tell(
            f"{error}. Until then everything stored is ranked, what the leaderboard had dropped "
            "included"
        )
        return None


def _listed(out: Path, state: State | None, tell: Callable[[str], None]) -> frozenset[Path] | None:
    """Return the folders that are ranked: those of the entries that a leaderboard lists, or all."""
    if state is None:
        return None
    # What a failed entry has is shown too, with its error: nothing computed is hidden.
    listed = frozenset(
        out / name for one in state.entries if one.status != "history" for name in one.measurements
    )
    known = listed | {out / name for one in state.entries for name in one.measurements}
    foreign = [folder for folder in find_folders(out) if folder not in known]
    if foreign:
        tell(
            f"{len(foreign)} stored measurements belong to no entry of the leaderboard and are "
            "left out of the ranking"
        )
    return listed


def _selections(stored: Stored, state: State | None) -> list[Selection]:
    """Return the tables by the images they are of, in a fixed order."""
    scores: dict[str, list[ScoreTable]] = {}
    attacks: dict[str, list[AttackTable]] = {}
    names: dict[str, str] = {}
    for table in (table for view in stored.views for table in view.tables):
        images = table.dataset.fingerprint
        names[images] = table.dataset.name
        if isinstance(table, AttackTable):
            attacks.setdefault(images, []).append(table)
        else:
            scores.setdefault(images, []).append(table)
    return [
        _selection(
            ImageTables(
                scores=sorted(scores.get(images, []), key=_order),
                attacks=sorted(attacks.get(images, []), key=_budget),
            ),
            stored,
            state,
        )
        for images in sorted(names, key=lambda images: (names[images], images))
    ]


def _selection(tables: ImageTables, stored: Stored, state: State | None) -> Selection:
    lines = published_lines(tables, state)
    joined = [one for one in stored.agreements if any(one.scores is t for t in tables.scores)]
    for table in tables.shown:
        joined += join_tables([table], published_tables(table, lines))
    places = {id(table): place for place, table in enumerate(tables.scores)}
    joined.sort(key=lambda one: places[id(one.scores)])
    return Selection(tables=tables, joined=tuple(_once(joined)), published=tuple(lines))


def _once(joined: Sequence[Joined]) -> list[Joined]:
    """Return `joined` without repeats: one flip radius is the same column in many tables."""
    found: dict[object, Joined] = {}
    for one in joined:
        same = one.points if one.field == "normalised" else one.scores.reading
        found.setdefault((one.field, one.attacks.threat, one.scores.seed, same), one)
    return list(found.values())


def _order(table: ScoreTable) -> tuple[bool, bool, bool, str, int]:
    """Put the default reading first: grid cells, their mean colour, the probability."""
    reading = parse(table.reading)
    usual = {"fill": "mean", "target": "prob_pred"}
    default = reading.scheme == "grid" and all(reading.get(k) == v for k, v in usual.items())
    further = reading.get("design") is not None
    return not table.shown, not default, further, table.reading, table.seed


def _budget(table: AttackTable) -> tuple[int, str, float, str]:
    top, _, bottom = (table.eps or "0").partition("/")
    return table.seed, table.norm, float(top) / float(bottom or 1), table.threat


def _published_figures(out: Path, selections: Sequence[Selection]) -> list[Path]:
    """Draw the first reading's scores over published accuracies; those over ours are drawn."""
    joined = [
        one
        for each in selections
        for one in each.joined
        if one.scores is each.tables.shown[0] and one.attacks.threat.endswith(PUBLISHED)
    ]
    return write_agreements(out, joined)


def _copy_figures(files: Sequence[Path], target: Path) -> list[Path]:
    copied = []
    for path in dict.fromkeys(files):
        if path.suffix in (".png", ".svg"):
            to = target / path.parent.name / path.name
            write_atomically(to, path.read_bytes())
            copied.append(to)
    return copied
