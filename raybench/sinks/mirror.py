"""What travels between an object store and its mirror, the local folder that stands for it.

    pull(out)                    # manifests, labels, records; parts are fetched when they are read
    push(out / "labels/x.parquet")
    with reports_sent(out, print): ...

Every function takes a local path and does nothing where it lies in no mirror, so that the callers
need not ask. The store is the record: what it does not hold is removed from the mirror, what both
hold is fetched where size or time differ, and a part also where its bytes are not those of its
manifest. Manifests are always fetched.

A mirror may serve several processes. Whoever saves a manifest holds a lock until it is in the
store, and whoever fetches manifests waits for that: an older one never replaces a newer one. What
comes into the mirror after the store was listed is newer than the listing, and is left alone.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO

from raybench.core.errors import InputError, StoreError
from raybench.core.mirrors import address_of, local_name, mirror_root
from raybench.sinks.parts import hash_file
from raybench.sinks.remote import (
    Listed,
    MissingError,
    Store,
    check_readable,
    check_writable,
    in_parallel,
    open_store,
)

__all__ = [
    "fetch",
    "locked",
    "mirrored",
    "prune",
    "pull",
    "pull_measurement",
    "push",
    "push_leaderboard",
    "ready_to_write",
    "reports_sent",
    "store_of",
]

_PART = "part-"
_MANIFEST = "_manifest.json"
_ROWS = "rows"
# Small files that later commands read; with what is made of them, all that a store holds.
_KEPT = ("labels", "leaderboard", "sequences", "drivers")
_PAGE = "report"
_MADE = (_PAGE, "reports")
_LOCK_S = 300.0
_MOST_BYTES = 2**30
# About this machine: what it has loaded, what its own MLflow has seen.
_OURS = frozenset({"leaderboard/known.json", "leaderboard/mlflow.json"})


def store_of(path: Path) -> Store | None:
    """Return the store whose mirror `path` is or lies in; None for any other path."""
    address = address_of(path)
    return None if address is None else open_store(address)


def ready_to_write(out: Path) -> str:
    """Return the address of the store behind `out`, for workers; "" where `out` is no mirror.

    Endpoint and region are in it, credentials are not. Looks whether results can be written there.

    Raises:
        InputError: they cannot, and why; within seconds.
    """
    address = address_of(out)
    if address is None:
        return ""
    address = address.explicit()
    check_writable(address)
    return str(address)


def pull(out: Path, *, parts: bool = False, anew: bool = False, empty: bool = False) -> None:
    """Bring the mirror `out` in line with its store; reports are left out.

    Args:
        out: the mirror.
        parts: fetch parts too; otherwise only those that have lost their manifest, which say what
            they belong to. The others come when they are read.
        anew: fetch parts whatever the mirror holds, to look at the store's own bytes.
        empty: take a store without results for what it is; otherwise that is an error.

    Raises:
        InputError: the store cannot be used, or holds no results.
        StoreError: it fails.
    """
    store = store_of(out)
    if store is None:
        return
    check_readable(store.address)
    here = _local_facts(_top(out), (_ROWS, *_KEPT))
    listed = store.listing()
    if not empty and not any(name.split("/")[0] in (_ROWS, "leaderboard") for name in listed):
        raise InputError(
            f"{store.address.short} holds no results; expected a place that raybench score, attack "
            "or refresh wrote"
        )
    _match(store, _top(out), here, listed, parts=parts, anew=anew)


@contextmanager
def mirrored(
    folder: Path,
    say: Callable[[str], None],
    *,
    parts: bool = False,
    anew: bool = False,
    reports: bool = False,
) -> Iterator[Path]:
    """Give the local folder of results that `folder` names, in line with its store; see `pull`.

    With `reports`, what is made of the results meanwhile goes to the store, or `say` says that it
    does not: a store that can only be read is no obstacle to looking at it.

    Raises:
        InputError: an address that cannot be used, or holds no results.
        StoreError: the store fails.
    """
    out = local_name(folder)
    pull(out, parts=parts, anew=anew)
    with reports_sent(out, say) if reports else nullcontext():
        yield out


def pull_measurement(folder: Path, *, parts: bool, manifest: bool = True) -> frozenset[str]:
    """Bring a measurement's folder in line with the store, and return the parts there by name.

    Args:
        folder: the measurement's.
        parts: fetch parts too.
        manifest: the store's manifest is the one that counts; otherwise the mirror's stays, where
            it is of the run that asks.

    Raises:
        StoreError: the store fails.
    """
    store = store_of(folder)
    if store is None:
        return frozenset()
    top = _top(folder)
    head = folder.absolute().relative_to(top).as_posix()
    here, listed = _local_facts(top, (head,)), store.listing(head)
    if not manifest:
        here, listed = (
            {name: facts for name, facts in files.items() if _is_part(name)}
            for files in (here, listed)
        )
    _match(store, top, here, listed, parts=parts)
    return frozenset(Path(name).name for name in listed if Path(name).name.startswith(_PART))


def _match(
    store: Store,
    top: Path,
    here: Mapping[str, Listed],
    listed: Mapping[str, Listed],
    *,
    parts: bool,
    anew: bool = False,
) -> None:
    """Make the mirror's files `here`, as they were before the store was `listed`, those of it."""
    wanted = {
        name: facts
        for name, facts in listed.items()
        if _travels(name) and name.split("/")[0] not in _MADE
    }
    lone = _lone_parts(wanted)
    rows = {name: facts for name, facts in wanted.items() if _is_part(name)}
    small = {name: facts for name, facts in wanted.items() if name not in rows}
    with locked(top, shared=True):
        in_parallel(partial(_fetch_one, store, top), list(small.items()))
        for name in here.keys() - wanted.keys():
            (top / name).unlink(missing_ok=True)
    fetched = {name for name in rows if parts or name in lone}
    for name, facts in rows.items():
        # A part that the store has replaced must not be taken for what it was.
        known = here.get(name, facts)
        if name not in fetched and known != facts and _facts(top / name) == known:
            (top / name).unlink(missing_ok=True)
    due = [name for name in fetched if anew or _facts(top / name) != rows[name]]
    in_parallel(partial(_fetch_one, store, top), [(name, rows[name]) for name in sorted(due)])


