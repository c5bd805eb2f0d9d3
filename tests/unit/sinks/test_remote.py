"""Results in an object store, against a real S3 server on loopback."""

import io
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest
from s3_server import make_bucket, put, refusing_server, s3_server, silent_server, use
from toy import ToyDataset, linear, toy_model

from raybench.core.errors import InputError, StoreError
from raybench.core.mirrors import local_name
from raybench.core.objects import read_address
from raybench.core.plan import Measurement, cut_shards, part_name
from raybench.evaluations.readings import parse_reading
from raybench.sinks import mirror, remote
from raybench.sinks.cuts import open_manifest, settle
from raybench.sinks.mirror import fetch, mirrored, pull, push_leaderboard, ready_to_write, store_of
from raybench.sinks.parts import commit_part
from raybench.sinks.remote import (
    Listed,
    MissingError,
    Store,
    check_readable,
    check_writable,
    find_part,
    open_store,
    put_part,
)
from raybench.sinks.store import MANIFEST, load_rows, read_manifest, save_manifest, verify

ROWS = pa.RecordBatch.from_pydict({"sample_id": ["a", "b"], "status": ["ok", "ok"]})


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def address(
    server: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The address of an empty place in a bucket of this test's own."""
    use(monkeypatch, server)
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "machine"))
    bucket = f"bucket-{abs(hash(request.node.nodeid))}"
    make_bucket(server, bucket)
    return f"s3://{bucket}/runs/1"


@pytest.fixture
def store(address: str) -> Store:
    return open_store(address)


def test_objects_are_written_listed_read_and_removed(store: Store) -> None:
    assert store.listing() == {}
    with pytest.raises(MissingError, match=r"runs/1: a/b.txt cannot be read: it is not there"):
        store.read("a/b.txt")
    store.write("a/b.txt", b"old")
    store.write("a/b.txt", b"new one")
    store.write("c.gz", b"not compressed")
    found = store.listing()
    assert {name: facts.size for name, facts in found.items()} == {"a/b.txt": 7, "c.gz": 14}
    assert abs(found["a/b.txt"].mtime_ns / 1e9 - time.time()) < 60
    assert list(store.listing("a")) == ["a/b.txt"]
    assert store.read("a/b.txt") == b"new one"
    assert store.read("c.gz") == b"not compressed"
    store.delete(["a/b.txt", "a/b.txt", "never/there"])
    assert list(store.listing()) == ["c.gz"]


@pytest.mark.parametrize(
    "key", ["rows/../../evil", "/evil", "rows//evil", "rows/a\\..\\evil", "./evil"]
)
def test_a_name_that_leads_out_is_refused_and_nothing_is_fetched(
    store: Store, server: str, key: str, tmp_path: Path
) -> None:
    """The key is in the store under our prefix; whoever put it there may mean harm."""
    with store.filesystem.open_output_stream(f"{store.root}/rows/ok") as stream:
        stream.write(b"x")
    listed = store.filesystem.get_file_info(f"{store.root}/rows/ok")

    class Hostile:
        def get_file_info(self, _: object) -> list[object]:
            return [_Info(f"{store.root}/{key}", listed)]

    false = replace(store, filesystem=Hostile())
    with pytest.raises(StoreError, match="leads out of its folder"):
        false.listing()


class _Info:
    def __init__(self, path: str, like: object) -> None:
        self.path = path
        for name in ("type", "size", "mtime_ns"):
            setattr(self, name, getattr(like, name))


def test_real_traversal_keys_write_nothing_outside_the_mirror(
    address: str, server: str, tmp_path: Path
) -> None:
    bucket = read_address(address).bucket
    for key in ("rows/a/b/c/d/_manifest.json", "rows/../../../../evil.txt"):
        put(server, f"{bucket}/runs/1/{key}", b"{}")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"evil.txt'.*remove it"):
        pull(local_name(address))
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in after - before} <= {".raybench-store.json", ".lock"}


