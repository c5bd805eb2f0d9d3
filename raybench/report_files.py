"""The leaderboard as files: JSON, CSV, Markdown, and a model-card fragment for each model.

Everything in full precision, from the same tables as the page.
"""

import csv
import io
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from raybench.core.keys import slug
from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackTable, RobustScore
from raybench.core.types import ModelInfo
from raybench.refresh.state import State
from raybench.report_published import Line
from raybench.report_tables import ImageTables
from raybench.reports.agreement import Joined
from raybench.reports.attack_text import attack_names, attacks_as_json, attacks_as_markdown
from raybench.reports.html_tables import percent, shown_spec
from raybench.reports.notes import footnotes
from raybench.reports.tables import as_json, as_markdown, interval
from raybench.sinks.tracking import redact

__all__ = ["cards", "leaderboard_csv", "leaderboard_json", "leaderboard_markdown"]

_COLUMNS = (
    "kind", "dataset", "dataset_fingerprint", "evaluation", "seed", "rank", "tied", "model", "spec",
    "fingerprint", "access", "status", "ranked_by", "brittle_score", "brittle_score_ci_low",
    "brittle_score_ci_high", "normalised", "normalised_ci_low", "normalised_ci_high", "matched",
    "noise_floor", "robust_accuracy", "robust_accuracy_ci_low", "robust_accuracy_ci_high",
    "clean_accuracy", "clean_accuracy_ci_low", "clean_accuracy_ci_high", "n", "unscored", "queries",
    "gradients", "images_per_second", "warnings", "error",
)  # fmt: skip


