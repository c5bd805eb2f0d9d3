"""How far a run has come, from manifests and signs of life that are made up here."""

import json
import os
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import raybench.heartbeat as heartbeat
from raybench.cli import main
from raybench.core.errors import InputError
from raybench.heartbeat import Sign
from raybench.sinks.store import MANIFEST, Expected, Manifest, Stop, save_manifest
from raybench.status import look

KEY = "k" * 64


def manifest(shards: int, done: int, **more: object) -> Manifest:
    expected = tuple(
        Expected(index, f"part-{index:06d}-{index:016x}.parquet", 10, f"{index:064x}")
        for index in range(shards)
    )
    parts = {
        shard.file: {
            "file": shard.file,
            "sha256": shard.ids,
            "size": 1000,
            "rows": 10,
            "errors": 1,
            "queries": 500,
            "seconds": 4.0,
        }
        for shard in expected[:done]
    }
    facts = {
        "model": {"name": "resnet"},
        "dataset": {"name": "digits"},
        "evaluation": "grid?samples=50",
        "key": KEY,
    }
    return Manifest(measurement=facts, shard_size=10, shards=expected, parts=parts, **more)


def store(out: Path, found: Manifest, name: str = "a") -> Path:
    folder = out / "rows" / "grid" / "dataset=d" / "model=m" / f"measurement={name}"
    folder.mkdir(parents=True)
    save_manifest(folder, found)
    return folder


def driver(out: Path, **more: object) -> None:
    pid = os.getpid()
    sign = Sign(
        run="2026-07-27T10:00:00.000000+00:00",
        host=socket.gethostname(),
        pid=pid,
        boot=heartbeat._boot(pid),
        beat=time.time() - 3,
        busy=2,
        measurements=(KEY[:16],),
    )
    (out / "drivers").mkdir(exist_ok=True)
    content = {"schema": 1} | asdict(replace(sign, **more))
    (out / "drivers" / "x.json").write_text(json.dumps(content))


def test_a_run_at_work(tmp_path: Path) -> None:
    store(tmp_path, manifest(10, 4))
    driver(tmp_path)
    found = look(tmp_path)
    [one] = found.measurements
    assert (one.model, one.dataset, one.evaluation) == ("resnet", "digits", "grid?samples=50")
    assert (one.done, one.shards, one.left, one.failed) == (4, 10, 6, 0)
    assert (one.images, one.unscored, one.queries) == (40, 4, 2000)
    assert one.images_per_second == pytest.approx(2.5)
    assert one.left_s == pytest.approx(24.0)
    assert found.expected_s == pytest.approx(12.0)
    assert found.exit_code == 0
    text = found.as_text()
    assert "at work on" in text
    assert "2 shards in flight 3 s ago" in text
    assert "4/10" in text
    assert text.endswith("4 of 10 shards, about 12 s left")


def test_a_dead_driver_shows_as_such(tmp_path: Path) -> None:
    store(tmp_path, manifest(10, 4))
    driver(tmp_path, boot="0")
    found = look(tmp_path)
    assert found.exit_code == 3
    assert found.expected_s is None
    assert "driver: dead (" in found.as_text()
    assert found.as_text().endswith(
        "4 of 10 shards, and no driver is at work: run the same command again to go on"
    )
    driver(tmp_path, host="elsewhere", beat=time.time() - 1000)
    assert "last sign 17 min ago" in look(tmp_path).as_text()


def test_a_finished_run(tmp_path: Path) -> None:
    store(tmp_path, manifest(3, 3))
    driver(tmp_path, state="finished")
    found = look(tmp_path)
    assert found.exit_code == 0
    assert found.as_json()["complete"]
    assert "driver: finished 3 s ago" in found.as_text()
    assert found.as_text().endswith("3 of 3 shards")


def test_without_a_driver_or_timings_nothing_is_made_up(tmp_path: Path) -> None:
    store(tmp_path, manifest(10, 0))
    found = look(tmp_path)
    assert found.measurements[0].left_s is None
    assert found.measurements[0].images_per_second is None
    assert "driver: no sign of any" in found.as_text()
    driver(tmp_path)
    assert look(tmp_path).expected_s is None
    assert "the end is not known yet" in look(tmp_path).as_text()


def test_failures_count_until_somebody_computes_them(tmp_path: Path) -> None:
    folder = store(tmp_path, manifest(10, 4, failures={"2": "was", "5": "is", "6": "is"}))
    driver(tmp_path)
    assert look(tmp_path).measurements[0].failed == 2
    assert look(tmp_path).exit_code == 3
    save_manifest(folder, manifest(10, 10, failures={"5": "was"}))
    assert look(tmp_path).exit_code == 0


def test_a_spent_budget_is_4(tmp_path: Path) -> None:
    store(tmp_path, manifest(10, 4, partial="the budget of 1,000 queries is spent"))
    found = look(tmp_path)
    assert found.exit_code == 4
    assert "resnet: the budget of 1,000 queries is spent" in found.as_text()


def test_a_sequential_run_is_done_by_what_it_asked_for(tmp_path: Path) -> None:
    stop = Stop(images=35, of=100, queries_of=5000, record="r.json")
    store(tmp_path, manifest(10, 4, stop=stop))
    [one] = look(tmp_path).measurements
    assert (one.done, one.shards) == (4, 4)
    assert look(tmp_path).exit_code == 0


def test_a_damaged_manifest_hides_no_other(tmp_path: Path) -> None:
    store(tmp_path, manifest(3, 3))
    broken = store(tmp_path, manifest(3, 3), "b")
    (broken / MANIFEST).write_text("{")
    found = look(tmp_path)
    assert found.exit_code == 3
    assert "is damaged" in found.as_text()
    assert "3/3" in found.as_text()


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results; expected a folder that"):
        look(tmp_path)
    driver(tmp_path)
    with pytest.raises(InputError, match="its driver has not come that far"):
        look(tmp_path)


def test_the_verb_prints_and_exits_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, manifest(10, 4))
    assert main(["status", str(tmp_path)]) == 3
    assert "4 of 10 shards" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 3
    content = json.loads(capsys.readouterr().out)
    assert content["out"] == str(tmp_path)
    assert content["measurements"][0]["done"] == 4
    assert not content["complete"]
    assert main(["status", str(tmp_path / "absent")]) == 2


def test_a_hundred_thousand_shards_take_a_second_or_two_and_no_part_is_touched(
    tmp_path: Path,
) -> None:
    store(tmp_path, manifest(100_000, 60_000))
    begun = time.process_time()
    found = look(tmp_path)
    seconds = time.process_time() - begun
    assert found.measurements[0].done == 60_000  # of files that do not exist
    assert seconds < 4.0, seconds
