"""Tables of robust accuracy as text, Markdown, CSV and JSON.

Higher is better, and only for the budget and the attacks that the title and the columns name: a
robust accuracy is an upper bound, which a better attack lowers.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.table import Table

from raybench.core.robustness import AttackScore, AttackTable, RobustScore
from raybench.core.spec import parse
from raybench.reports.layout import draw, hide_remote, markdown, page_text, print_page, shorten
from raybench.reports.tables import number

__all__ = [
    "attack_names",
    "attack_notes",
    "attacks_as_json",
    "attacks_as_markdown",
    "attacks_as_text",
    "print_attacks",
    "write_attacks_csv",
]


def _title(table: AttackTable) -> str:
    size = f"n = {table.dataset.size:,}"
    return f"{table.dataset.name} · attacks within {table.threat} · {size} · seed {table.seed}"


def attack_names(table: AttackTable) -> dict[str, str]:
    """Return each attack spec of the table with a heading: its name, numbered where shared."""
    specs = dict.fromkeys(attack.reading for attack in table.measurements())
    names = [parse(spec).scheme for spec in specs]
    seen: dict[str, int] = {}
    headings = {}
    for spec, name in zip(specs, names, strict=True):
        seen[name] = seen.get(name, 0) + 1
        headings[spec] = name if names.count(name) == 1 else f"{name}#{seen[name]}"
    return headings


def _percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "-"
    text = f"{100 * value:.1f}"
    if low is None or high is None:
        return text
    return f"{text} [{100 * low:.1f}, {100 * high:.1f}]"


def _cells(table: AttackTable) -> tuple[list[str], list[list[str]]]:
    headings = attack_names(table)
    columns: list[tuple[str, Callable[[RobustScore], str]]] = [
        ("rank", lambda row: "-" if row.rank is None else f"{row.rank}{'=' if row.tied else ''}"),
        ("model", lambda row: row.model.name),
        (
            "robust % [95 % CI]",
            lambda row: _percent(row.robust_accuracy, row.robust_low, row.robust_high)
            if row.status == "complete"
            else row.status,
        ),
        ("clean %", lambda row: _percent(row.clean_accuracy)),
    ]
    if len(headings) > 1:
        columns += [(name, _under(spec)) for spec, name in headings.items()]
    columns += [
        ("queries", lambda row: f"{sum(a.queries for a in row.attacks):,}"),
        ("gradients", lambda row: f"{sum(a.gradients for a in row.attacks):,}"),
        ("images/s", _speed),
    ]
    shown = [[show(row) for _, show in columns] for row in table.rows]
    return [heading for heading, _ in columns], shown


def _under(spec: str) -> Callable[[RobustScore], str]:
    def show(row: RobustScore) -> str:
        found = [attack for attack in row.attacks if attack.reading == spec]
        return _percent(found[0].accuracy) if found else "-"

    return show


def _speed(row: RobustScore) -> str:
    """Return images per second through all attacks: their times add up."""
    speeds = [attack.images_per_second for attack in row.attacks]
    known = [speed for speed in speeds if speed]
    if not known or len(known) < len(speeds):
        return "-"
    return number(1 / sum(1 / speed for speed in known), 3)


def attack_notes(table: AttackTable) -> list[str]:
    specs = [
        f"{name}: {spec}" if name != parse(spec).scheme else spec
        for spec, name in attack_names(table).items()
    ]
    notes = [
        "Robust: right, and changed by none of the attacks within the budget, image by image. An "
        "upper bound: a better attack can only lower it.",
        f"Attacks: {'; '.join(specs)}.",
    ]
    if table.eps is None:
        notes.append("Without a budget every success counts: read the distances, not the share.")
        notes += [
            f"{attack.model.name}, {parse(attack.reading).scheme}: median distance of successes "
            f"l2 {number(attack.median_l2, 3)}, linf {number(attack.median_linf, 3)}, "
            f"l0 {number(attack.median_l0, 3)}; {_percent(attack.success_rate)} % of those right "
            "were changed."
            for attack in table.measurements()
            if attack.status == "complete"
        ]
    ties = [f"{row.model.name} with {shorten(row.tied)}" for row in table.rows if row.tied]
    if ties:
        notes.append(
            "= tied: McNemar's exact test on the same images does not tell them apart at 5 %: "
            f"{shorten(ties, '; ')}."
        )
    notes += [f"{row.model.name}: {warning}." for row in table.rows for warning in row.warnings]
    for attack in table.measurements():
        if attack.status != "complete":
            reason = " ".join((attack.error or "no share is published").split())
            notes.append(f"{attack.model.name}, {attack.reading}, is {attack.status}: {reason}")
    return notes


def _drawn(table: AttackTable) -> Table:
    headings, cells = _cells(table)
    wrong = [row.status != "complete" for row in table.rows]
    return draw(_title(table), headings, cells, attack_notes(table), wrong=wrong)


def print_attacks(table: AttackTable) -> None:
    """Print the table on stdout, in colour and as wide as the terminal where it is one."""
    print_page(lambda _: _drawn(table))


def attacks_as_text(table: AttackTable) -> str:
    """Return the table as plain text of at most 100 columns, without colours."""
    return page_text(lambda _: _drawn(table))


def attacks_as_markdown(table: AttackTable) -> str:
    """Return the table in GitHub's Markdown, footnotes as a list."""
    headings, cells = _cells(table)
    return markdown(_title(table), headings, cells, attack_notes(table))


