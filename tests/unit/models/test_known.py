"""What is known of models: recalled while their files have the same bytes, and only then."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from raybench.core.catalog import load_model
from raybench.core.types import Access, ModelInfo
from raybench.models import known as module
from raybench.models.fingerprints import file_sha256
from raybench.models.known import Known, model_files
from raybench.models.touched import files_read

INFO = ModelInfo(
    spec="onnx:net.onnx",
    name="net",
    access=Access.LOGITS,
    input_shape=(1, 8, 8),
    num_classes=3,
    fingerprint="f",
    details=(("file", "net.onnx"),),
)
SPEC = INFO.spec


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"weights")
    long_ago(path)
    return path


def long_ago(path: Path) -> None:
    os.utime(path, ns=(10**18, 10**18))


def enter(folder: Path, *files: Path, spec: str = SPEC) -> Known:
    known = Known.read(folder / "known.json")
    known.enter(spec, "images", INFO, ["a note"], files, time.time_ns() + 10**9)
    known.save()
    return Known.read(folder / "known.json")


def test_an_unchanged_file_is_recalled_with_its_notes(tmp_path: Path, net: Path) -> None:
    known = enter(tmp_path, net)
    found = known.recall(SPEC, "images")
    assert found is not None
    assert (found.info, found.notes) == (INFO, ("a note",))
    assert known.loaded == 0
    assert known.recall(SPEC, "other images") is None
    assert known.recall("onnx:other.onnx", "images") is None


def test_a_changed_file_is_not(tmp_path: Path, net: Path) -> None:
    known = enter(tmp_path, net)
    net.write_bytes(b"WEIGHTS")
    assert known.recall(SPEC, "images") is None


def test_neither_is_one_of_the_same_size_and_modification_time(tmp_path: Path, net: Path) -> None:
    known = enter(tmp_path, net)
    net.write_bytes(b"WEIGHTS")
    long_ago(net)  # as rsync -t or cp -p would leave it
    assert known.recall(SPEC, "images") is None


def test_a_file_that_was_only_touched_is_hashed_and_recalled(tmp_path: Path, net: Path) -> None:
    known = enter(tmp_path, net)
    os.utime(net)
    assert known.recall(SPEC, "images") is not None


def test_a_file_that_has_gone_is_not_recalled(tmp_path: Path, net: Path) -> None:
    known = enter(tmp_path, net)
    net.unlink()
    assert known.recall(SPEC, "images") is None


def test_bytes_are_read_again_only_while_the_stamp_is_young(
    tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(module, "file_sha256", counted)
    known = enter(tmp_path, net)
    read.clear()
    # Its change time is now: a second change within the clock's step could leave no trace.
    assert known.recall(SPEC, "images") is not None
    assert read == [net]


def test_a_settled_stamp_vouches_for_the_bytes(
    tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: now() + 5 * 10**9)
    known = enter(tmp_path, net)
    monkeypatch.setattr(module, "file_sha256", lambda path: pytest.fail(f"read {path}"))
    assert known.recall(SPEC, "images") is not None


def test_a_file_touched_while_it_was_loaded_is_not_recorded(tmp_path: Path, net: Path) -> None:
    known = Known.read(tmp_path / "known.json")
    before = time.time_ns()
    time.sleep(0.05)
    net.write_bytes(b"later")
    known.enter(SPEC, "images", INFO, [], [net], before)
    assert known.recall(SPEC, "images") is None
    assert known.loaded == 1


def test_rehash_recalls_nothing(tmp_path: Path, net: Path) -> None:
    enter(tmp_path, net)
    assert Known.read(tmp_path / "known.json", rehash=True).recall(SPEC, "images") is None


def test_other_libraries_make_all_of_it_unknown(
    tmp_path: Path, net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(tmp_path, net)
    monkeypatch.setattr(module, "_VERSIONS", ("torch", "a-library-that-is-not-there"))
    assert Known.read(tmp_path / "known.json").recall(SPEC, "images") is None


def test_a_damaged_record_is_no_record(tmp_path: Path, net: Path) -> None:
    enter(tmp_path, net)
    (tmp_path / "known.json").write_text('{"schema": 1')
    assert Known.read(tmp_path / "known.json").recall(SPEC, "images") is None


@pytest.mark.parametrize(
    ("spec", "recalled"),
    [("zoo:cnn3", False), ("python:a.b:c", False), ("http://127.0.0.1:1/x", True)],
)
def test_models_without_files_are_recalled_only_where_nothing_could_tell(
    tmp_path: Path, spec: str, recalled: bool
) -> None:
    assert (enter(tmp_path, spec=spec).recall(spec, "images") is not None) == recalled


def test_a_factory_is_recalled_where_its_files_are_named(tmp_path: Path, net: Path) -> None:
    known = enter(tmp_path, net, spec="python:a.b:c")
    assert known.recall("python:a.b:c", "images") is None
    assert known.recall("python:a.b:c", "images", [net]) is not None
    assert known.recall("python:a.b:c", "images", [net, tmp_path / "new"]) is None


def test_loaders_tell_the_files_and_sources_of_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "nets_of_known"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text(
        "from torch import nn\nclass Flat(nn.Flatten):\n    '''A layer.'''\n"
    )
    (package / "build.py").write_text(
        "from torch import nn\nfrom nets_of_known.layers import Flat\n"
        "def make():\n    return nn.Sequential(Flat(), nn.Linear(64, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    weights = tmp_path / "net.pt"
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).state_dict(), weights)
    spec = f"file:{weights}?arch=nets_of_known.build:make&shape=1x8x8"
    with files_read() as noted:
        load_model(spec)
    names = {path.name for path in model_files(spec, noted)}
    assert {"net.pt", "layers.py", "build.py"} <= names
    assert not any("torch" in path.parts for path in model_files(spec, noted))
