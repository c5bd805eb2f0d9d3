"""The state of a leaderboard between refreshes: which entries there are, and what became of them.

``out/leaderboard/state.json``, written atomically at the end of every refresh::

    {"schema": 1, "benchmark_version": str, "written": ISO time, "seconds": float,
     "new": int, "unchanged": int, "failed": int, "returned": int, "renamed": int, "history": int,
     "entries": [{"spec", "name", "fingerprint" (or null), "dataset" (a key of datasets),
                  "status": "current" | "history" | "failed", "error" (or null), "first_seen",
                  "last_seen", "measurements": [folder below out, ...], "access" (or null),
                  "notes": [str, ...], "benchmark_version": str}],
     "datasets": [{"key", "spec", "name", "n", "threat" (or null), "fingerprint",
                   "current": bool}],
     "references": [{"model", "dataset", "threat" (or null), "metric": "robust_accuracy" |
                     "clean_accuracy" | "brittle_score", "value", "source", "comparable", "why"}],
     "protocol": {dataset name: {"selection", "labels", "seed", "evaluations": [...]}}}

"new" counts entries whose fingerprint was not current before (changed ones too), "unchanged" those
for which nothing was computed; "returned" were history, "renamed" stood under another spec. Each
entry of a refresh is counted once. "history" is the number of entries that are no longer listed.
Times are UTC. `protocol` is what rows must share to be ranked together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raybench.core.errors import InputError, StoreError
from raybench.sinks.parts import write_atomically

__all__ = [
    "COUNTED",
    "Counts",
    "Entry",
    "Found",
    "Reference",
    "Selection",
    "State",
    "advance",
    "check_protocol",
    "read_state",
    "state_path",
    "write_state",
]

_SCHEMA = 1
COUNTED = ("new", "unchanged", "failed", "returned", "renamed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model on one dataset, as some refresh left it.

    Attributes:
        spec, name, access: the model; access is None where it never loaded.
        fingerprint: of the model; None where it never loaded.
        dataset: key of its `Selection`.
        status: "current" (listed and measured), "failed" (listed, with an `error`), or "history".
        error: why it failed.
        first_seen: when this content (fingerprint) was first listed on this dataset.
        last_seen: when it was last listed.
        measurements: their folders below the output folder.
        notes: what was left out, and warnings of the model's first answers.
        benchmark_version: the version it was ranked in.
    """

    spec: str
    name: str
    fingerprint: str | None
    dataset: str
    status: str
    error: str | None
    first_seen: str
    last_seen: str
    measurements: tuple[str, ...] = ()
    access: str | None = None
    notes: tuple[str, ...] = ()
    benchmark_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A dataset of the leaderboard; `current` is False where only history refers to it."""

    key: str
    spec: str
    name: str
    n: int
    threat: str | None
    fingerprint: str = ""
    current: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A published value beside ours: see `raybench.refresh.references`."""

    model: str
    dataset: str
    threat: str | None
    metric: str
    value: float
    source: str
    comparable: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many entries of a refresh went which way; see the module's docstring."""

    new: int = 0
    unchanged: int = 0
    failed: int = 0
    returned: int = 0
    renamed: int = 0
    history: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What the file holds."""

    benchmark_version: str
    written: str
    seconds: float
    counts: Counts
    entries: tuple[Entry, ...]
    datasets: tuple[Selection, ...]
    references: tuple[Reference, ...] = ()
    protocol: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a refresh made of one listed model on one dataset; `computed` shards of it are new."""

    spec: str
    name: str
    fingerprint: str | None
    dataset: str
    error: str | None = None
    measurements: tuple[str, ...] = ()
    access: str | None = None
    notes: tuple[str, ...] = ()
    computed: int = 0


def state_path(out: Path) -> Path:
    """Return where the state of the leaderboard in `out` is kept."""
    return out / "leaderboard" / "state.json"


_ENTRIES: TypeAdapter[tuple[Entry, ...]] = TypeAdapter(tuple[Entry, ...])
_SELECTIONS: TypeAdapter[tuple[Selection, ...]] = TypeAdapter(tuple[Selection, ...])
_REFERENCES: TypeAdapter[tuple[Reference, ...]] = TypeAdapter(tuple[Reference, ...])


