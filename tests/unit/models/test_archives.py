"""Checkpoints and programs with huge claims: each is refused before torch is asked to load it."""

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raybench.core import limits
from raybench.core.catalog import load_model
from raybench.core.errors import SpecError
from raybench.models.archives import refuse_claims
from raybench.models.programs import load_program
from raybench.models.weights import load_strictly, read_state

MIB = 2**20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 16 MiB a file, so that bombs are made and refused in no time."""
    monkeypatch.setenv(limits.LIMIT, str(16 / 1024))


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a refused file reaches torch's loaders."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("torch was asked to load it")

    for module, name in ((torch, "load"), (torch.jit, "load"), (torch.export, "load")):
        monkeypatch.setattr(module, name, never)


def number(value: int) -> bytes:
    """Return `value` as an instruction of pickle's."""
    return pickle.dumps(value, protocol=2)[2:-1]


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def repacked(content: bytes, change: Callable[[dict[str, bytes]], None], kind: int) -> bytes:
    """Return an archive with its records (by path below the root) changed, and their packing."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, record in records.items():
            archive.writestr(f"archive/{name}", record)
    return buffer.getvalue()


def deflated(content: bytes) -> bytes:
    return repacked(content, lambda records: None, zipfile.ZIP_DEFLATED)


def with_pickle(pickled: bytes) -> bytes:
    """Return a checkpoint whose pickle is `pickled`."""

    def change(records: dict[str, bytes]) -> None:
        records["data.pkl"] = pickled

    return repacked(saved({"w": torch.zeros(2)}), change, zipfile.ZIP_STORED)


def asking(name: str, size: int) -> bytes:
    """Return a pickle of {"w": name(size)}."""
    return b"\x80\x02}X\x01\x00\x00\x00wc" + name.encode() + number(size) + b"\x85Rs."


# --- Checkpoints ---


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_a_compressed_checkpoint_is_measured_by_its_directory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(deflated(saved({"w": torch.zeros(5 * MIB)})))
    assert path.stat().st_size < MIB
    with pytest.raises(SpecError) as caught:
        read_state(path, "file:x")
    assert f"file:x: {path.name} has 2" in str(caught.value)
    assert "would take 20.0 MiB unpacked, more than the limit of 16.0 MiB" in str(caught.value)
    assert "RAYBENCH_MAX_GIB=1 " in str(caught.value)


def test_compressed_and_larger_checkpoints_within_the_limits_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(deflated(saved({"w": torch.ones(3)})))
    assert read_state(path, "x")["w"].tolist() == [1, 1, 1]
    # What lies on disk is no claim, however large.
    for new in (True, False):
        path.write_bytes(saved({"w": torch.zeros(5 * MIB)}, _use_new_zipfile_serialization=new))
        assert read_state(path, "x")["w"].shape == (5 * MIB,)
    path.write_bytes(deflated(saved({"w": torch.zeros(5 * MIB)})))
    monkeypatch.setenv(limits.LIMIT, "1")
    assert read_state(path, "x")["w"].shape == (5 * MIB,)


def test_a_tensor_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        claim = number(10**12)
        honest = records["data.pkl"]
        records["data.pkl"] = honest.replace(b"K\x02t", claim + b"t").replace(
            b"K\x02\x85", claim + b"\x85"
        )
        assert records["data.pkl"].count(claim) == 2

    path = tmp_path / "net.pt"
    path.write_bytes(repacked(saved({"w": torch.zeros(2)}), change, zipfile.ZIP_STORED))
    with pytest.raises(SpecError, match=r"net\.pt is damaged .*record size \(8 bytes\) does not"):
        read_state(path, "x")
    old = saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    path.write_bytes(old.replace(b"K\x02Nt", number(10**9) + b"Nt"))
    with pytest.raises(SpecError, match=r"net\.pt is damaged .*wrong byte size: expected 8 got"):
        read_state(path, "x")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("name", ["builtins\nbytearray\n", "__builtin__\nbytearray\n"])
@pytest.mark.parametrize("old", [False, True])
def test_a_bytearray_of_any_length_is_refused_unmade(tmp_path: Path, name: str, old: bool) -> None:
    pickled = asking(name, 10**11)
    path = tmp_path / "net.pt"
    if old:
        whole = saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False)
        start = whole.index(b"\x80\x02}q\x00X\x01\x00\x00\x00w")
        path.write_bytes(whole[:start] + pickled)
    else:
        path.write_bytes(with_pickle(pickled))
    with pytest.raises(SpecError, match=r"net\.pt is refused: it makes a bytearray"):
        read_state(path, "x")


@pytest.mark.usefixtures("unloaded")
def test_the_pickle_after_the_object_is_looked_at_too(tmp_path: Path) -> None:
    whole = saved({"w": torch.zeros(2)}, _use_new_zipfile_serialization=False)
    keys = whole.rindex(b"\x80\x02]")
    (tmp_path / "net.pt").write_bytes(whole[:keys] + asking("builtins\nbytearray\n", 10**11))
    with pytest.raises(SpecError, match=r"net\.pt is refused: it makes a bytearray"):
        read_state(tmp_path / "net.pt", "x")


@pytest.mark.parametrize("opcode", [b"\x80\x04\x8d", b"\x80\x04\x8e", b"\x80\x05\x96"])
def test_a_text_longer_than_any_memory_is_refused(tmp_path: Path, opcode: bytes) -> None:
    path = tmp_path / "net.pt"
    for content in (opcode + struct.pack("<Q", 2**62), opcode + struct.pack("<Q", 2**40) + b"x"):
        for whole in (content, with_pickle(content)):
            path.write_bytes(whole)
            with pytest.raises(SpecError, match=r"net\.pt is (refused|damaged)"):
                read_state(path, "x")


def test_an_unwritten_tensor_of_any_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(with_pickle(asking("torch\nFloatTensor\n", 10**9)))
    with pytest.raises(SpecError, match=r"net\.pt has .*would take 3\.7 GiB"):
        read_state(path, "x")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_value_repeated_by_strides_counts_as_often_as_it_is_seen(
    tmp_path: Path, wrapped: bool
) -> None:
    state = {"w": torch.zeros(1).expand(10**9, 1000)}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "net.pt")
    with pytest.raises(SpecError, match=r"net\.pt has .*would take 3725\.3 GiB unpacked"):
        read_state(tmp_path / "net.pt", "x")


def test_tensors_that_share_their_values_count_once(tmp_path: Path) -> None:
    shared = torch.zeros(3 * MIB)
    torch.save(dict.fromkeys("abcdef", shared), tmp_path / "net.pt")
    assert len(read_state(tmp_path / "net.pt", "x")) == 6


def test_tensors_without_values_do_not_pass_for_weights(tmp_path: Path) -> None:
    net = nn.Linear(2, 3)
    state = {"weight": torch.zeros(3, 2, device="meta"), "bias": torch.zeros(3)}
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(SpecError, match="without values 1: weight"):
        load_strictly(net, read_state(tmp_path / "net.pt", "x"), "x")


def test_the_oldest_format_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "net.tar", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(1)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(SpecError, match=r"net\.tar is damaged or not a file saved by torch"):
        read_state(tmp_path / "net.tar", "x")


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "other/escaped"])
def test_a_record_outside_the_root_of_its_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(saved({"w": torch.zeros(2)}))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(SpecError, match=r"net\.pt is damaged .*not in a subdirectory"):
        read_state(path, "x")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(99), b"\x80\x02("])
def test_what_is_no_archive_passes_to_the_loader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    refuse_claims(tmp_path / "net.pt", "x")
    with pytest.raises(SpecError, match=r"net\.pt is damaged or not a file saved by torch"):
        read_state(tmp_path / "net.pt", "x")


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 8]}}, None),
        ({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}, None),
        ({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}, None),
        ({}, 2**62),
        ({}, 2**27),
    ],
)
def test_a_safetensors_header_cannot_declare_more_than_follows(
    tmp_path: Path, header: dict[str, Any], length: int | None
) -> None:
    text = json.dumps(header).encode()
    content = struct.pack("<Q", length or len(text)) + text + bytes(8)
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(SpecError, match=r"file:x: .*net\.safetensors is not a readable"):
        read_state(tmp_path / "net.safetensors", "file:x")


# --- TorchScript and programs of torch.export ---


@pytest.mark.usefixtures("unloaded")
def test_a_compressed_torchscript_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(deflated(saved({"w": torch.zeros(5 * MIB)})))
    with pytest.raises(SpecError, match=r"torchscript:.*net\.pt has .*would take 20\.0 MiB"):
        load_model(f"torchscript:{tmp_path}/net.pt")


@pytest.fixture(scope="module")
def program() -> bytes:
    exported = torch.export.export(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (torch.rand(2, 4),)
    )
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def refused(path: Path, content: bytes, text: str) -> None:
    path.write_bytes(content)
    with pytest.raises(SpecError, match=text):
        load_program(path, "exported:x")


@pytest.mark.usefixtures("unloaded")
def test_a_compressed_program_is_refused(tmp_path: Path, program: bytes) -> None:
    def change(records: dict[str, bytes]) -> None:
        records["extra/notes"] = bytes(20 * MIB)

    bomb = repacked(program, change, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "net.pt2", bomb, r"net\.pt2 has .*would take 20\.\d MiB")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("kind", ["packed", "bytearray"])
def test_a_bomb_inside_a_program_is_refused(tmp_path: Path, program: bytes, kind: str) -> None:
    packed = deflated(saved(torch.zeros(5 * MIB)))
    inner = packed if kind == "packed" else with_pickle(asking("builtins\nbytearray\n", 10**11))

    def change(records: dict[str, bytes]) -> None:
        records["data/sample_inputs/model.pt"] = inner

    text = r"net\.pt2 has .*20\.\d MiB" if kind == "packed" else r"net\.pt2 .*makes a bytearray"
    refused(tmp_path / "net.pt2", repacked(program, change, zipfile.ZIP_STORED), text)


@pytest.mark.usefixtures("unloaded")
def test_a_weight_of_values_that_its_record_lacks_is_refused(
    tmp_path: Path, program: bytes
) -> None:
    def change(records: dict[str, bytes]) -> None:
        name = "data/weights/model_weights_config.json"
        content = json.loads(records[name])
        entry = next(iter(content["config"].values()))
        entry["tensor_meta"]["sizes"] = [{"as_int": 10**6}, {"as_int": 10**6}]
        records[name] = json.dumps(content).encode()
        records[f"data/weights/{entry['path_name']}"] = b""

    bomb = repacked(program, change, zipfile.ZIP_STORED)
    refused(tmp_path / "net.pt2", bomb, r"weight_\d is empty, its declared sizes say 1,000,000,000")
