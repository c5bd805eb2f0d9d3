"""Fetching from a real local server: whole or not at all, and never an HTML page."""

import hashlib
from pathlib import Path

import pytest

from raybench.core.errors import SpecError
from raybench.models import downloads
from raybench.models.downloads import fetch, google_drive, stated_hash, verify

BODY = bytes(range(256)) * 5000
QUOTA = b"<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head></html>"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "net.pt"


def leftovers(target: Path) -> list[str]:
    if not target.parent.exists():
        return []
    return sorted(p.name for p in target.parent.iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_fetched_once_with_its_hash_beside_it(server, target: Path) -> None:
    server.answer("/file", body=BODY)
    digest = hashlib.sha256(BODY).hexdigest()
    assert fetch(f"{server.url}/file", target, what="spec") == digest
    assert target.read_bytes() == BODY
    assert leftovers(target) == ["net.pt", "net.pt.sha256"]
    assert (target.parent / "net.pt.sha256").read_text() == f"{digest}  net.pt\n"
    assert fetch(f"{server.url}/file", target, what="spec") == digest
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"body": QUOTA, "headers": {"Content-Type": "text/html; charset=utf-8"}},
            "HTML page titled 'Google Drive - Quota exceeded'",
        ),
        ({"body": b"\n <html>sign in"}, "HTML page"),
        ({"body": BODY, "headers": {"Content-Type": "text/html"}}, "HTML page"),
        ({"body": BODY, "announced": len(BODY) + 100}, "ChunkedEncodingError|bytes came"),
        ({"body": b""}, "the answer is empty"),
        ({"status": 404}, "the server answers 404"),
        ({"status": 500, "body": BODY}, "the server answers 500"),
        ({"body": BODY, "announced": -1}, "more than the 1,000 bytes allowed"),
        ({"body": BODY}, "1,280,000 bytes, more than the 1,000 allowed"),
    ],
)
def test_what_is_not_the_file_leaves_nothing_and_says_what_to_do(
    server, target: Path, fields: dict, reason: str
) -> None:
    server.answer("/file", **fields)
    cap = 1000 if "allowed" in reason else downloads.MAX_BYTES
    with pytest.raises(SpecError, match=reason) as caught:
        fetch(f"{server.url}/file", target, what="some:spec", manual="fetch id 123", max_bytes=cap)
    assert f"To go on by hand: fetch id 123, save it as {target}" in str(caught.value)
    assert str(caught.value).startswith("some:spec: net.pt could not be downloaded")
    assert leftovers(target) == []


def test_no_server_and_a_silent_server(server, target: Path) -> None:
    with pytest.raises(SpecError, match="ConnectionError"):
        fetch("http://127.0.0.1:9/file", target, what="spec")
    server.answer("/file", body=b"x", announced=10)
    with pytest.raises(SpecError, match="could not be downloaded"):
        fetch(f"{server.url}/file", target, what="spec", timeout_s=(1.0, 0.2))
    assert leftovers(target) == []


def test_a_stated_hash_is_held_to(server, target: Path) -> None:
    server.answer("/file", body=BODY)
    with pytest.raises(SpecError, match=r"its SHA-256 begins .*, the source states 0676ba61"):
        fetch(f"{server.url}/file", target, what="spec", sha256_prefix="0676ba61")
    assert leftovers(target) == []
    digest = hashlib.sha256(BODY).hexdigest()
    assert fetch(f"{server.url}/file", target, what="s", sha256_prefix=digest[:8]) == digest


def test_a_flipped_byte_is_found_on_the_next_load(server, target: Path) -> None:
    server.answer("/file", body=BODY)
    fetch(f"{server.url}/file", target, what="spec")
    target.write_bytes(BODY[:-1] + b"\x00")
    with pytest.raises(SpecError, match=r"damaged or was replaced.*net\.pt\.sha256"):
        fetch(f"{server.url}/file", target, what="spec")


def test_a_file_put_there_by_hand_is_recorded_then_held_to(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(BODY)
    digest = verify(target, what="spec")
    assert (target.parent / "net.pt.sha256").read_text().startswith(digest)
    target.write_bytes(BODY + b"x")
    with pytest.raises(SpecError, match="damaged or was replaced"):
        verify(target, what="spec")


def test_a_quota_page_saved_under_the_files_name_is_found(target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(QUOTA)
    with pytest.raises(SpecError, match=r"is an HTML page, not weights.*delete it"):
        fetch("http://127.0.0.1:9/file", target, what="spec")


def test_addresses() -> None:
    assert google_drive("AbC") == (
        "https://drive.usercontent.google.com/download?id=AbC&export=download&confirm=t"
    )
    assert stated_hash("https://x/models/resnet50-0676ba61.pth") == "0676ba61"
    assert stated_hash("https://x/a-0676ba61/model.pth") == ""
    assert stated_hash("https://x/resnet50.pth") == ""