def leaderboard_json(
    tables: Sequence[ImageTables],
    joined: Sequence[Joined],
    published: Sequence[Line],
    state: State | None,
    problems: Sequence[str],
) -> str:
    """Return everything the page shows as strict JSON with stable names."""
    content: dict[str, Any] = {
        "schema": 1,
        "benchmark_version": state.benchmark_version if state else None,
        "refreshed": state.written if state else None,
        "scores": [
            {
                "n": table.dataset.size,
                "dataset_fingerprint": table.dataset.fingerprint,
                **as_json(table, redact=shown_spec),
                "notes": footnotes(table),
            }
            for one in tables
            for table in one.shown
        ],
        "robustness": [
            {
                "n": table.dataset.size,
                "dataset_fingerprint": table.dataset.fingerprint,
                **attacks_as_json(table, redact=shown_spec),
            }
            for one in tables
            for table in one.attacks
        ],
        "agreement": [
            {
                "dataset": one.scores.dataset.name,
                "reading": one.scores.reading,
                "score": one.field,
                "threat": one.attacks.threat,
                **asdict(one.found),
                "points": [asdict(point) for point in one.points],
            }
            for one in joined
        ],
        "published": [asdict(line) | {"difference": line.difference} for line in published],
        "entries": [
            asdict(entry)
            | {"spec": shown_spec(entry.spec), "error": entry.error and redact(entry.error)}
            for entry in (state.entries if state else ())
        ],
        "problems": list(problems),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def leaderboard_csv(tables: Sequence[ImageTables]) -> str:
    """Return one line for each model and table; absent values are empty cells.

    Several ties or warnings in one cell are parted by `` | ``; shares are fractions.
    """
    page = io.StringIO()
    writer = csv.DictWriter(page, _COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for one in tables:
        for table in one.shown:
            writer.writerows(_score_line(table, row) for row in table.rows)
        for within in one.attacks:
            writer.writerows(_robust_line(within, row) for row in within.rows)
    return page.getvalue()


def _head(table: ScoreTable | AttackTable, row: ModelScore | RobustScore) -> dict[str, Any]:
    return {
        "dataset": table.dataset.name,
        "dataset_fingerprint": table.dataset.fingerprint,
        "seed": table.seed,
        "rank": row.rank,
        "tied": " | ".join(row.tied),
        "model": row.model.name,
        "spec": shown_spec(row.model.spec),
        "fingerprint": row.model.fingerprint,
        "access": row.model.access.name.lower(),
        "status": row.status,
        "clean_accuracy": row.clean_accuracy,
        "clean_accuracy_ci_low": row.clean_low,
        "clean_accuracy_ci_high": row.clean_high,
        "n": row.n,
        "warnings": " | ".join(row.warnings),
    }


def _score_line(table: ScoreTable, row: ModelScore) -> dict[str, Any]:
    return _head(table, row) | {
        "kind": "score",
        "evaluation": table.reading,
        "ranked_by": table.rank_by,
        "brittle_score": row.score,
        "brittle_score_ci_low": row.ci_low,
        "brittle_score_ci_high": row.ci_high,
        "normalised": row.normalised,
        "normalised_ci_low": row.normalised_low,
        "normalised_ci_high": row.normalised_high,
        "matched": row.matched,
        "noise_floor": row.noise_floor,
        "unscored": row.unscored,
        "queries": row.queries,
        "images_per_second": row.images_per_second,
        "error": redact(row.error or ""),
    }


def _robust_line(table: AttackTable, row: RobustScore) -> dict[str, Any]:
    errors = dict.fromkeys(redact(attack.error) for attack in row.attacks if attack.error)
    return _head(table, row) | {
        "kind": "robust accuracy",
        "evaluation": table.threat,
        "ranked_by": "robust_accuracy",
        "robust_accuracy": row.robust_accuracy,
        "robust_accuracy_ci_low": row.robust_low,
        "robust_accuracy_ci_high": row.robust_high,
        "unscored": max((attack.unscored for attack in row.attacks), default=0),
        "queries": sum(attack.queries for attack in row.attacks),
        "gradients": sum(attack.gradients for attack in row.attacks),
        "error": " | ".join(errors),
    }


def leaderboard_markdown(
    tables: Sequence[ImageTables], state: State | None, problems: Sequence[str]
) -> str:
    """Return the tables in GitHub's Markdown, one below the other, and then what failed."""
    pages = ["# Leaderboard\n"]
    if problems:
        pages.append("\n".join(f"> {_plain(problem)}" for problem in problems) + "\n")
    for one in tables:
        pages.append(f"## {_plain(one.dataset.name)}\n")
        pages += [as_markdown(table) for table in one.shown]
        pages += [attacks_as_markdown(table) for table in one.attacks]
    failed = [entry for entry in (state.entries if state else ()) if entry.status == "failed"]
    if failed:
        lines = [
            f"- {_plain(entry.name)} on {_plain(entry.dataset)}: "
            f"{_plain(redact(entry.error or 'no reason is known'))}"
            for entry in failed
        ]
        pages.append("\n".join(["## Failed", "", *lines, ""]))
    return "\n".join(pages)


def cards(tables: Sequence[ImageTables]) -> dict[str, str]:
    """Return a Markdown fragment for each model's card, by file name."""
    models: dict[tuple[str, str], ModelInfo] = {}
    for info in (info for one in tables for info in one.models):
        models.setdefault((info.fingerprint, info.access.name), info)
    found = {}
    for (fingerprint, access), info in models.items():
        name = f"{slug(info.name)}-{fingerprint[:8]}"
        if f"{name}.md" in found:
            name += f"-{access.lower()}"
        found[f"{name}.md"] = _card(info, tables)
    return dict(sorted(found.items()))


def _is(info: ModelInfo, other: ModelInfo) -> bool:
    return (info.fingerprint, info.access) == (other.fingerprint, other.access)


def _card(info: ModelInfo, tables: Sequence[ImageTables]) -> str:
    lines = [
        "## Robustness evaluation",
        "",
        f"`{_code(info.name)}` (`{_code(shown_spec(info.spec))}`, SHA-256 of weights and "
        f"architecture `{info.fingerprint[:16]}`), measured with "
        "raybench at access level "
        f"{info.access.name.lower()}.",
        "",
    ]
    for one in tables:
        rows = list(_card_rows(info, one.shown, one.attacks))
        if not rows:
            continue
        dataset = one.dataset
        lines += [
            f"### {_plain(dataset.name)}, {dataset.size:,} images",
            "",
            "| measured | value [95 % CI] | rank |",
            "| --- | ---: | ---: |",
            *(f"| {' | '.join(cells)} |" for cells in rows),
            "",
        ]
        own: list[ModelScore | RobustScore] = [row for table in one.shown for row in table.rows]
        own += [row for table in one.attacks for row in table.rows]
        warnings = dict.fromkeys(w for row in own if _is(info, row.model) for w in row.warnings)
        lines += [f"- {_plain(redact(warning))}" for warning in warnings]
        lines += [""] if warnings else []
        lines += [f"Again: `{_code(command)}`" for command in _commands(info, one.shown[:1])]
        lines += [""] if one.shown else []
    lines += [
        "Scores: lower = less brittle under the reading named, which is one way among many of "
        "explaining answers; they use no labels and are no guarantee. Robust accuracy: the share "
        "of images that are right and for which no successful attack was found within the budget; "
        "an upper bound, which a better attack can only lower. `=`: tied with other models of the "
        "same table. Ranks hold among the models of one table only.",
        "",
    ]
    return "\n".join(lines)


def _card_rows(
    info: ModelInfo, scores: Sequence[ScoreTable], attacks: Sequence[AttackTable]
) -> Iterator[tuple[str, str, str]]:
    clean: tuple[float | None, float | None, float | None] = (None, None, None)
    seen: set[str] = set()
    for table in scores:
        for row in table.rows:
            if not _is(info, row.model):
                continue
            what = f"brittle-score, `{_code(table.reading)}`"
            if row.status != "complete":
                yield what, row.status, "-"
                continue
            rank = f"{row.rank}{'=' if row.tied else ''} of {len(table.rows)}"
            own = rank if table.rank_by == "score" else "-"
            yield what, interval(row.score, row.ci_low, row.ci_high), own
            by = row.normalised_by or ""
            if row.normalised is not None and by not in seen:
                seen.add(by)
                yield (
                    f"normalised score, `{_code(by)}`",
                    interval(row.normalised, row.normalised_low, row.normalised_high),
                    rank if table.rank_by == "normalised" else "-",
                )
            if row.clean_accuracy is not None:
                clean = (row.clean_accuracy, row.clean_low, row.clean_high)
    for within in attacks:
        names = ", ".join(attack_names(within).values())
        for one in within.rows:
            if not _is(info, one.model):
                continue
            what = f"robust accuracy within {_plain(within.threat)} (%), by {_plain(names)}"
            if one.status != "complete":
                yield what, one.status, "-"
                continue
            rank = f"{one.rank}{'=' if one.tied else ''} of {len(within.rows)}"
            yield what, _shares(one.robust_accuracy, one.robust_low, one.robust_high), rank
            clean = (one.clean_accuracy, one.clean_low, one.clean_high)
    if clean[0] is not None:
        yield "clean accuracy (%)", _shares(*clean), "-"


def _shares(value: float | None, low: float | None, high: float | None) -> str:
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def _commands(info: ModelInfo, tables: Sequence[ScoreTable]) -> Iterator[str]:
    for table in tables:
        words = [
            "raybench", "score", shown_spec(info.spec), "--data", shown_spec(table.dataset.spec),
            "--reading", table.reading, "--seed", str(table.seed),
        ]  # fmt: skip
        yield shlex.join(words)


def _plain(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line."""
    found = re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split()))
    return found.replace("<", "&lt;")


def _code(text: str) -> str:
    """Return `text` for a span of code within a table: no backtick, no bar, no line break."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")
