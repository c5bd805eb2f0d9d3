"""How far a run has come, from what it leaves in its output folder: manifests and signs of life.

    found = look(Path("results"))
    print(found.as_text())

No part is read and no cluster asked, so it works from any machine that sees the results, also when
nothing runs any more.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybench.core.errors import InputError, StoreError
from raybench.heartbeat import Sign, signs
from raybench.sinks.store import MANIFEST, Manifest, find_manifests, read_manifest

__all__ = ["Progress", "Status", "look"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One measurement.

    Attributes:
        folder: below the output folder.
        model, dataset, evaluation: their names; empty where the manifest is damaged.
        key: first 16 characters of the measurement's key.
        shards: asked for by the latest run.
        done: of them, committed.
        failed: shards that the latest run gave up.
        images: rows committed.
        unscored: of them, error rows.
        queries: images that the model was asked about, as far as known.
        written_s: seconds since the manifest was last written.
        seconds_per_shard: of a worker, by the shards whose time is known; None where none is.
        images_per_second: of one worker; None likewise.
        left_s: seconds of one worker for the shards that are left; None likewise.
        partial: why the latest run left shards undone that it could have done.
        error: why the manifest cannot be read.
    """

    folder: str
    model: str = ""
    dataset: str = ""
    evaluation: str = ""
    key: str = ""
    shards: int = 0
    done: int = 0
    failed: int = 0
    images: int = 0
    unscored: int = 0
    queries: int = 0
    written_s: float = 0.0
    seconds_per_shard: float | None = None
    images_per_second: float | None = None
    left_s: float | None = None
    partial: str = ""
    error: str = ""

    @property
    def left(self) -> int:
        """Shards asked for that are not there."""
        return self.shards - self.done


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is in an output folder.

    Attributes:
        out: the folder, as people name it.
        now: when it was looked at, in seconds of the epoch.
        drivers: the signs of drivers, the latest first.
        measurements: one for each manifest.
    """

    out: str
    now: float
    drivers: tuple[Sign, ...]
    measurements: tuple[Progress, ...]

    @property
    def alive(self) -> tuple[Sign, ...]:
        """The drivers at work."""
        return tuple(sign for sign in self.drivers if sign.alive(self.now))

    @property
    def expected_s(self) -> float | None:
        """Seconds until all is done, with the workers that are at work; None where unknown.

        Of measurements that some driver at work computes: the others wait for someone to start one.
        """
        keys = {key for sign in self.alive for key in sign.measurements}
        busy = sum(sign.busy for sign in self.alive)
        lefts = [one.left_s for one in self.measurements if one.key in keys and one.left]
        if not busy or any(left is None for left in lefts):
            return None
        return sum(left for left in lefts if left is not None) / busy

    @property
    def exit_code(self) -> int:
        """0: complete, or a driver is at work on it. 4: a query budget is spent. 3: anything else.

        That is shards that failed, a damaged manifest, or shards that are left with no driver.
        """
        if any(one.failed or one.error for one in self.measurements):
            return 3
        if any(one.partial for one in self.measurements):
            return 4
        return 3 if any(one.left for one in self.measurements) and not self.alive else 0

    def as_json(self) -> dict[str, Any]:
        """Return everything known, as JSON values."""
        return {
            "out": self.out,
            "complete": all(not one.left and not one.error for one in self.measurements),
            "expected_s": _rounded(self.expected_s),
            "drivers": [
                {
                    "alive": sign.alive(self.now),
                    "state": sign.state,
                    "run": sign.run,
                    "host": sign.host,
                    "pid": sign.pid,
                    "silent_s": _rounded(self.now - sign.beat),
                    "busy": sign.busy,
                    "error": sign.error,
                }
                for sign in self.drivers
            ],
            "measurements": [_as_json(one) for one in self.measurements],
        }

    def as_text(self) -> str:
        """Return it as lines for a terminal."""
        lines = [self.out, *map(self._driver, self.drivers[:3])]
        if not self.drivers:
            lines.append("driver: no sign of any")
        head = ("shards", "failed", "unscored", "queries", "images/s a worker", "left", "written")
        rows: list[tuple[str, ...]] = [("model", "evaluation", *head)]
        rows += [_row(one) for one in self.measurements]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = [
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [f"{one.folder}: {one.error}" for one in self.measurements if one.error]
        lines += [f"{one.model}: {one.partial}" for one in self.measurements if one.partial]
        done = sum(one.done for one in self.measurements)
        shards = sum(one.shards for one in self.measurements)
        end = ""
        if done < shards:
            expected = self.expected_s
            end = (
                ", the end is not known yet"
                if expected is None
                else (f", about {_span(expected)} left")
            )
            if not self.alive:
                end = ", and no driver is at work: run the same command again to go on"
        lines.append(f"{done:,} of {shards:,} shards{end}")
        return "\n".join(lines)

    def _driver(self, sign: Sign) -> str:
        where = f"{sign.host}, process {sign.pid}, run of {sign.run[:19]}"
        ago = _span(max(0.0, self.now - sign.beat))
        if sign.alive(self.now):
            return f"driver: at work on {where}, {sign.busy} shards in flight {ago} ago"
        if sign.state == "running":
            return f"driver: dead ({where}), last sign {ago} ago"
        why = f": {sign.error}" if sign.error else ""
        return f"driver: {sign.state} {ago} ago ({where}){why}"


def look(out: Path, shown: str | None = None) -> Status:
    """Return what is in `out`; `shown` is what to call it.

    Raises:
        InputError: it holds no results.
    """
    folders = find_manifests(out)
    drivers = tuple(signs(out))
    if not folders:
        raise InputError(
            f"{shown or out} holds no results; expected a folder that raybench score, attack or "
            "refresh writes" + (", and its driver has not come that far" if drivers else "")
        )
    now = time.time()
    return Status(
        out=shown or str(out),
        now=now,
        drivers=drivers,
        measurements=tuple(_progress(out, folder, now) for folder in folders),
    )


def _progress(out: Path, folder: Path, now: float) -> Progress:
    name = str(folder.relative_to(out))
    try:
        written = now - (folder / MANIFEST).stat().st_mtime
        manifest = read_manifest(folder)
        facts = manifest.measurement
        model, dataset = str(facts["model"]["name"]), str(facts["dataset"]["name"])
        evaluation, key = str(facts["evaluation"]), str(facts["key"])
    except (OSError, StoreError, KeyError, TypeError) as error:
        return Progress(folder=name, error=str(error) or type(error).__name__)
    parts = manifest.parts.values()
    timed = [part for part in parts if part.get("seconds")]
    seconds = sum(part["seconds"] for part in timed)
    each = seconds / len(timed) if timed else None
    left = len(manifest.owed)
    shards = len(manifest.asked)
    return Progress(
        folder=name,
        model=model,
        dataset=dataset,
        evaluation=evaluation,
        key=key[:16],
        shards=shards,
        done=shards - left,
        failed=_failed(manifest),
        images=sum(part["rows"] for part in parts),
        unscored=sum(part["errors"] for part in parts),
        queries=sum(part.get("queries") or 0 for part in parts),
        written_s=max(0.0, written),
        seconds_per_shard=each,
        images_per_second=sum(part["rows"] for part in timed) / seconds if timed else None,
        left_s=0.0 if not left else None if each is None else left * each,
        partial=manifest.partial,
    )


def _failed(manifest: Manifest) -> int:
    """Return the shards that the latest run gave up and that nobody has computed since."""
    owed = {str(shard.index) for shard in manifest.owed}
    return len(owed & manifest.failures.keys())


def _row(one: Progress) -> tuple[str, ...]:
    return (
        one.model or "?",
        one.evaluation.partition("?")[0] or "damaged",
        f"{one.done:,}/{one.shards:,}",
        f"{one.failed:,}",
        f"{one.unscored:,}",
        f"{one.queries:,}",
        "" if one.images_per_second is None else f"{one.images_per_second:,.3g}",
        "done" if not one.left else "?" if one.left_s is None else _span(one.left_s),
        f"{_span(one.written_s)} ago",
    )


def _as_json(one: Progress) -> dict[str, Any]:
    names: Sequence[str] = Progress.__dataclass_fields__.keys()  # type: ignore[assignment]
    facts = {name: getattr(one, name) for name in names}
    return {
        name: _rounded(value) if isinstance(value, float) else value
        for name, value in facts.items()
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _span(seconds: float) -> str:
    """Return a span of time as people say it, in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"
