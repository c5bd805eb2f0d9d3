"""Our entries in RobustBench's ``model_info`` format, one JSON file for each model and threat.

``out/leaderboard/model_info/DATASET/THREAT/NAME.json``, as RobustBench lays them out. A robust
accuracy is called ``autoattack_acc`` only where AutoAttack's standard version gave it; one by other
attacks is ``external``, with a footnote that names them. Percentages are text with two decimals, as
there. ``raybench`` holds what the format has no place for: numbers of images, intervals, scores.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybench.core.keys import slug
from raybench.core.results import ModelScore
from raybench.core.robustness import RobustScore
from raybench.core.spec import parse
from raybench.refresh.planning import Planned
from raybench.refresh.references import ModelInfoFile
from raybench.refresh.tables import Ranked
from raybench.sinks.parts import write_atomically

__all__ = ["export_folder", "export_model_info", "model_info_entry"]

# The order of RobustBench's own files.
_ABOUT = (
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
)
_FOLDERS = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}


def export_folder(out: Path) -> Path:
    """Return where the entries are written."""
    return out / "leaderboard" / "model_info"


def export_model_info(
    out: Path,
    ranked: Sequence[Ranked],
    planned: Sequence[Planned],
    imported: Mapping[tuple[str, str], ModelInfoFile],
    version: str,
) -> list[Path]:
    """Write the entry of every complete robust accuracy, and return the paths.

    A model without one has an entry of its scores below ``scores``. Files that hold what they
    should are not touched; those of entries that are no longer listed are removed.

    Args:
        out: output folder.
        ranked: the tables of each dataset.
        planned: the entries, for what the file says about their models.
        imported: ``model_info`` files read, by (name of the images, model).
        version: the benchmark version.
    """
    about = {(entry.opened.line.name, entry.name): dict(entry.listed.info) for entry in planned}
    data = {entry.opened.line.name: entry.opened.published_name for entry in planned}
    wanted: dict[Path, dict[str, Any]] = {}
    for one in ranked:
        images = data.get(one.dataset, one.dataset)
        scores = _scores(one)
        robust = [(t, r) for t in one.attacks for r in t.rows if r.status == "complete"]
        for table, row in robust:
            known = imported.get((images, row.model.name))
            facts = dict(known.content if known else {}) | about.get(
                (one.dataset, row.model.name), {}
            )
            entry = model_info_entry(row, table.eps, images, facts)
            entry["raybench"] = _ours(version, one, row.model.name, scores, row)
            norm = _FOLDERS.get(table.norm, table.norm)
            # One selection may have several budgets; RobustBench has one for each norm.
            several = sum(other.norm == table.norm for other in one.attacks) > 1
            folder = slug(table.threat) if several or table.targeted else norm
            wanted[Path(slug(one.dataset)) / folder / f"{slug(row.model.name)}.json"] = entry
        named = {row.model.name for _, row in robust}
        for name in scores:
            if name not in named:
                facts = about.get((one.dataset, name), {})
                entry = _about(facts, images) | {"raybench": _ours(version, one, name, scores)}
                clean = scores[name][0].clean_accuracy
                if clean is not None:
                    entry["clean_acc"] = _percent(clean)
                wanted[Path(slug(one.dataset)) / "scores" / f"{slug(name)}.json"] = entry
    return _write(export_folder(out), wanted)


def _write(folder: Path, wanted: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
    for path in folder.rglob("*.json"):
        if path.relative_to(folder) not in wanted:
            path.unlink()
    for name, entry in wanted.items():
        content = json.dumps(entry, indent=2, allow_nan=False).encode() + b"\n"
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)
    return sorted(folder / name for name in wanted)


def model_info_entry(
    row: RobustScore, eps: str | None, dataset: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one entry in RobustBench's format.

    Args:
        row: a complete robust accuracy.
        eps: its budget, as text.
        dataset: name of the images.
        facts: what is known of the model besides: ``authors``, ``link``, ``venue`` and the like.
    """
    assert row.status == "complete", row.status
    assert row.robust_accuracy is not None
    assert row.clean_accuracy is not None
    attacks = [parse(attack.reading) for attack in row.attacks]
    standard = [(a.scheme, a.get("version")) for a in attacks] == [("autoattack", "standard")]
    entry = _about(facts, dataset) | {
        "eps": eps or "",
        "clean_acc": _percent(row.clean_accuracy),
        "reported": str(facts.get("reported", "")),
    }
    if standard:
        entry["autoattack_acc"] = _percent(row.robust_accuracy)
    else:
        entry["external"] = _percent(row.robust_accuracy)
        names = ", ".join(dict.fromkeys(attack.scheme for attack in attacks))
        entry["footnote"] = f"external: by {names} on {row.n:,} images, not by AutoAttack."
    entry["unreliable"] = any("gradient masking" in warning for warning in row.warnings)
    return entry


def _about(facts: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    empty: dict[str, Any] = {"additional_data": None, "number_forward_passes": 1}
    return {name: facts.get(name, empty.get(name, "")) for name in _ABOUT} | {"dataset": dataset}


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _scores(ranked: Ranked) -> dict[str, list[ModelScore]]:
    found: dict[str, list[ModelScore]] = {}
    for table in ranked.scores:
        for row in table.rows:
            if row.status == "complete":
                found.setdefault(row.model.name, []).append(row)
    return found


def _ours(
    version: str,
    ranked: Ranked,
    name: str,
    scores: Mapping[str, Sequence[ModelScore]],
    row: RobustScore | None = None,
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "benchmark_version": version,
        "leaderboard_dataset": ranked.dataset,
        "brittle_scores": [
            {
                "reading": one.reading,
                "score": one.score,
                "ci_low": one.ci_low,
                "ci_high": one.ci_high,
                "normalised": one.normalised,
                "n": one.n,
            }
            for one in scores.get(name, ())
        ],
    }
    if row is not None:
        content |= {
            "fingerprint": row.model.fingerprint,
            "n": row.n,
            "robust_low": row.robust_low,
            "robust_high": row.robust_high,
            "attacks": [attack.reading for attack in row.attacks],
        }
    return content
