"""The ranked tables of a leaderboard: made from stored rows, and kept so long as those stay.

``out/leaderboard/tables.json`` holds the tables of the last refresh with a token of all that they
are made of. A refresh that finds the same token prints them without reading a row.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raybench.core.keys import digest
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackScore, AttackTable
from raybench.job import library_versions
from raybench.refresh.datasets import Opened
from raybench.refresh.planning import Planned
from raybench.refresh.stored import content_token
from raybench.sinks.parts import write_atomically

__all__ = ["Ranked", "View", "make_views", "recall_tables", "save_tables", "tables_token"]

Table = ScoreTable | AttackTable
Row = ModelScore | AttackScore


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The tables of one dataset, and the sentences that set scores against robust accuracy."""

    dataset: str
    scores: tuple[ScoreTable, ...]
    attacks: tuple[AttackTable, ...]
    agreement: str

    @property
    def tables(self) -> tuple[Table, ...]:
        """Those that are shown: scores, then attacks."""
        return (*(table for table in self.scores if table.shown), *self.attacks)

    def rows(self) -> list[Row]:
        """Return every measurement's headline."""
        rows: list[Row] = [row for table in self.scores for row in table.rows]
        return rows + [row for table in self.attacks for row in table.measurements()]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one dataset's stored rows came to, published.

    `rows` pairs the headline of each measurement with the files that belong to it, scores first;
    `families` says of each which it is of ("lime" or "attack").
    """

    ranked: Ranked
    rows: tuple[tuple[Row, tuple[Path, ...]], ...]
    families: tuple[str, ...]
    files: tuple[Path, ...]


_RANKED: TypeAdapter[list[Ranked]] = TypeAdapter(list[Ranked])


def tables_path(out: Path) -> Path:
    """Return where the tables are kept."""
    return out / "leaderboard" / "tables.json"


def tables_token(
    out: Path, planned: Sequence[Planned], baselines: Mapping[str, str], rank_by: str
) -> str:
    """Return a digest of all that the tables are made of."""
    folders = [
        (entry.opened.selection.key, one.folder) for entry in planned for one in entry.measurements
    ]
    keys = [key for key, _ in folders]
    stored = content_token(out, [folder for _, folder in folders])
    return digest([keys, stored, dict(baselines), rank_by, library_versions()["raybench"]])


def recall_tables(out: Path, token: str) -> list[Ranked] | None:
    """Return the tables kept under `token`, or None."""
    try:
        content = json.loads(tables_path(out).read_bytes())
        if content["token"] != token:
            return None
        return _RANKED.validate_python(content["ranked"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None


def save_tables(out: Path, token: str, ranked: list[Ranked]) -> None:
    """Keep the tables under `token`."""
    content: dict[str, Any] = {"token": token, "ranked": _RANKED.dump_python(ranked, mode="json")}
    write_atomically(tables_path(out), json.dumps(content, allow_nan=False).encode())


def make_views(
    out: Path,
    opened: Sequence[Opened],
    planned: Sequence[Planned],
    baselines: Mapping[str, str],
    rank_by: str,
) -> list[View]:
    """Return the ranked tables of every dataset from stored rows, reports written.

    Only what the file lists is ranked: rows of one benchmark version, selection and threat.
    """
    views = []
    for dataset in opened:
        entries = [entry for entry in planned if entry.opened is dataset]
        views.append(_view(out, dataset, entries, baselines.get(dataset.line.name), rank_by))
    return views


def _view(
    out: Path, opened: Opened, entries: Sequence[Planned], baseline: str | None, rank_by: str
) -> View:
    # Figures are drawn here and need seconds to import, which a refresh without news should save.
    from raybench.publish import publish_scores
    from raybench.publish_attacks import publish_attacks
    from raybench.reports.agreement import agreement_text, join_tables, write_agreements
    from raybench.reports.summary import summarise

    folders = {
        kind: list(dict.fromkeys(one.folder for entry in entries for one in getattr(entry, kind)))
        for kind in ("scores", "attacks")
    }
    scores: list[ScoreTable] = []
    attacks: list[AttackTable] = []
    rows: list[tuple[Row, tuple[Path, ...]]] = []
    families: list[str] = []
    files: list[Path] = []
    if folders["scores"]:
        paths = [out / folder for folder in folders["scores"]]
        names = {entry.name for entry in entries if entry.scores}
        scores = summarise(
            out, paths, baseline=baseline if baseline in names else None, rank_by=rank_by
        )
        found = publish_scores(out, scores, opened.dataset)
        rows += found.rows
        files += found.files
        families += ["lime"] * len(found.rows)
    if folders["attacks"]:
        found = publish_attacks(out, [out / folder for folder in folders["attacks"]])
        attacks = [table for table in found.tables if isinstance(table, AttackTable)]
        rows += found.rows
        files += found.files
        families += ["attack"] * len(found.rows)
    joined = join_tables([table for table in scores if table.shown], attacks)
    files += write_agreements(out, joined)
    return View(
        ranked=Ranked(
            dataset=opened.line.name,
            scores=tuple(scores),
            attacks=tuple(attacks),
            agreement=agreement_text(joined),
        ),
        rows=tuple(rows),
        families=tuple(families),
        files=tuple(files),
    )