def test_an_object_of_a_size_that_nothing_of_ours_has_is_not_read(
    address: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("labels/x.parquet", b"12345")
    store.write("rows/a/b/c/d/_manifest.json", b"{}")
    monkeypatch.setattr(mirror, "_MOST_BYTES", 4)
    with pytest.raises(StoreError, match=r"labels/x.parquet is of 5 bytes.*remove it"):
        pull(local_name(address))
    assert not (local_name(address) / "labels" / "x.parquet").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("AWS Error UNKNOWN (HTTP status 301) during HeadBucket", "in another region"),
        ("AWS Error NETWORK_CONNECTION: Failed to connect to 127.0.0.1 port 3010", "not answer"),
        ("AWS Error NO_SUCH_BUCKET during PutObject", "there is no bucket 'bucket'"),
        ("google::cloud::Status(PERMISSION_DENIED: 403)", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("something new", "check the address and the credentials"),
    ],
)
def test_an_error_comes_with_what_mends_it(text: str, says: str) -> None:
    scheme = "gs" if "google" in text else "s3"
    assert says in remote.hint(read_address(f"{scheme}://bucket/x"), OSError(text))


def test_a_place_that_can_be_written_is_left_as_it_was(store: Store, address: str) -> None:
    check_writable(read_address(address))
    check_readable(read_address(address))
    assert store.listing() == {}


