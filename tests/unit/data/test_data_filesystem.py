import os
import pickle
from pathlib import Path

import pytest
from pyarrow import fs

from raybench.core.errors import SpecError
from raybench.data import filesystem
from raybench.data.filesystem import (
    File,
    Unreadable,
    exists,
    kind_of,
    list_files,
    locate,
    parent,
    read_bytes,
    stamp,
)


def names(folder: Path, *suffixes: str) -> list[str]:
    return [file.name for file in list_files(locate(str(folder)), suffixes or (".png",))]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_files_are_listed_recursively_in_path_order_without_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a/z.PNG", "a.png", "a/b/c.png", ".x.png", ".d/y.png", "n.txt")
    assert names(tmp_path) == ["a.png", "a/b/c.png", "a/z.PNG", "b.png"]
    assert names(tmp_path, ".txt") == ["n.txt"]


def test_a_local_path_may_be_relative_or_a_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "deep/a b.png")
    monkeypatch.chdir(tmp_path)
    root = locate("deep")
    assert root.source("a b.png") == "deep/a b.png"
    assert read_bytes(root, "a b.png") == b"deep/a b.png"
    uri = locate(f"file://{tmp_path}/deep")
    assert uri.local
    assert read_bytes(uri, "a b.png") == b"deep/a b.png"
    assert pickle.loads(pickle.dumps(root)) == root


def test_links_inside_the_folder_are_files_and_links_out_of_it_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.png", "in/d/e.png", "out/b.png")
    (tmp_path / "in" / "link.png").symlink_to("a.png")
    (tmp_path / "in" / "again").symlink_to("d")
    (tmp_path / "in" / "loop").symlink_to(".")
    assert names(tmp_path / "in") == ["a.png", "d/e.png", "link.png"]
    (tmp_path / "whole").symlink_to("in")
    assert names(tmp_path / "whole") == names(tmp_path / "in")
    for target in ("../out/b.png", "../out", "../in2", "/etc"):
        (tmp_path / "in" / "d" / "x.png").symlink_to(target)
        with pytest.raises(SpecError, match=r"'d/x.png' is a link that leads out"):
            names(tmp_path / "in")
        (tmp_path / "in" / "d" / "x.png").unlink()


def test_what_cannot_be_listed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such file or folder"):
        names(tmp_path / "absent")
    touch(tmp_path, "a.png")
    with pytest.raises(SpecError, match="is a file, expected a folder"):
        names(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(SpecError, match="is not UTF-8; rename it"):
        names(tmp_path)


def test_other_things_than_regular_files_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert names(tmp_path) == ["a.png"]


def test_absent_and_huge_files_are_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png")
    root = locate(str(tmp_path))
    with pytest.raises(Unreadable, match="not there any more"):
        read_bytes(root, "b.png")
    monkeypatch.setattr(filesystem, "MAX_FILE_BYTES", 4)
    with pytest.raises(Unreadable, match="has 5 bytes, more than 4"):
        read_bytes(root, "a.png")


@pytest.mark.parametrize(
    "uri",
    ["s3://AKIA:hunter2@bucket/x", "s3://AKIA:hun/ter2@bucket/x", "gs://me:hunter2@bucket"],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SpecError, match="must not hold credentials") as raised:
        locate(uri)
    assert "ter2" not in str(raised.value)


def test_stores_are_told_by_their_scheme() -> None:
    root = locate("s3://bucket/a/b/?region=eu-west-1")
    assert isinstance(root.filesystem, fs.S3FileSystem)
    assert (root.path, root.local) == ("bucket/a/b", False)
    assert locate("gs://anonymous@bucket/x").path == "bucket/x"
    with pytest.raises(SpecError, match=r"no store is named 's4'.*gs, s3"):
        locate("s4://bucket/x")
    with pytest.raises(SpecError, match="not a usable address"):
        locate("s3://bucket/x?nonsense=1")


def test_a_store_is_listed_and_read_like_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fs._MockFileSystem()
    store.create_dir("bucket/p/.hid")
    for name in ("p/b.png", "p/a.png", "p/.hid/x.png", "p/.h.png"):
        with store.open_output_stream(f"bucket/{name}") as stream:
            stream.write(name.encode())
    monkeypatch.setattr(filesystem, "connect", lambda uri: (store, uri.removeprefix("s3://")))
    root = locate("s3://bucket/p/")
    files = list_files(root, (".png",))
    assert [file.name for file in files] == ["a.png", "b.png"]
    assert read_bytes(root, "a.png") == b"p/a.png"
    assert root.source("a.png") == "s3://bucket/p/a.png"
    assert kind_of(root) == "folder"
    with pytest.raises(Unreadable):
        read_bytes(root, "c.png")
    one = root.below("a.png")
    assert kind_of(one) == "file"
    folder, name = parent(one)
    assert (folder.path, folder.text, name) == ("bucket/p", "s3://bucket/p", "a.png")
    assert exists(one)
    assert not exists(root.below("c.png"))
    assert stamp(root, files[0]) != stamp(root, File("a.png", 8, files[0].mtime_ns))
    assert stamp(root, files[0]) != stamp(root, File("a.png", 7, files[0].mtime_ns + 1))


def test_a_store_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def get_file_info(self, _: object) -> object:
            raise OSError("ACCESS_DENIED")

    monkeypatch.setattr(filesystem, "connect", lambda uri: (Failing(), "bucket"))
    with pytest.raises(SpecError, match=r"s3://bucket: cannot be listed \(ACCESS_DENIED\).*creden"):
        list_files(locate("s3://bucket"), (".png",))