def read_state(out: Path) -> State | None:
    """Return the state left in `out`, or None where no refresh has ended.

    Raises:
        StoreError: the file is damaged, or another version's.
    """
    path = state_path(out)
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != _SCHEMA:
            raise StoreError(f"{path} was written by another version of raybench")
        names = (*COUNTED, "history")
        return State(
            benchmark_version=content["benchmark_version"],
            written=content["written"],
            seconds=content["seconds"],
            counts=Counts(**{name: content.get(name, 0) for name in names}),
            entries=_ENTRIES.validate_python(content["entries"]),
            datasets=_SELECTIONS.validate_python(content["datasets"]),
            references=_REFERENCES.validate_python(content["references"]),
            protocol=dict(content.get("protocol", {})),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise StoreError(
            f"{path} is damaged ({error}); the results beside it are not: move the file away, and "
            "the next refresh makes it anew, without its history"
        ) from error


def write_state(out: Path, state: State) -> None:
    """Write the state; readers see the old one or this."""
    content = {
        "schema": _SCHEMA,
        "benchmark_version": state.benchmark_version,
        "written": state.written,
        "seconds": round(state.seconds, 3),
        **asdict(state.counts),
        "entries": [asdict(entry) for entry in state.entries],
        "datasets": [asdict(dataset) for dataset in state.datasets],
        "references": [asdict(reference) for reference in state.references],
        "protocol": state.protocol,
    }
    write_atomically(
        state_path(out), json.dumps(content, indent=1, allow_nan=False).encode("utf-8")
    )


def advance(
    before: Sequence[Entry], listed: Sequence[Found], *, now: str, version: str
) -> tuple[tuple[Entry, ...], Counts]:
    """Return the entries after a refresh that found `listed`, and how many went which way.

    Content is what counts: an entry is the same where dataset, version and fingerprint are. One
    that is found under another spec, its own listed no more, has moved. What is not listed any more
    is history, with its results; a failure without any is dropped.
    """
    specs = {(found.dataset, found.spec) for found in listed}
    left = list(before)
    entries: list[Entry] = []
    tally = dict.fromkeys(COUNTED, 0)
    for found in listed:
        old, way = _earlier(found, left, specs, version)
        if old is not None:
            left.remove(old)
        way = "failed" if found.error is not None else way
        if way == "unchanged" and found.computed:
            way = "new"
        tally[way] += 1
        entries.append(
            Entry(
                spec=found.spec,
                name=found.name,
                fingerprint=found.fingerprint,
                dataset=found.dataset,
                status="current" if found.error is None else "failed",
                error=found.error,
                first_seen=now if old is None else old.first_seen,
                last_seen=now,
                measurements=found.measurements,
                access=found.access,
                notes=found.notes,
                benchmark_version=version,
            )
        )
    history = [
        replace(entry, status="history")
        for entry in left
        if entry.fingerprint is not None and entry.measurements
    ]
    return (*entries, *history), Counts(**tally, history=len(history))


def _earlier(
    found: Found, left: Sequence[Entry], specs: set[tuple[str, str]], version: str
) -> tuple[Entry | None, str]:
    """Return the entry that `found` continues, and the way it went; None and "new" without one."""
    alike = [
        entry
        for entry in left
        if (entry.dataset, entry.fingerprint, entry.access, entry.benchmark_version)
        == (found.dataset, found.fingerprint, found.access, version)
    ]
    for entry in alike:
        if entry.spec == found.spec:
            ways = {"current": "unchanged", "history": "returned", "failed": "new"}
            return entry, ways[entry.status]
    for entry in alike:
        if found.fingerprint is not None and (entry.dataset, entry.spec) not in specs:
            return entry, "renamed"
    return None, "new"


def check_protocol(
    before: State | None, version: str, protocol: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to rank rows together that another selection, seed or evaluation made.

    Within one benchmark version a dataset keeps all of these. Datasets may come and go.

    Raises:
        InputError: what differs, dataset by dataset.
    """
    if before is None or before.benchmark_version != version:
        return
    texts = {
        "selection": "other images",
        "labels": "other labels",
        "seed": "another seed",
        "evaluations": "other evaluations",
    }
    problems = []
    for name, wanted in protocol.items():
        known = before.protocol.get(name)
        if known is None:
            continue
        for part, text in texts.items():
            if known.get(part) != wanted[part]:
                problems.append(f"{name}: {text} ({_difference(known.get(part), wanted[part])})")
    if problems:
        raise InputError(
            f"benchmark_version {version} was ranked by another protocol, and rows of both would "
            "stand in one table:\n  "
            + "\n  ".join(problems)
            + "\nraise benchmark_version (what is stored is kept, as history, and used where it is "
            "the same), or put back what has changed"
        )


def _difference(known: Any, wanted: Any) -> str:
    if isinstance(known, list) and isinstance(wanted, list):
        gone = [f"without {one}" for one in known if one not in wanted]
        added = [f"with {one}" for one in wanted if one not in known]
        return ", ".join(gone + added)
    return f"was {str(known)[:16]}, is {str(wanted)[:16]}"