# One spelling of a bound for every number: NAME_ci_low, NAME_ci_high.
_BOUNDS = {
    "robust": "robust_accuracy",
    "clean": "clean_accuracy",
    "success": "success_rate",
    "accuracy": "accuracy",
}


def _flat(row: RobustScore | AttackScore, leave_out: Sequence[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for field in fields(row):
        if field.name in leave_out:
            continue
        value = getattr(row, field.name)
        stem, _, end = field.name.rpartition("_")
        name = f"{_BOUNDS[stem]}_ci_{end}" if end in ("low", "high") else field.name
        flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def attacks_as_json(
    table: AttackTable, *, redact: Callable[[str], str] = hide_remote
) -> dict[str, Any]:
    """Return the table as plain values for strict JSON, most robust model first.

    Shares are fractions. Each model carries ``attacks``: one object for each attack.

    Args:
        table: the shares.
        redact: removes credentials from model specs; by default a remote address is cut off whole.
    """
    robust = ("robust_accuracy", "robust_low", "robust_high")
    shared = ("model", *robust, "clean_accuracy", "clean_low", "clean_high")
    models = []
    for row in table.rows:
        head = {
            "model": row.model.name,
            "spec": redact(row.model.spec),
            "fingerprint": row.model.fingerprint,
            "access": row.model.access.name.lower(),
        }
        attacks = [
            {"attack": parse(attack.reading).scheme} | _flat(attack, shared)
            for attack in row.attacks
        ]
        counts = {
            "queries": sum(attack.queries for attack in row.attacks),
            "gradients": sum(attack.gradients for attack in row.attacks),
        }
        models.append(head | _flat(row, ("model", "attacks")) | counts | {"attacks": attacks})
    return {
        "dataset": table.dataset.name,
        "threat": table.threat,
        "norm": table.norm,
        "eps": table.eps,
        "targeted": table.targeted,
        "seed": table.seed,
        "models": models,
    }


def write_attacks_csv(table: AttackTable, path: Path) -> Path:
    """Write one line for each model and attack, in full precision, and return `path`."""
    content = attacks_as_json(table)
    common = {name: content[name] for name in ("dataset", "threat", "norm", "eps", "seed")}
    lines = []
    for model in content["models"]:
        shared = {
            name: model[name]
            for name in ("model", "spec", "rank", "robust_accuracy", "clean_accuracy")
        }
        lines += [common | shared | attack for attack in model["attacks"]]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return path
