"""Addresses of object stores, and the local folders that stand for them."""

import json
import shutil
from pathlib import Path

import pytest
from pyarrow import fs

from raybench.core import objects
from raybench.core.errors import InputError
from raybench.core.mirrors import address_of, local_name, mirror_root, shown
from raybench.core.objects import Address, connect, read_address


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAYBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "_home", lambda bucket: "")  # no question to Amazon


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("s3://bucket", "bucket"),
        ("s3://bucket/a/b/", "bucket/a/b"),
        ("s3:/bucket/a", "bucket/a"),
        ("S3://bucket/a", "bucket/a"),
        ("s3://bucket/a%20b/x=1", "bucket/a b/x=1"),
        ("gs://some_bucket.example/a", "some_bucket.example/a"),
        ("gs://anonymous@bucket/a", "bucket/a"),
        ("s3://anonymous@bucket/a", "bucket/a"),
    ],
)
def test_addresses_are_read_and_spelt_so_that_they_can_be_read_again(text: str, path: str) -> None:
    address = read_address(text)
    assert address.path == path
    assert read_address(str(address)) == address
    assert address.bucket in text
    assert address.anonymous == ("anonymous@" in text)
    assert "anonymous" not in address.short


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("s4://bucket/x", r"no store is named 's4'.*gs, s3"),
        ("hdfs://bucket/x", "no store is named 'hdfs'"),
        ("s3://", "'' is no name of a bucket; expected s3://bucket/prefix"),
        ("s3:///x", "is no name of a bucket|expected"),
        ("s3://-b/x", "'-b' is no name of a bucket"),
        ("s3://bucket/../other", "plain path"),
        ("s3://bucket/a//b", "plain path"),
        ("s3://bucket/a%0ab", "plain path"),
        ("s3://bucket/x?regoin=eu", "no option is named 'regoin'; did you mean region"),
        ("gs://bucket/x?region=eu", "no option is named 'region'"),
        ("s3://bucket?endpoint_override=http://me:hunter2@host", "must not hold credentials"),
        ("s3://AKIA:hunter2@bucket/x", "must not hold credentials.*AWS_ACCESS_KEY_ID"),
        ("gs://me:hunter2@bucket/x", "must not hold credentials.*GOOGLE_APPLICATION"),
    ],
)
def test_other_addresses_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_address(text)
    assert "hunter2" not in str(raised.value)


def test_where_s3_is_comes_from_the_address_then_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert read_address("s3://bucket").endpoint == "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    assert read_address("s3://bucket").endpoint == "http://127.0.0.1:2"
    address = read_address("s3://bucket?endpoint_override=127.0.0.1:3&scheme=http")
    assert address.endpoint == "127.0.0.1:3"
    assert read_address("gs://bucket").endpoint == ""

    assert connect("s3://bucket/x")[0].region == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert connect("s3://bucket/x")[0].region == "eu-central-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    filesystem, path = connect("s3://bucket/x")
    assert (filesystem.region, path) == ("eu-west-1", "bucket/x")
    assert connect("s3://bucket/x?region=sa-east-1")[0].region == "sa-east-1"


def test_a_buckets_own_region_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setattr(objects, "_home", lambda bucket: "ap-south-1")
    assert connect("s3://bucket/x")[0].region == "ap-south-1"
    assert read_address("s3://bucket/x").explicit().options == {"region": "ap-south-1"}


def test_an_explicit_address_is_the_same_place_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = str(read_address("s3://bucket/x").explicit())
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.delenv("AWS_REGION")
    address = read_address(text)
    assert address.endpoint == "http://127.0.0.1:2"
    assert address.options["region"] == "eu-west-1"
    assert connect(text)[0].region == "eu-west-1"


def test_google_gets_a_limit_to_its_patience() -> None:
    filesystem, path = connect("gs://anonymous@bucket/x")
    assert isinstance(filesystem, fs.GcsFileSystem)
    assert path == "bucket/x"
    with pytest.raises(ValueError, match="retry_limit_seconds"):
        connect("gs://bucket/x?retry_limit_seconds=soon")


def test_a_local_folder_is_its_own_name(tmp_path: Path) -> None:
    for text in ("results", str(tmp_path / "a:b"), "a/b?c"):
        assert local_name(text) == Path(text)
        assert address_of(Path(text)) is None
        assert mirror_root(Path(text)) is None
        assert shown(Path(text)) == text
    assert not (tmp_path / "cache").exists()


def test_an_address_has_one_mirror_that_says_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    out = local_name("s3://bucket/runs/1")
    assert out.is_dir()
    assert out == local_name("s3://bucket/runs/1/?region=eu-west-1") == local_name(out)
    assert out == local_name(Path("s3://bucket/runs/1"))
    assert address_of(out / "rows" / "x") == Address(scheme="s3", path="bucket/runs/1")
    local_name("s3://bucket/runs/1/?region=eu-west-1")
    assert address_of(out) == Address(
        scheme="s3", path="bucket/runs/1", options={"region": "eu-west-1"}
    )
    assert shown(out / "rows") == "s3://bucket/runs/1/rows"
    assert shown(out, f"{out}/x is damaged") == "s3://bucket/runs/1/x is damaged"
    others = {
        local_name("s3://bucket/runs/2"),
        local_name("gs://bucket/runs/1"),
        local_name("s3://bucket/runs-1"),
        local_name("s3://bucket/runs/1?endpoint_override=127.0.0.1:2&scheme=http"),
    }
    assert out not in others
    assert len(others) == 4
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    elsewhere = local_name("s3://bucket/runs/1")
    assert elsewhere in others
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    found = address_of(elsewhere)
    assert found is not None
    assert found.endpoint.endswith("127.0.0.1:2")


def test_pathlib_may_have_taken_slashes_from_an_address() -> None:
    text = "s3://bucket/x?endpoint_override=http://127.0.0.1:2"
    assert local_name(Path(text)) == local_name(text)
    assert read_address(str(Path(text))).endpoint == "http://127.0.0.1:2"


def test_a_note_counts_in_its_own_mirror_alone(tmp_path: Path) -> None:
    out = local_name("s3://bucket/runs/1")
    copied = tmp_path / "copied"
    shutil.copytree(out, copied)
    assert address_of(copied) is None
    false = out.with_name("another")
    shutil.copytree(out, false)
    assert address_of(false) is None
    (out / ".raybench-store.json").write_text(json.dumps({"address": "s3://bucket/runs/2"}))
    assert address_of(out) is None
    (out / ".raybench-store.json").write_text("no json")
    assert address_of(out) is None