@pytest.mark.parametrize("check", [check_writable, check_readable])
def test_what_is_wrong_with_a_place_is_said_with_what_mends_it(
    address: str, monkeypatch: pytest.MonkeyPatch, check: object
) -> None:
    assert callable(check)
    with pytest.raises(InputError, match=r"s3://no-such-bucket/x: .*there is no bucket 'no-such"):
        check(read_address("s3://no-such-bucket/x"))
    with refusing_server() as url:
        use(monkeypatch, url)
        with pytest.raises(InputError, match="credentials of this environment are absent") as said:
            check(read_address(address))
        assert "AWS_ACCESS_KEY_ID" in str(said.value)
        assert "test-secret" not in str(said.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9 does not answer.*AWS_ENDPOINT_URL_S3"):
        check(read_address(address))


def test_a_store_that_keeps_silent_is_given_up_within_seconds(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PROBE_S", 1.0)
    with silent_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        began = time.monotonic()
        with pytest.raises(InputError, match="does not answer as it should"):
            check_writable(read_address(address))
        assert time.monotonic() - began < 10


def test_a_store_that_can_only_be_read_is_told_before_any_work(
    address: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refusing_server(server) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        check_readable(read_address(address))
        with pytest.raises(InputError, match=r"results cannot be written there.*ACCESS_DENIED"):
            ready_to_write(local_name(address))


def test_two_runs_that_look_at_one_moment_do_not_trip_each_other(
    store: Store, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one removes its probe between our writing and our reading."""
    looked: list[str] = []

    class Between:
        def __getattr__(self, name: str) -> object:
            return getattr(store.filesystem, name)

        def open_input_stream(self, path: str, **options: object) -> object:
            if not looked:
                looked.append(path)
                check_writable(read_address(address))
            return store.filesystem.open_input_stream(path, **options)

    monkeypatch.setattr(remote, "_probe", lambda _: (Between(), store.root))
    check_writable(read_address(address))
    assert len(looked) == 1
    assert store.listing() == {}


def test_who_may_use_this_prefix_alone_may_not_ask_for_the_bucket(
    store: Store, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Limited:
        def __init__(self, *, lists: bool) -> None:
            self.lists = lists

        def get_file_info(self, asked: object) -> object:
            if isinstance(asked, str) or not self.lists:
                raise OSError("AWS Error ACCESS_DENIED during HeadBucket operation: No response")
            return store.filesystem.get_file_info(asked)

    monkeypatch.setattr(remote, "_probe", lambda _: (Limited(lists=True), store.root))
    check_readable(read_address(address))
    # What is absent is forbidden to it, too: enough for reading, not for workers.
    with pytest.raises(InputError, match="may not do this: it takes listing"):
        check_writable(read_address(address))
    monkeypatch.setattr(remote, "_probe", lambda _: (Limited(lists=False), store.root))
    with pytest.raises(InputError, match="may not do this: it takes listing"):
        check_readable(read_address(address))


def test_a_failure_that_may_pass_is_tried_again_and_a_refusal_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)

    class Failing:
        def __init__(self, times: int, text: str) -> None:
            self.left, self.text, self.calls = times, text, 0

        def open_output_stream(self, *values: object, **options: object) -> object:
            self.calls += 1
            if self.left:
                self.left -= 1
                raise OSError(self.text)
            return store.filesystem.open_output_stream(*values, **options)

    passing = Failing(3, "AWS Error SLOW_DOWN during PutObject")
    replace(store, filesystem=passing).write("x", b"1", patience_s=60)
    assert (passing.calls, store.read("x")) == (4, b"1")
    for_ever = Failing(10**6, "AWS Error NETWORK_CONNECTION during PutObject")
    with pytest.raises(StoreError, match="x cannot be written"):
        replace(store, filesystem=for_ever).write("x", b"1", patience_s=0.2)
    refused = Failing(1, "AWS Error ACCESS_DENIED during PutObject")
    with pytest.raises(StoreError, match="credentials"):
        replace(store, filesystem=refused).write("x", b"2", patience_s=60)
    assert refused.calls == 1


# Parts.


def test_a_part_is_the_bytes_of_a_local_one(store: Store, tmp_path: Path) -> None:
    local = commit_part(tmp_path, "part-000000-0000000000000000.parquet", ROWS, {"shard": 0})
    part = put_part(store, f"rows/{local.file}", ROWS, {"shard": 0})
    assert part == local
    assert store.read(f"rows/{local.file}") == (tmp_path / local.file).read_bytes()
    assert find_part(store, f"rows/{local.file}") == local
    assert find_part(store, "rows/part-000001-0000000000000000.parquet") is None


def test_the_first_part_stays_and_a_damaged_one_is_written_over(store: Store) -> None:
    name = "rows/part-000000-0000000000000000.parquet"
    first = put_part(store, name, ROWS, {"shard": 0})
    other = pa.RecordBatch.from_pydict({"sample_id": ["a", "b"], "status": ["ok", "error"]})
    assert put_part(store, name, other, {"shard": 0}) == first
    content = store.read(name)
    store.write(name, content[:-20])
    assert find_part(store, name) is None
    second = put_part(store, name, other, {"shard": 0})
    assert (second.errors, second.sha256 == first.sha256) == (1, False)
    assert find_part(store, name) == second


class Garbling:
    """A file system that keeps more than it was given, as servers without trailers do."""

    def __init__(self, really: object) -> None:
        self.really = really

    def __getattr__(self, name: str) -> object:
        return getattr(self.really, name)

    def open_input_stream(self, path: str, **_: object) -> io.BytesIO:
        with self.really.open_input_stream(path, compression=None) as stream:  # type: ignore[attr-defined]
            return io.BytesIO(b"5\r\n" + stream.read() + b"\r\nx-amz-checksum-crc64nvme:M3=\r\n")


def test_a_server_that_gives_back_other_bytes_is_found_out(
    store: Store, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = replace(store, filesystem=Garbling(store.filesystem))
    with pytest.raises(StoreError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        put_part(false, "rows/part-000000-0000000000000000.parquet", ROWS, {})
    monkeypatch.setattr(remote, "_probe", lambda _: (false.filesystem, store.root))
    with pytest.raises(InputError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        check_writable(read_address(address))
    assert ".raybench-write-probe" not in store.listing()


# Measurements in a mirror.


@pytest.fixture
def measurement() -> Measurement:
    data = ToyDataset(12)
    reading = parse_reading("grid", samples=64, shape=data.info.shape)
    return Measurement(
        model=toy_model(linear()).info, dataset=data.info, evaluation=reading, seed=0
    )


SIZE = 4


def shards(measurement: Measurement) -> list[tuple[str, pa.RecordBatch]]:
    """Return the part name of every shard and rows for it."""
    ids = ToyDataset(12).ids
    return [
        (
            part_name(measurement.key, shard),
            pa.RecordBatch.from_pydict(
                {"sample_id": list(shard.ids), "status": ["ok"] * len(shard.ids)}
            ),
        )
        for shard in cut_shards(ids, SIZE)
    ]


def stored(
    address: str, measurement: Measurement, listed: int | None = None
) -> tuple[Path, list[str]]:
    """Put every part into the store, and a manifest that lists the first `listed` of them."""
    folder = local_name(address) / measurement.folder
    manifest, _ = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=True)
    store = open_store(address)
    parts = {}
    for name, rows in shards(measurement):
        metadata: dict[str, object] = {"measurement": measurement.describe()}
        info = put_part(store, f"{measurement.folder}/{name}", rows, metadata)
        parts[name] = asdict(info) | {"queries": 1, "seconds": 1.0}
    names = list(parts)
    kept = {name: parts[name] for name in names[: len(names) if listed is None else listed]}
    save_manifest(folder, replace(manifest, parts=kept))
    return folder, names


def move(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> Path:
    """Go to a machine that has never seen the store, and return its mirror."""
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / f"machine-{time.monotonic_ns()}"))
    return local_name(address)


def test_a_manifest_is_in_the_store_once_it_is_saved(
    address: str, measurement: Measurement
) -> None:
    folder, _ = stored(address, measurement)
    content = open_store(address).read(f"{measurement.folder}/{MANIFEST}")
    assert content == (folder / MANIFEST).read_bytes()


def test_another_machine_reads_rows_as_they_are_wanted(
    address: str,
    measurement: Measurement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, names = stored(address, measurement)
    out = move(monkeypatch, tmp_path, address)
    pull(out)
    folder = out / measurement.folder
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
    rows = load_rows(folder, read_manifest(folder))
    assert rows.column("sample_id").to_pylist() == list(ToyDataset(12).ids)
    before = {path: path.stat().st_ino for path in folder.glob("part-*")}
    assert sorted(path.name for path in before) == names
    pull(out, parts=True)
    assert {path: path.stat().st_ino for path in folder.glob("part-*")} == before
    pull(out, parts=True, anew=True)
    assert {path: path.stat().st_ino for path in folder.glob("part-*")} != before


def test_a_part_that_no_manifest_lists_is_adopted_on_another_machine(
    address: str,
    measurement: Measurement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, names = stored(address, measurement, listed=1)
    folder = move(monkeypatch, tmp_path, address) / measurement.folder
    manifest, notes = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=True)
    assert (sorted(manifest.parts), notes) == (names, [])
    assert manifest.parts[names[0]]["queries"] == 1
    assert manifest.parts[names[1]]["queries"] is None
    assert verify(folder, manifest) == []


@pytest.mark.parametrize("harm", ["gone", "cut", "bytes", "foreign"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_listed_part_that_is_gone_or_damaged_is_struck_out_here_and_there(
    harm: str,
    elsewhere: bool,
    address: str,
    measurement: Measurement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, names = stored(address, measurement)
    load_rows(folder, read_manifest(folder))
    store, victim = open_store(address), f"{measurement.folder}/{names[1]}"
    content = store.read(victim)
    # A store's times are whole seconds: a change of the same size within one would not show here.
    time.sleep(1.1 if harm == "bytes" else 0)
    if harm == "gone":
        store.delete([victim])
    elif harm == "cut":
        store.write(victim, content[: len(content) // 2])
    elif harm == "bytes":
        store.write(victim, content[:100] + bytes([content[100] ^ 1]) + content[101:])
    else:
        store.write(victim, remote.encode_part(shards(measurement)[0][1], {}))
    if elsewhere:
        folder = move(monkeypatch, tmp_path, address) / measurement.folder
    manifest, notes = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=True)
    assert sorted(manifest.parts) == [names[0], *names[2:]]
    assert [note for note in notes if names[1] in note] == notes != []
    assert victim not in store.listing()
    assert not (folder / names[1]).exists()


def test_a_damaged_mirror_is_mended_from_the_store(address: str, measurement: Measurement) -> None:
    folder, names = stored(address, measurement)
    load_rows(folder, read_manifest(folder))
    path, facts = folder / names[0], (folder / names[0]).stat()
    content = path.read_bytes()
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert load_rows(folder, read_manifest(folder)).num_rows == len(ToyDataset(12).ids)
    assert path.read_bytes() == content
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    manifest, notes = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=True)
    assert (len(manifest.parts), notes) == (len(names), [])


def test_what_the_store_has_lost_is_no_result_because_a_mirror_has_it(
    address: str, measurement: Measurement
) -> None:
    folder, _ = stored(address, measurement)
    load_rows(folder, read_manifest(folder))
    store = open_store(address)
    store.delete(list(store.listing()))
    manifest, _ = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=True)
    assert manifest.parts == {}
    assert list(folder.glob("part-*")) == []


def test_starting_anew_removes_parts_from_the_store_too(
    address: str,
    measurement: Measurement,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored(address, measurement)
    folder = move(monkeypatch, tmp_path, address) / measurement.folder
    manifest, _ = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=False)
    assert manifest.parts == {}
    assert list(open_store(address).listing()) == [f"{measurement.folder}/{MANIFEST}"]


def test_two_writers_of_one_part_leave_a_manifest_of_what_is_there(
    address: str, measurement: Measurement
) -> None:
    """Both looked before either wrote; the receipt in hand is of bytes that are there no more."""
    folder, names = stored(address, measurement)
    manifest = read_manifest(folder)
    assert settle(folder, manifest) == (manifest, [])
    name, rows = shards(measurement)[1]
    other = rows.append_column("extra", pa.array([0.5] * len(rows)))
    content = remote.encode_part(other, {"measurement": measurement.describe()})
    store = open_store(address)
    store.write(f"{measurement.folder}/{name}", content)
    settled, notes = settle(folder, manifest)
    assert [note for note in notes if "written twice" in note] == notes != []
    assert settled.parts[name]["size"] == len(content)
    assert settled.parts[name]["queries"] == manifest.parts[name]["queries"]
    assert {n: settled.parts[n] for n in names if n != name} == {
        n: manifest.parts[n] for n in names if n != name
    }
    assert verify(folder, settled)[0].problem.startswith("its schema differs")  # it is really read
    store.write(f"{measurement.folder}/{name}", b"no part")
    settled, notes = settle(folder, manifest)
    assert name not in settled.parts
    assert "to be computed again" in notes[0]


def test_the_bytes_of_a_manifest_are_compared_whenever_rows_are_read(
    address: str, measurement: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, names = stored(address, measurement)
    other = shards(measurement)[0][1].append_column("extra", pa.array([0.5] * SIZE))
    store = open_store(address)
    store.write(f"{measurement.folder}/{names[0]}", remote.encode_part(other, {}))
    out = move(monkeypatch, tmp_path, address)
    pull(out)
    folder = out / measurement.folder
    with pytest.raises(StoreError, match="its bytes differ from the manifest"):
        load_rows(folder, read_manifest(folder))


def test_a_store_that_fails_keeps_the_manifest_in_the_mirror(
    address: str, measurement: Measurement, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = stored(address, measurement, listed=1)
    manifest = read_manifest(folder)

    def fail(*_: object, **__: object) -> None:
        raise StoreError("the store is away")

    monkeypatch.setattr(Store, "write", fail)
    with pytest.raises(StoreError, match="away"):
        save_manifest(folder, replace(manifest, parts={}))
    assert read_manifest(folder).parts == {}


def test_an_older_manifest_never_replaces_a_newer_one_in_a_shared_mirror(
    address: str, measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process saves while another looks: what is fetched is what was saved, or newer."""
    folder, _ = stored(address, measurement)
    manifest, out = read_manifest(folder), local_name(address)
    really, begun = mirror.push, threading.Event()

    def slowly(path: Path) -> None:
        begun.set()
        time.sleep(0.3)
        really(path)

    monkeypatch.setattr("raybench.sinks.store.push", slowly)
    saver = threading.Thread(target=save_manifest, args=(folder, replace(manifest, run="newer")))
    saver.start()
    assert begun.wait(10)
    pull(out)
    saver.join()
    assert read_manifest(folder).run == "newer"


def test_what_comes_into_the_mirror_after_the_listing_is_left_alone(
    address: str, measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process with this mirror is ahead of us: it has fetched parts we have not seen."""
    folder, names = stored(address, measurement)
    really = Store.listing
    content = {name: open_store(address).read(f"{measurement.folder}/{name}") for name in names}

    def listing(store: Store, below: str = "") -> dict[str, Listed]:
        found = really(store, below)
        (folder / names[0]).write_bytes(content[names[0]])
        (folder / "part-000009-0000000000000000.parquet").write_bytes(b"newer than the listing")
        return found

    monkeypatch.setattr(Store, "listing", listing)
    pull(local_name(address))
    assert sorted(path.name for path in folder.glob("part-*")) == [
        names[0],
        "part-000009-0000000000000000.parquet",
    ]


def test_a_part_that_is_absent_from_the_mirror_alone_stays_in_the_store(
    address: str, measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = stored(address, measurement)
    monkeypatch.setattr(
        "raybench.sinks.cuts.fetch", lambda *_: (folder / names[1]).unlink(missing_ok=True)
    )
    manifest, notes = open_manifest(folder, measurement, ToyDataset(12).ids, SIZE, resume=True)
    assert names[1] not in manifest.parts
    assert "has gone" in notes[0]
    assert f"{measurement.folder}/{names[1]}" in open_store(address).listing()


def test_a_run_that_settles_keeps_its_own_manifest(address: str, measurement: Measurement) -> None:
    """Another run into the same place has saved one since, of the little it has so far."""
    folder, _ = stored(address, measurement)
    ours = read_manifest(folder)
    name = f"{measurement.folder}/{MANIFEST}"
    save_manifest(folder, replace(ours, parts={}))
    theirs = open_store(address).read(name)
    save_manifest(folder, ours)
    open_store(address).write(name, theirs)
    assert settle(folder, ours) == (ours, [])
    assert read_manifest(folder) == ours


def test_a_lock_that_a_stopped_process_holds_is_not_waited_for_for_ever(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = local_name(address)
    monkeypatch.setattr(mirror, "_LOCK_S", 0.1)
    with (
        mirror.locked(out),
        pytest.raises(StoreError, match=r"another process has held .*\.lock .*is it stopped"),
        mirror.locked(out, shared=True),
    ):
        pytest.fail("taken twice")
    with mirror.locked(out, shared=True), mirror.locked(out, shared=True):
        pass


def test_a_part_takes_the_requests_that_the_documents_count(
    address: str, measurement: Measurement, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/object-stores.md: a PUT, four looks and two reads."""
    seen: list[str] = []
    with refusing_server(server, lets=("GET", "HEAD", "PUT"), seen=seen) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # a length, too
        folder = local_name(address) / measurement.folder
        store, (name, rows) = open_store(str(store_of(folder).address)), shards(measurement)[0]  # type: ignore[union-attr]
        assert find_part(store, f"{measurement.folder}/{name}") is None
        info = put_part(store, f"{measurement.folder}/{name}", rows, {})
        fetch(folder, {name: info.sha256})
    assert (folder / name).exists()
    asked = [line.split(" ")[0] for line in seen if name in line]
    assert sorted(asked) == ["GET", "GET", "HEAD", "HEAD", "HEAD", "HEAD", "PUT"]


def test_small_files_follow_the_store_and_what_is_this_machines_own_stays(
    address: str, measurement: Measurement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(address, measurement)
    out = local_name(address)
    for name in ("state.json", "known.json", "mlflow.json", ".lock", "model_info/a.json"):
        path = out / "leaderboard" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (out / "mlflow.db").write_text("database")
    with mirror.reports_sent(out, pytest.fail):
        (out / "reports").mkdir()
        (out / "reports" / "scores.json").write_text("{}")
    push_leaderboard(out)
    store = open_store(address)
    assert {name for name in store.listing() if not name.startswith("rows/")} == {
        "leaderboard/state.json",
        "leaderboard/model_info/a.json",
        "reports/scores.json",
    }
    store.delete(["leaderboard/model_info/a.json"])
    pull(out)
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert "leaderboard/model_info/a.json" not in left
    assert {"leaderboard/known.json", "leaderboard/mlflow.json", "mlflow.db"} <= left
    there = move(monkeypatch, tmp_path, address)
    pull(there)
    assert [path.name for path in (there / "leaderboard").iterdir()] == ["state.json"]


def test_a_page_made_anew_leaves_nothing_of_the_old_one(
    address: str, measurement: Measurement
) -> None:
    stored(address, measurement)
    out = local_name(address)
    with mirror.reports_sent(out, pytest.fail):
        for name in ("index.html", "cards/old.md", "cards/same.md"):
            path = out / "report" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    with mirror.reports_sent(out, pytest.fail):
        (out / "report" / "cards" / "old.md").unlink()
        (out / "report" / "index.html").write_text("newer")
    assert sorted(open_store(address).listing("report")) == [
        "report/cards/same.md",
        "report/index.html",
    ]


def test_an_old_page_in_a_mirror_never_replaces_a_newer_one(
    address: str, measurement: Measurement
) -> None:
    """Another machine has made the page since; here only the tables are made again."""
    stored(address, measurement)
    out, store = local_name(address), open_store(address)
    with mirror.reports_sent(out, pytest.fail):
        for name in ("report/index.html", "reports/a/scores.json", "reports/b/scores.json"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("ours, old")
    for name in ("report/index.html", "reports/a/scores.json", "reports/b/scores.json"):
        store.write(name, b"theirs")
    with mirrored(Path(address), pytest.fail, reports=True):
        (out / "reports" / "b" / "scores.json").write_text("ours, new")
    assert store.read("report/index.html") == b"theirs"
    assert store.read("reports/a/scores.json") == b"theirs"
    assert store.read("reports/b/scores.json") == b"ours, new"


def test_looking_at_results_takes_no_right_to_write(
    address: str, measurement: Measurement, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(address, measurement)
    said: list[str] = []
    with refusing_server(server) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        with mirrored(Path(address), said.append, reports=True) as out:
            (out / "reports").mkdir()
            (out / "reports" / "scores.json").write_text("{}")
            folder = out / measurement.folder
            assert load_rows(folder, read_manifest(folder)).num_rows == len(ToyDataset(12).ids)
    assert len(said) == 1
    assert str(out) in said[0]
    assert "ACCESS_DENIED" in said[0]


def test_an_empty_place_holds_no_results(address: str) -> None:
    with pytest.raises(InputError, match=r"runs/1 holds no results; expected a place"):
        pull(local_name(address))
    pull(local_name(address), empty=True)


def test_nothing_is_asked_of_a_store_for_local_folders(tmp_path: Path) -> None:
    assert store_of(tmp_path) is None
    assert ready_to_write(tmp_path) == ""
    pull(tmp_path)
    fetch(tmp_path, {"part-000000-0000000000000000.parquet": "0"})
    with mirrored(tmp_path, pytest.fail, reports=True) as out:
        assert out == tmp_path
    assert list(tmp_path.iterdir()) == []
