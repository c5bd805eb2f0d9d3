"""A real S3 server on loopback for tests, and servers that refuse, only read, or keep silent."""

import http.client
import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "test-key-id",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@contextmanager
def s3_server() -> Iterator[str]:
    """Give the URL of an S3 server in this process; it forgets everything at its end."""
    from moto.server import ThreadedMotoServer

    # It reports every request on stderr, whatever it is told.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(url: str, name: str) -> None:
    request = urllib.request.Request(f"{url}/{name}", method="PUT")
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


def put(url: str, key: str, content: bytes) -> None:
    """Write an object as anyone might, its name taken as it is."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=20)
    try:
        connection.request("PUT", f"/{key}", body=content)
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let this process, and those it starts, find the server at `url`."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)


@contextmanager
def refusing_server(
    url: str | None = None, *, lets: Sequence[str] = ("GET", "HEAD"), seen: list[str] | None = None
) -> Iterator[str]:
    """Give a server that answers 403, and with `url` sends what it `lets` through to that one.

    What is asked of it, as ``GET /bucket/name``, is appended to `seen`. Bodies come as they are
    (with a length).
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if seen is not None:
                seen.append(f"{self.command} {self.path}")
            if url is None or self.command not in lets:
                self.reply(403, {"Content-Type": "application/xml"}, _DENIED)
                return
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
            try:
                kept = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                connection.request(self.command, self.path, body=body, headers=kept)
                found = connection.getresponse()
                heads = {
                    name: value
                    for name, value in found.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "server", "date")
                }
                self.reply(found.status, heads, found.read())
            finally:
                connection.close()

        def reply(self, status: int, heads: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in heads.items():
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command == "HEAD":
                self.end_headers()
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silent_server() -> Iterator[str]:
    """Give a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
