"""Whole jobs with results in an object store, against a real S3 server on loopback."""

import contextlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from s3_server import KEYS, make_bucket, refusing_server, s3_server, use
from score_material import (
    REPOSITORY,
    Material,
    command,
    headline,
    make_material,
    part_bytes,
    stored_tables,
)

import raybench
from raybench.cli import main
from raybench.config import ScoreConfig, make_config
from raybench.core.catalog import open_dataset
from raybench.core.mirrors import local_name
from raybench.job import build_job
from raybench.runners import worker
from raybench.runners.worker import WorkerFactory
from raybench.sinks import remote
from raybench.sinks.remote import Store, open_store
from raybench.sinks.store import find_manifests, read_manifest

SHARDS = 24


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return make_material(tmp_path_factory.mktemp("slow"), rounds=60)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all runs here: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str


@dataclass
class Place:
    """A store, and the machine that looks at it: one with a cache folder of its own."""

    address: str
    url: str
    folder: Path
    tracking: str
    monkeypatch: pytest.MonkeyPatch
    machines: int = 0

    def move(self) -> Path:
        """Go to a machine that has seen nothing yet, and return its mirror."""
        self.machines += 1
        cache = self.folder / f"machine-{self.machines}"
        self.monkeypatch.setenv("RAYBENCH_CACHE", str(cache))
        return local_name(self.address)

    def run(self, *arguments: str) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(arguments))
        return Result(code, out.getvalue(), err.getvalue())

    def score(self, material: Material, *more: str) -> Result:
        return self.run(*self.arguments(material, *more))

    def arguments(self, material: Material, *more: str) -> list[str]:
        line = command(material, Path("unused"), "--runner", "local", "--json", *more)[3:]
        line[line.index("unused")] = self.address
        return [*line, "--tracking-uri", self.tracking]

    def options(self, material: Material) -> dict[str, object]:
        return {
            "models": material.models,
            "data": material.data,
            "samples": 64,
            "reading": ["grid"],
            "shard_size": 2,
            "runner": "local",
            "tracking_uri": self.tracking,
            "out": self.address,
        }

    def start(self, material: Material, *more: str) -> subprocess.Popen[str]:
        """Start the run as a process of its own, on a machine of its own."""
        self.machines += 1
        cache = {"RAYBENCH_CACHE": str(self.folder / f"machine-{self.machines}")}
        return subprocess.Popen(
            [sys.executable, "-m", "raybench", *self.arguments(material, *more)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | cache,
        )

    @property
    def store(self) -> Store:
        return open_store(self.address)

    def objects(self, word: str) -> dict[str, bytes]:
        """Return the objects whose name holds `word`."""
        store = self.store
        return {name: store.read(name) for name in sorted(store.listing()) if word in name}

    def parts(self) -> int:
        return sum("/part-" in name for name in self.store.listing())


@pytest.fixture
def place(
    server: str,
    tracking: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Place:
    use(monkeypatch, server)
    bucket = f"bucket-{abs(hash(request.node.nodeid))}"
    make_bucket(server, bucket)
    found = Place(f"s3://{bucket}/runs/1", server, tmp_path, tracking, monkeypatch)
    found.move()
    return found


@pytest.fixture(scope="module")
def local(
    material: Material, tracking: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, bytes], str]:
    """The parts of a run into a folder, and what it printed."""
    out, text = tmp_path_factory.mktemp("local"), io.StringIO()
    arguments = command(material, out, "--runner", "local", "--json", "--quiet")[3:]
    with contextlib.redirect_stdout(text):
        assert main([*arguments, "--tracking-uri", tracking]) == 0
    return part_bytes(out), text.getvalue()


@pytest.fixture(scope="module")
def slow_parts(
    slow: Material, tracking: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The parts of an undisturbed run of the slow models into a folder."""
    out = tmp_path_factory.mktemp("undisturbed")
    with contextlib.redirect_stdout(io.StringIO()):
        line = command(slow, out, "--runner", "local", "--json", "--quiet")[3:]
        assert main([*line, "--tracking-uri", tracking]) == 0
    return part_bytes(out)


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def count_computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of part names that workers of this process go on to compute."""
    computed: list[str] = []

    def put(store: Store, name: str, *values: object) -> object:
        computed.append(name)
        return remote.put_part(store, name, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "put_part", put)
    return computed


def test_a_store_holds_what_a_folder_would_byte_for_byte(
    place: Place, material: Material, local: tuple[dict[str, bytes], str]
) -> None:
    result = place.score(material)
    assert result.code == 0, result.stderr
    assert headline(result.stdout) == headline(local[1])
    assert place.objects("/part-") == local[0]
    mirror = local_name(place.address)
    for folder in find_manifests(mirror):
        manifest = read_manifest(folder)
        assert manifest.complete
        name = f"{folder.relative_to(mirror)}/_manifest.json"
        assert place.store.read(name) == (folder / "_manifest.json").read_bytes()
    names = set(place.store.listing())
    assert any(name.startswith("labels/") for name in names)
    assert any(name.endswith("/fig1.png") for name in names)
    # Nothing but results: no database, no note, no probe.
    assert {name.split("/")[0] for name in names} == {"rows", "labels", "reports", "drivers"}


def test_another_machine_goes_on_and_computes_nothing(
    place: Place, material: Material, local: tuple[dict[str, bytes], str]
) -> None:
    assert place.score(material).code == 0
    place.move()
    computed = count_computed(place.monkeypatch)
    result = place.score(material)
    assert result.code == 0
    assert f"{SHARDS} of {SHARDS} shards are there" in result.stderr
    assert headline(result.stdout) == headline(local[1])
    assert computed == []


def test_a_killed_driver_is_taken_up_by_another_machine(
    place: Place, slow: Material, slow_parts: dict[str, bytes]
) -> None:
    """kill -9 comes between upload and manifest: the driver saves one every five seconds."""
    process = place.start(slow)
    try:
        wait_for(lambda: place.parts() >= 5)
    finally:
        process.kill()
        process.communicate()
    left = place.objects("/part-")
    assert 5 <= len(left) < SHARDS
    listed = sum(len(json.loads(text)["parts"]) for text in place.objects("_manifest").values())
    assert listed < len(left)
    mirror = place.move()
    computed = count_computed(place.monkeypatch)
    result = place.score(slow)
    assert result.code == 0, result.stderr
    assert f"{len(left)} of {SHARDS} shards are there" in result.stderr
    assert len(computed) == SHARDS - len(left)
    assert place.objects("/part-") == slow_parts
    assert slow_parts.items() >= left.items()
    assert all(table.num_rows == 24 for table in stored_tables(mirror).values())


@pytest.mark.slow
def test_sigterm_leaves_the_manifest_of_what_is_done_in_the_store(
    place: Place, slow: Material
) -> None:
    process = place.start(slow)
    try:
        wait_for(lambda: place.parts() >= 3)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, text
    listed = {
        name
        for content in place.objects("_manifest").values()
        for name in json.loads(content)["parts"]
    }
    assert listed == {name.rpartition("/")[2] for name in place.objects("/part-")}


def test_parts_that_are_gone_or_damaged_are_computed_again(
    place: Place, material: Material, local: tuple[dict[str, bytes], str]
) -> None:
    assert place.score(material).code == 0
    names = list(local[0])
    place.store.delete([names[0]])
    place.store.write(names[1], local[0][names[1]][:100])
    place.move()
    computed = count_computed(place.monkeypatch)
    result = place.score(material)
    assert result.code == 0
    assert sorted(computed) == names[:2]
    assert "it will be computed again" in result.stderr
    assert place.objects("/part-") == local[0]


def test_verify_reads_the_stores_own_bytes_and_repair_mends_them(
    place: Place, material: Material, local: tuple[dict[str, bytes], str]
) -> None:
    assert place.score(material).code == 0
    sound = place.run("verify", place.address)
    assert (sound.code, sound.stdout.count("12 of 12 shards, 0 damaged")) == (0, 2)
    assert place.address in sound.stdout
    name, content = next(iter(local[0].items()))
    # The mirror has sound bytes of this size, perhaps of this second: they are not what counts.
    place.store.write(name, content[:200] + bytes([content[200] ^ 1]) + content[201:])
    found = place.run("verify", place.address, "--json")
    assert found.code == 3
    [broken] = [one for one in json.loads(found.stdout)["measurements"] if one["damaged"]]
    assert broken["folder"] == f"{place.address}/{name.rpartition('/')[0]}"
    assert list(broken["damaged"]) == [name.rpartition("/")[2]]
    place.move()
    line = ("verify", place.address, "--repair", "--runner", "local")
    mended = place.run(*line, "--tracking-uri", place.tracking)
    assert mended.code == 0, mended.stderr
    assert place.objects("/part-") == local[0]


@pytest.mark.slow
def test_two_runs_into_one_place_at_once_leave_it_whole(
    place: Place, slow: Material, slow_parts: dict[str, bytes]
) -> None:
    process = place.start(slow)
    try:
        wait_for(lambda: place.parts() >= 1)
        mine = place.score(slow)
        text, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert (mine.code, process.returncode) == (0, 0), (mine.stderr, errors)
    assert headline(mine.stdout) == headline(text)
    assert place.objects("/part-") == slow_parts
    place.move()
    checked = place.run("verify", place.address)
    assert (checked.code, checked.stdout.count("12 of 12 shards, 0 damaged")) == (0, 2)


def test_a_device_that_rounds_otherwise_leaves_no_manifest_that_disagrees(
    place: Place, material: Material
) -> None:
    """Another worker, of another kind, writes a part over ours after we have answered for it."""
    seen: list[str] = []

    def put(store: Store, name: str, rows: object, metadata: dict[str, object]) -> object:
        part = remote.put_part(store, name, rows, metadata)  # type: ignore[arg-type]
        if len(seen) < 2:
            seen.append(name)
            other = dict(metadata) | {"device": "another"}
            store.write(name, remote.encode_part(rows, other))  # type: ignore[arg-type]
        return part

    place.monkeypatch.setattr(worker, "put_part", put)
    result = place.score(material)
    assert result.code == 0
    assert result.stderr.count("was written twice") == 2
    place.move()
    checked = place.run("verify", place.address)
    assert (checked.code, checked.stdout.count(" 0 damaged")) == (0, 2)


def test_a_part_that_is_taken_away_behind_our_back_is_owed_and_said(
    place: Place, material: Material, local: tuple[dict[str, bytes], str]
) -> None:
    taken: list[str] = []

    def put(store: Store, name: str, *values: object) -> object:
        part = remote.put_part(store, name, *values)  # type: ignore[arg-type]
        if not taken:
            taken.append(name)
            store.delete([name])
        return part

    place.monkeypatch.setattr(worker, "put_part", put)
    result = place.score(material)
    assert result.code == 3
    assert "it is to be computed again" in result.stderr
    place.monkeypatch.undo()
    use(place.monkeypatch, place.url)
    place.move()
    again = place.score(material)
    assert (again.code, headline(again.stdout)) == (0, headline(local[1]))
    assert place.objects("/part-") == local[0]


def test_an_old_mirror_never_brings_back_what_another_machine_went_beyond(
    place: Place, material: Material, local: tuple[dict[str, bytes], str]
) -> None:
    """This machine made half of it, another one the rest; then this one comes again."""
    line = [word for word in place.arguments(material) if word != material.models[1]]
    assert place.run(*line).code == 0
    mine = os.environ["RAYBENCH_CACHE"]
    first = {name for name in local[0] if name in place.store.listing()}
    assert len(first) == SHARDS // 2
    # The other machine computes the first model anew, and the second one.
    place.move()
    assert place.score(material, "--fresh").code == 0
    manifests = place.objects("_manifest.json")
    place.monkeypatch.setenv("RAYBENCH_CACHE", mine)
    computed = count_computed(place.monkeypatch)
    result = place.score(material)
    assert (result.code, computed) == (0, [])
    assert place.objects("/part-") == local[0]
    after = place.objects("_manifest.json")
    assert [len(json.loads(text)["parts"]) for text in after.values()] == [
        len(json.loads(text)["parts"]) for text in manifests.values()
    ]


def test_every_reader_works_from_another_machine(place: Place, material: Material) -> None:
    scored = place.score(material)
    assert scored.code == 0
    mirror = place.move()
    seen = place.run("status", place.address)
    assert seen.code == 0
    assert place.address in seen.stdout
    assert str(mirror) not in seen.stdout
    assert not list(mirror.rglob("part-*"))  # it reads none
    shown = place.run("show", place.address, "--json")
    assert headline(shown.stdout) == headline(scored.stdout)
    written = place.run("report", place.address, "--json")
    assert written.code == 0
    assert json.loads(written.stdout)["page"] == str(mirror / "report" / "index.html")
    page = place.store.read("report/index.html")
    assert page == (mirror / "report" / "index.html").read_bytes()
    pushed = place.run("sync", place.address, "--tracking-uri", place.tracking)
    assert (pushed.code, pushed.stdout) == (0, f"pushed to {place.tracking}\n")
    line = [word for word in place.arguments(material) if word != "--json"]
    planned = place.run("plan", *line[1:])
    assert planned.code == 0, planned.stderr
    assert "12 of 12 shards done" in planned.stdout
    place.move()
    assert place.run("show", place.address + "/").code == 0


def test_images_come_from_a_bucket_as_from_a_folder(
    place: Place, material: Material, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    encoded = []
    for index, pixels in enumerate(np.load(material.folder / "data.npz")["images"][:8]):
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        encoded.append({"bytes": path.read_bytes(), "path": path.name})
    pq.write_table(pa.table({"image": encoded}), tmp_path / "images.parquet")
    bucket = open_store(f"s3://{place.store.address.bucket}/images")
    for path in folder.iterdir():
        bucket.write(f"png/{path.name}", path.read_bytes())
    bucket.write("images.parquet", (tmp_path / "images.parquet").read_bytes())
    options = "?resize=none&channels=1"
    for here, there in (
        (f"folder:{folder}", f"folder:{bucket.address}/png"),
        (f"parquet:{tmp_path}/images.parquet", f"parquet:{bucket.address}/images.parquet"),
    ):
        local, remote = open_dataset(here + options), open_dataset(there + options)
        assert local.ids == remote.ids
        assert torch.equal(local.read(local.ids).images, remote.read(remote.ids).images)
        assert len(local.ids) == 8
    line = place.arguments(material)
    line[line.index(material.data)] = f"folder:{bucket.address}/png{options}"
    from_bucket = place.run(*line)
    assert from_bucket.code == 0, from_bucket.stderr
    line[line.index(place.address)] = str(tmp_path / "out")
    line[line.index(f"folder:{bucket.address}/png{options}")] = f"folder:{folder}{options}"
    from_folder = place.run(*line)
    # Intervals are drawn by the selection's fingerprint: a folder is hashed, a bucket only listed.
    found = [[row[:2] for row in headline(run.stdout)] for run in (from_folder, from_bucket)]
    assert found[0] == found[1]


def test_the_doctor_tries_the_store(place: Place) -> None:
    def output(address: str) -> dict[str, object]:
        checks = json.loads(place.run("doctor", "--out", address, "--json").stdout)
        return next(check for check in checks if check["subject"] == "output folder")

    found = output(place.address)
    assert found["ok"] is True
    assert str(found["text"]).startswith(f"{place.address} can be written; its mirror is ")
    lost = output("s3://never-made/x")
    assert lost["ok"] is False
    assert "there is no bucket" in str(lost["text"])


def test_python_takes_an_address_too(place: Place, material: Material) -> None:
    result = raybench.score(quiet=True, **place.options(material))
    assert result.out == local_name(place.address)
    assert place.parts() == SHARDS


def test_a_sequential_run_keeps_its_decisions_in_the_store(place: Place, tmp_path: Path) -> None:
    material = make_material(tmp_path / "many", images=48)
    line = place.arguments(material, "--until-decided")
    line[line.index(material.data)] = f"{material.data}?sample_seed=0"
    line[line.index("--shard-size") + 1] = "8"
    scored = place.run(*line)
    assert scored.code == 0, scored.stderr
    assert len(place.objects("sequences/")) == 1
    place.move()
    shown = place.run("show", place.address, "--json")
    decided = [json.loads(result.stdout).get("sequence") for result in (scored, shown)]
    assert decided[0] == decided[1]
    assert headline(shown.stdout) == headline(scored.stdout)


def test_attacks_go_to_a_store(place: Place, material: Material) -> None:
    line = [
        "attack", *material.models, "--data", material.data, "--attack", "fgsm", "--eps", "0.1",
        "--runner", "local", "--json", "--out", place.address, "--tracking-uri", place.tracking,
    ]  # fmt: skip
    attacked = place.run(*line)
    assert attacked.code == 0, attacked.stderr
    place.move()
    computed = count_computed(place.monkeypatch)
    assert place.run(*line).stdout == attacked.stdout
    assert computed == []


def test_a_leaderboard_is_refreshed_from_wherever(
    place: Place, material: Material, tmp_path: Path
) -> None:
    file = tmp_path / "leaderboard.yaml"
    models = ", ".join(f'"{spec}"' for spec in material.models)
    file.write_text(
        f'benchmark_version: "1"\nout: "{place.address}"\n'
        f'datasets: [{{name: small, spec: "{material.data}"}}]\n'
        f'evaluations: ["grid?samples=64"]\nmodels: [{models}]\n'
        f'resources: {{runner: local, shard_size: 8}}\ntracking_uri: "{place.tracking}"\n'
    )
    first = place.run("refresh", str(file), "--json", "--quiet")
    assert first.code == 0, first.stderr
    before = json.loads(first.stdout)
    assert (before["computed"], before["state"]["new"]) == (6, 2)
    names = {name for name in place.store.listing() if name.startswith("leaderboard/")}
    assert "leaderboard/state.json" in names
    assert not {"leaderboard/known.json", "leaderboard/mlflow.json"} & names
    place.move()
    second = place.run("refresh", str(file), "--json", "--quiet")
    assert second.code == 0, second.stderr
    after = json.loads(second.stdout)
    assert (after["computed"], after["state"]["unchanged"]) == (0, 2)
    seen = [[entry["first_seen"] for entry in one["state"]["entries"]] for one in (before, after)]
    assert seen[0] == seen[1]
    # A renamed model's rows are filed again on this machine, and are in the store afterwards.
    parts = place.parts()
    file.write_text(file.read_text().replace("classes=3", "classes=3&name=renamed", 1))
    third = place.run("refresh", str(file), "--json", "--quiet")
    assert third.code == 0, third.stderr
    assert json.loads(third.stdout)["computed"] == 0
    assert place.parts() == parts + 3
    place.move()
    checked = place.run("verify", place.address)
    assert (checked.code, checked.stdout.count("3 of 3 shards, 0 damaged")) == (0, 3)


def test_without_a_server_mlflow_stays_on_this_machine_and_that_is_said(
    place: Place, material: Material
) -> None:
    place.monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    line = place.arguments(material)[:-2]
    result = place.run(*line)
    assert result.code == 0
    mirror = local_name(place.address)
    assert (mirror / "mlflow.db").exists()
    assert f"the runs are in {mirror}/mlflow.db on this machine" in result.stderr
    assert f"'raybench sync {place.address}'" in result.stderr
    assert not [name for name in place.store.listing() if "mlflow" in name or "mlart" in name]


def test_a_store_that_is_away_for_a_while_gets_the_manifests_later(
    place: Place, material: Material
) -> None:
    really, failed = Store.write, []

    def write(store: Store, name: str, content: bytes, **options: float) -> None:
        if name.endswith("_manifest.json") and json.loads(content)["parts"] and not failed:
            failed.append(name)
            raise remote.StoreError(f"{name}: away")
        really(store, name, content, **options)

    place.monkeypatch.setattr("raybench.book._MANIFEST_EVERY_S", 0.0)
    place.monkeypatch.setattr("raybench.book._SHARE_SAVING", 1e9)
    place.monkeypatch.setattr(Store, "write", write)
    assert place.score(material).code == 0
    assert failed
    place.move()
    assert place.run("verify", place.address).code == 0


def test_a_store_that_never_takes_the_manifest_fails_the_run_and_loses_nothing(
    place: Place, material: Material
) -> None:
    really = Store.write

    def write(store: Store, name: str, content: bytes, **options: float) -> None:
        if name.endswith("_manifest.json") and json.loads(content)["parts"]:
            raise remote.StoreError(f"{name}: away")
        really(store, name, content, **options)

    place.monkeypatch.setattr(Store, "write", write)
    result = place.score(material)
    assert result.code == 3
    assert "run the same command again" in result.stderr
    assert place.parts() == SHARDS
    place.monkeypatch.setattr(Store, "write", really)
    place.move()
    computed = count_computed(place.monkeypatch)
    assert place.score(material).code == 0
    assert computed == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s4://bucket/x", "no store is named 's4'"),
        ("s3://", "expected s3://bucket/prefix"),
        ("s3://never-made/x", "there is no bucket 'never-made'"),
        ("s3://AKIA:hunter2@bucket/x", "must not hold credentials"),
        ("s3://bucket/x?endpoint_override=http://127.0.0.1:9", "127.0.0.1:9 does not answer"),
        (
            "gs://anonymous@bucket/x?endpoint_override=127.0.0.1:9&scheme=http",
            "127.0.0.1:9 does not answer",
        ),
    ],
)
def test_a_wrong_place_ends_with_2_before_any_work(
    out: str, message: str, place: Place, material: Material
) -> None:
    place.address = out
    place.monkeypatch.setattr(remote, "_PROBE_S", 1.0)
    result = place.score(material)
    assert result.code == 2
    assert message in result.stderr
    assert "loading torchscript" not in result.stderr
    assert "hunter2" not in result.stderr


def test_a_place_that_cannot_be_written_ends_with_2_before_any_work(
    place: Place, material: Material
) -> None:
    with refusing_server(place.url) as url:
        place.monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        result = place.score(material)
    assert result.code == 2
    assert "results cannot be written there" in result.stderr
    assert "credentials" in result.stderr
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in result.stderr
    assert "loading torchscript" not in result.stderr


def test_a_budget_is_refused_where_its_ledger_may_be_lost(place: Place, material: Material) -> None:
    api = "https://api.example.com/v1?budget=1000&shape=1x8x8&classes=3"
    place.monkeypatch.delenv("RAYBENCH_CACHE")
    place.monkeypatch.setenv("HOME", str(place.folder / "home"))
    result = place.run("score", api, "--data", material.data, "--out", place.address)
    assert result.code == 2
    assert "its budget is counted in a ledger in the cache folder" in result.stderr
    assert "set RAYBENCH_CACHE" in result.stderr


def test_a_worker_finds_the_store_by_what_the_plan_says(
    place: Place, material: Material, local: tuple[dict[str, bytes], str], tmp_path: Path
) -> None:
    """On a cluster the driver's environment is not the workers'; credentials they have."""
    config = make_config(ScoreConfig, place.options(material))
    plan = build_job(config, lambda text: None).plan
    (tmp_path / "plan").write_bytes(pickle.dumps(WorkerFactory(plan)))
    code = (
        "import pickle, sys; from raybench.core.work import Task;"
        "work = pickle.load(open(sys.argv[1], 'rb'))(); task = Task(0, 3, 'm', 2);"
        "print([work(task).queries for _ in range(2)])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "plan")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=REPOSITORY,
        env={name: text for name, text in os.environ.items() if not name.startswith("AWS")}
        | {name: text for name, text in KEYS.items() if name != "AWS_REGION"}
        | {"RAYBENCH_CACHE": str(tmp_path / "scratch")},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[128, 0]\n"
    [(name, content)] = place.objects("/part-").items()
    assert local[0][name] == content
    assert not (tmp_path / "scratch").exists()  # a worker keeps nothing on its disk


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_stopped_run_on_ray_is_taken_up_by_another_machine(
    place: Place, slow: Material, slow_parts: dict[str, bytes]
) -> None:
    arguments = place.arguments(slow, "--address", "local", "--actors", "2")
    arguments[arguments.index("--runner") + 1] = "ray"
    process = subprocess.Popen(
        [sys.executable, "-m", "raybench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
    )
    try:
        wait_for(lambda: place.parts() >= 4, 200)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 143, errors
        place.move()
        done = place.parts()
        result = subprocess.run(
            [sys.executable, "-m", "raybench", *arguments],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=REPOSITORY,
        )
    finally:
        process.kill()
        process.wait()
    assert result.returncode == 0, result.stderr
    assert f"{done} of {SHARDS} shards are there" in result.stderr
    assert place.objects("/part-") == slow_parts
