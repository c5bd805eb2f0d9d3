"""What became of every entry, as text: a line for the terminal, a Markdown page in the folder."""

from collections.abc import Sequence
from pathlib import Path

from raybench.refresh.state import COUNTED, Entry, Selection, State
from raybench.reports.layout import markdown
from raybench.sinks.parts import write_atomically

__all__ = ["status_lines", "status_markdown", "summary_line", "write_status"]


def summary_line(state: State, computed: int, loaded: int) -> str:
    """Return one line: how many entries went which way, and what it took."""
    counts = [f"{getattr(state.counts, name)} {name}" for name in COUNTED]
    counts = [text for text in counts if not text.startswith("0 ") or text[2:] in COUNTED[:3]]
    return (
        f"version {state.benchmark_version}: {', '.join(counts)}, {state.counts.history} in "
        f"history; {computed:,} shards computed, {loaded:,} models loaded, {state.seconds:.1f} s"
    )


def status_lines(state: State) -> list[str]:
    """Return a line for each entry that failed, and for each note on one that did not."""
    names = {dataset.key: dataset.name for dataset in state.datasets}
    lines = [
        f"failed: {entry.name} on {names[entry.dataset]}: {entry.error}"
        for entry in state.entries
        if entry.status == "failed"
    ]
    lines += [
        f"{entry.name} on {names[entry.dataset]}: {note}"
        for entry in state.entries
        if entry.status == "current"
        for note in entry.notes
    ]
    return lines


def status_markdown(state: State) -> str:
    """Return the page: for each dataset its entries, those that failed with their error."""
    pages = []
    for dataset in state.datasets:
        entries = [entry for entry in state.entries if entry.dataset == dataset.key]
        pages.append(_page(state, dataset, entries))
    return "\n".join(pages)


def _page(state: State, dataset: Selection, entries: Sequence[Entry]) -> str:
    threat = f" · within {dataset.threat}" if dataset.threat else ""
    title = f"{dataset.name} · n = {dataset.n:,}{threat} · version {state.benchmark_version}"
    headings = ["model", "status", "fingerprint", "first seen", "last seen", "error"]
    cells = [
        [
            entry.name,
            entry.status,
            (entry.fingerprint or "-")[:12],
            entry.first_seen[:10],
            entry.last_seen[:10],
            " ".join((entry.error or "").split()),
        ]
        for entry in entries
    ]
    notes = [f"{entry.name}: {note}" for entry in entries for note in entry.notes]
    return markdown(title, headings, cells, notes)


def write_status(out: Path, state: State) -> Path:
    """Write the page beside the state and return its path."""
    path = out / "leaderboard" / "status.md"
    write_atomically(path, status_markdown(state).encode())
    return path