def fetch(folder: Path, wanted: Mapping[str, str]) -> None:
    """Fetch parts of a measurement that its folder lacks, or holds with other bytes.

    What the store does not hold is absent afterwards.

    Args:
        folder: the measurement's.
        wanted: part file -> SHA-256 of its manifest.

    Raises:
        StoreError: the store fails.
    """
    store = store_of(folder)
    if store is None:
        return
    due = [
        name
        for name, sha256 in wanted.items()
        if not (folder / name).exists() or hash_file(folder / name) != sha256
    ]
    if not due:
        return
    top = _top(folder)
    head = folder.absolute().relative_to(top).as_posix()
    listed = store.listing(head)
    for name in due:
        if f"{head}/{name}" not in listed:
            (folder / name).unlink(missing_ok=True)
    found = [(f"{head}/{name}", listed.get(f"{head}/{name}")) for name in due]
    in_parallel(partial(_fetch_one, store, top), [pair for pair in found if pair[1] is not None])


def prune(folder: Path, listed: frozenset[str]) -> None:
    """Remove from the store the parts `listed` there that the mirror's folder no longer has.

    Raises:
        StoreError: the store refuses.
    """
    store = store_of(folder)
    if store is None:
        return
    head = folder.absolute().relative_to(_top(folder)).as_posix()
    store.delete([f"{head}/{name}" for name in sorted(listed) if not (folder / name).exists()])


def push(path: Path) -> None:
    """Write one file of a mirror to its store.

    Raises:
        StoreError: the store does not take it.
    """
    store = store_of(path)
    if store is not None:
        name = path.absolute().relative_to(_top(path)).as_posix()
        store.write(name, path.read_bytes())


def push_leaderboard(out: Path) -> None:
    """Write what a refresh leaves beside its rows to the store of a mirror, its state last.

    Raises:
        StoreError: the store does not take it.
    """
    store = store_of(out)
    if store is None:
        return
    top = _top(out)
    names = set(_local_facts(top, ("leaderboard",)))
    last = names & {"leaderboard/state.json"}  # it names the others
    for batch in (names - last, last):
        _push_all(store, top, sorted(batch))


