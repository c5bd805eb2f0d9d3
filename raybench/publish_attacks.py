"""Reports of attacks beside the results: tables, and figures of robust accuracy."""

import json
from collections.abc import Sequence
from pathlib import Path

from raybench.core.keys import digest, slug
from raybench.core.robustness import AttackTable
from raybench.publish import Published
from raybench.reports.attack_figures import effort_curves, robust_bars, security_curves
from raybench.reports.attack_text import attacks_as_json, attacks_as_markdown, write_attacks_csv
from raybench.reports.attacks import AttackRows, attack_tables, read_attacks
from raybench.sinks.parts import write_atomically

__all__ = ["publish_attacks"]


def publish_attacks(out: Path, folders: Sequence[Path]) -> Published:
    """Write the reports of every attack among the measurement `folders`; return what there is."""
    members = read_attacks(folders)
    tables = attack_tables(out, members)
    rows, files = [], []
    for table in tables:
        written = _write(out, table, _members_of(table, members))
        files += written
        rows += [(row, tuple(written)) for row in table.measurements()]
    files += _curves(out, members)
    return Published(tables=tuple(tables), rows=tuple(rows), files=tuple(files))


def _curves(out: Path, members: Sequence[AttackRows]) -> list[Path]:
    """Draw accuracy against the budget, for each selection of images: it spans several tables."""
    groups: dict[tuple[str, str, int], list[AttackRows]] = {}
    for member in members:
        facts = member.manifest.measurement
        images = (facts["dataset"]["name"], facts["dataset"]["fingerprint"], facts["seed"])
        groups.setdefault(images, []).append(member)
    files = []
    for (name, fingerprint, seed), group in groups.items():
        folder = out / "reports" / f"{slug(name)}-attack-{digest([fingerprint, seed])[:8]}"
        files += security_curves(group, folder / "security")
    return files


def _members_of(table: AttackTable, members: Sequence[AttackRows]) -> list[AttackRows]:
    keys = {row.key for row in table.measurements()}
    return [member for member in members if member.manifest.measurement["key"] in keys]


def _write(out: Path, table: AttackTable, members: Sequence[AttackRows]) -> list[Path]:
    key = digest([table.dataset.fingerprint, table.threat, table.seed])
    name = f"{slug(table.dataset.name)}-attack-{slug(table.threat)}-{key[:8]}"
    folder = out / "reports" / name
    content = json.dumps(attacks_as_json(table), indent=1, allow_nan=False)
    write_atomically(folder / "robustness.json", content.encode())
    write_atomically(folder / "robustness.md", attacks_as_markdown(table).encode())
    return [
        folder / "robustness.json",
        folder / "robustness.md",
        write_attacks_csv(table, folder / "robustness.csv"),
        *robust_bars(table, folder / "robust"),
        *effort_curves(members, folder / "effort"),
    ]
