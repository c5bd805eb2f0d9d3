"""Opening a measurement's folder to go on with it: one manifest, one cut of its images into shards.

    manifest, surprises = open_manifest(folder, measurement, dataset.ids, 16, resume=True)

Stored parts keep the shard size they were cut by, whatever a later run asks for. Plain readers open
folders whole, and two cuts in one would show them every row twice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from raybench.core.errors import StoreError
from raybench.core.plan import Measurement, cut_shards
from raybench.sinks.mirror import fetch, prune, pull_measurement, store_of
from raybench.sinks.parts import hash_file, read_footer
from raybench.sinks.store import (
    MANIFEST,
    Manifest,
    adopt,
    inspect_shard,
    new_manifest,
    parts_in,
    read_manifest,
)

__all__ = ["open_manifest", "settle"]


def open_manifest(
    folder: Path, measurement: Measurement, ids: Sequence[str], shard_size: int, *, resume: bool
) -> tuple[Manifest, list[str]]:
    """Return the manifest of `measurement` brought in line with the disk, and every surprise there.

    Parts of any other cut than the one kept are removed. In a mirror the folder is first brought in
    line with the object store, and what is removed here is then removed there.

    Args:
        folder: the measurement's.
        measurement: the work.
        ids: sample ids of its images, in order.
        shard_size: images in a shard, where nothing is stored.
        resume: keep what is stored; otherwise all of it is removed.

    Raises:
        StoreError: the object store fails.
    """
    listed = pull_measurement(folder, parts=resume)
    notes: list[str] = []
    old: Manifest | None = None
    try:
        old = read_manifest(folder)
    except StoreError as error:
        if resume and (folder / MANIFEST).exists():
            notes.append(f"{error}; the parts beside it are read again")
    if resume and old is not None:
        fetch(folder, {name: part["sha256"] for name, part in old.parts.items()})
    if not resume:
        for path in list(parts_in(folder)):
            path.unlink(missing_ok=True)
    manifest = _as_stored(folder, measurement, tuple(ids), shard_size, old)
    if manifest.shard_size != shard_size:
        notes.append(
            f"keeping shard size {manifest.shard_size} of the stored results; --fresh starts anew"
        )
    if old is not None:
        names = {shard.file for shard in manifest.shards}
        kept = {name: part for name, part in old.parts.items() if resume and name in names}
        manifest = replace(
            manifest,
            parts=kept,
            baseline=old.baseline,
            twins=old.twins,
            run=old.run,
            stop=old.stop if resume else None,
        )
    found = frozenset(path.name for path in parts_in(folder))
    manifest, surprises = adopt(folder, manifest)
    removed = _drop_strangers(folder, manifest)
    if removed:
        notes.append(f"{removed} parts of another shard size are removed")
    # What has been looked at and is not kept. One that is merely absent here is no reason: another
    # process with this mirror may have made way for a newer one.
    prune(folder, listed & (found - set(manifest.parts)) if resume else listed)
    return manifest, [*notes, *surprises]


def settle(folder: Path, manifest: Manifest) -> tuple[Manifest, list[str]]:
    """Return the manifest of a mirrored folder with the facts of what the store holds, and notes.

    Two workers that computed one part at the same moment may both have written it, and where their
    devices round otherwise the receipt says what is there no more. What is there is as good, and is
    read whole before it counts. A part that has gone is struck out. Of any other folder the
    manifest is returned as it is.

    Raises:
        StoreError: the object store fails.
    """
    if store_of(folder) is None:
        return manifest, []
    # Another run into the same place may have saved a manifest since, of what it has so far.
    pull_measurement(folder, parts=True, manifest=False)
    parts, notes = dict(manifest.parts), []
    for shard in manifest.shards:
        known = parts.get(shard.file)
        if known is None:
            continue
        try:
            if hash_file(folder / shard.file) == known["sha256"]:
                continue
            parts[shard.file] = known | asdict(inspect_shard(folder / shard.file, shard))
            notes.append(f"{shard.file} was written twice, with other bytes; the later one counts")
        except StoreError as error:
            del parts[shard.file]
            notes.append(f"{error}; it is to be computed again")
    return replace(manifest, parts=parts), notes


def _as_stored(
    folder: Path,
    measurement: Measurement,
    ids: tuple[str, ...],
    asked: int,
    old: Manifest | None,
) -> Manifest:
    """Return a manifest without parts, of the cut that holds most rows on disk; `asked` if none."""
    stored = {path.name for path in parts_in(folder)}
    manifests: list[Manifest] = []
    for size in _sizes(folder, asked, old):
        if size in {known.shard_size for known in manifests}:
            continue
        cut = new_manifest(measurement, cut_shards(ids, size), size, {})
        manifests.append(cut)
        # As a rule the first is right, and no footer is read.
        if stored <= {shard.file for shard in cut.shards}:
            return cut
    return max(
        manifests,
        key=lambda cut: sum(shard.rows for shard in cut.shards if shard.file in stored),
    )


def _sizes(folder: Path, asked: int, old: Manifest | None) -> Iterator[int]:
    """Yield the shard sizes that the parts on disk may have been cut by, the likely ones first."""
    yield asked
    if old is not None:
        yield old.shard_size
    for path in sorted(parts_in(folder)):
        try:
            rows = read_footer(path)[1]
        except StoreError:
            continue
        if rows > 0:
            yield rows


def _drop_strangers(folder: Path, manifest: Manifest) -> int:
    """Remove the parts that are none of the manifest's shards, and return how many there were."""
    names = {shard.file for shard in manifest.shards}
    strangers = [path for path in parts_in(folder) if path.name not in names]
    for path in strangers:
        path.unlink(missing_ok=True)
    return len(strangers)