@contextmanager
def reports_sent(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Write the tables, figures and page that the block makes to the store of a mirror.

    Older ones in the mirror are left: another machine may have made them anew since. All can be
    made again: where the store does not take them, `say` so, and where they are.
    """
    before = _made(out)
    yield
    made = _made(out)
    fresh = {_unit(name) for name, facts in made.items() if before.get(name) != facts}
    store = store_of(out)
    if store is None or not fresh:
        return
    names = sorted(name for name in made if _unit(name) in fresh)
    try:
        _push_all(store, _top(out), names)
        if _PAGE in fresh:
            # The page is made anew as a whole, its figures and cards with it.
            store.delete(sorted(set(store.listing(_PAGE)) - set(names)))
    except StoreError as error:
        say(f"{error}. The reports are in {out}, everything else in the store")


def _made(out: Path) -> dict[str, Listed]:
    """Return the reports in a mirror; none where `out` is not one."""
    top = mirror_root(out)
    return {} if top is None else _local_facts(top, _MADE)


def _unit(name: str) -> str:
    """Return what is made at once with the file `name`: the page, or one folder of reports."""
    return "/".join(name.split("/")[: 1 if name.startswith(f"{_PAGE}/") else 2])


def _push_all(store: Store, top: Path, names: Sequence[str]) -> None:
    in_parallel(lambda name: store.write(name, (top / name).read_bytes()), names)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of the mirror that `path` lies in; without a mirror there is none to hold.

    Raises:
        StoreError: another process holds it for minutes.
    """
    top = mirror_root(path)
    if top is None:
        yield
        return
    with (top / ".lock").open("ab") as stream:
        _take(stream, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def _take(stream: IO[bytes], kind: int) -> None:
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise StoreError(
                    f"another process has held {stream.name} for {_LOCK_S:.0f} s: is it stopped? "
                    "End it, or give this one another RAYBENCH_CACHE"
                ) from error
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return
        else:
            return


def _top(path: Path) -> Path:
    top = mirror_root(path)
    assert top is not None, f"{path} lies in no mirror"
    return top


def _travels(name: str) -> bool:
    """Whether the object or file `name` is one that mirrors and stores exchange."""
    pieces = name.split("/")
    if any(piece.startswith(".") for piece in pieces) or name in _OURS:
        return False
    if pieces[0] == _ROWS:
        return len(pieces) == 6 and (_is_part(name) or pieces[-1] == _MANIFEST)
    return pieces[0] in (*_KEPT, *_MADE)


def _is_part(name: str) -> bool:
    return name.startswith(f"{_ROWS}/") and name.rpartition("/")[2].startswith(_PART)


def _lone_parts(names: Mapping[str, Listed]) -> set[str]:
    """Return the parts in folders without a manifest."""
    kept = {name.rpartition("/")[0] for name in names if name.endswith(f"/{_MANIFEST}")}
    return {name for name in names if _is_part(name) and name.rpartition("/")[0] not in kept}


def _local_facts(top: Path, below: Sequence[str]) -> dict[str, Listed]:
    """Return the files in these folders of the mirror that travel."""
    found = {}
    with locked(top, shared=True):  # none of them is half on its way to the store
        for path in (path for folder in below for path in (top / folder).rglob("*")):
            name = path.relative_to(top).as_posix()
            if _travels(name) and path.is_file() and (facts := _facts(path)) is not None:
                found[name] = facts
    return found


def _facts(path: Path) -> Listed | None:
    """Return size and time of a file of the mirror; None where it is absent."""
    try:
        known = path.stat()
    except OSError:
        return None
    return Listed(known.st_size, known.st_mtime_ns)


def _fetch_one(store: Store, top: Path, item: tuple[str, Listed]) -> None:
    """Bring one object into the mirror, whole, with its time; one that has just gone is removed."""
    name, facts = item
    path = top / name
    if facts.size > _MOST_BYTES:
        raise StoreError(
            f"{store.address.short}: {name} is of {facts.size:,} bytes, and nothing of raybench's "
            "is so large: remove it"
        )
    try:
        content = store.read(name)
    except MissingError:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        # Not forced to disk: what a power cut takes is fetched again.
        temporary.write_bytes(content)
        os.utime(temporary, ns=(facts.mtime_ns, facts.mtime_ns))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
