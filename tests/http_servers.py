"""Servers of images that tests start themselves: real HTTP on this machine, real arithmetic."""

import base64
import contextlib
import http.client
import io
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

CLASSES = 10
SHAPE = (1, 8, 8)

Route = Callable[[bytes, dict[str, str]], tuple[int, dict[str, str], bytes]]


def weights(seed: int = 0) -> np.ndarray:
    """Return the weights [64, 10] float32 of the linear network that every server here runs."""
    return np.random.default_rng(seed).normal(size=(64, CLASSES)).astype(np.float32)


def logits(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return logits [N, 10] float32 of images [N, 1, 8, 8]."""
    return images.reshape(len(images), -1).astype(np.float32) @ weights(seed)


def softmax(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return probabilities [N, 10] float32."""
    values = np.exp(logits(images, seed) - logits(images, seed).max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def from_png(text: str) -> np.ndarray:
    """Return the image [1, H, W] in [0, 1] of a base64 PNG; refuse anything else."""
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert (image.format, image.mode) == ("PNG", "L")
    return np.asarray(image, np.float32)[None] / 255


class Server(ThreadingHTTPServer):
    """Routes requests by path; quick to stop, and silent where clients go away."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, routes: dict[str, Route]) -> None:
        self.routes = routes
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body leave together: no waiting for a delayed acknowledgement
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = dict(self.headers.items())
        self.server.seen.append((self.command, self.path, headers, body))
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            status, said, content = 404, {}, b'{"error": "no such path"}'
        else:
            status, said, content = route(body, headers)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **said}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def serving(routes: dict[str, Route]) -> Iterator[Server]:
    """Serve `routes` on a free port of this machine while the block runs."""
    with running(Server(routes)) as server:
        yield server


@contextlib.contextmanager
def running(server: Any) -> Iterator[Any]:
    """Run an HTTP server in a thread while the block runs."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def as_json(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    """Return an answer of JSON, as a route does."""
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def mlflow_route(seed: int = 0, predict: Callable[..., np.ndarray] = softmax) -> Route:
    """Return a route that answers as MLflow's scoring server does to ``inputs``."""

    def answer(body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        images = np.array(json.loads(body)["inputs"], np.float32)
        return as_json({"predictions": predict(images, seed).tolist()})

    return answer


def count_images(body: bytes) -> int:
    """Return how many images a request of MLflow's ``inputs`` asks about."""
    return len(json.loads(body)["inputs"])


@contextlib.contextmanager
def serving_asgi(app: Any) -> Iterator[str]:
    """Serve an ASGI application by uvicorn while the block runs; yield its URL."""
    import uvicorn

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "uvicorn did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


# Each of them is what some server or network does.
FAULTS = ("500", "503", "429", "reset", "late-reset", "slow", "cut", "truncated", "shape", "html")


@dataclass
class FaultyProxy:
    """Passes requests on, except that a share of them, at random, fails in the next of `FAULTS`.

    Attributes:
        upstream: port of the server behind it.
        share: of the requests that fail.
        slow_s: how long a slow answer takes; more than a client waits.
        images: how many images clients have sent, failing requests included.
        faults: how often each fault was made.
    """

    upstream: int
    share: float = 0.3
    seed: int = 0
    slow_s: float = 1.5
    images: int = 0
    requests: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def server(self) -> Any:
        """Return the HTTP server of this proxy, for `running`."""
        handler = type("Handler", (_ProxyHandler,), {"proxy": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        return server


class _ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    proxy: FaultyProxy

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        proxy = self.proxy
        with proxy.lock:
            proxy.requests += 1
            proxy.images += count_images(body)
            fails = proxy.rng.random() < proxy.share
            fault = FAULTS[proxy.faults.total() % len(FAULTS)] if fails else None
            if fault:
                proxy.faults[fault] += 1
        if fault == "reset":
            self._reset()
            return
        if fault in ("500", "503", "429", "html"):
            self._plain(fault)
            return
        connection = http.client.HTTPConnection("127.0.0.1", proxy.upstream)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            content = connection.getresponse().read()
        finally:
            connection.close()
        if fault == "slow":
            time.sleep(proxy.slow_s)
        if fault == "late-reset":
            self._reset()
            return
        if fault == "shape":
            answer = json.loads(content)
            answer["predictions"] = answer["predictions"][:-1]
            content = json.dumps(answer).encode()
        length = len(content)
        if fault in ("cut", "truncated"):
            content = content[: length // 2]
        # A cut answer announces all of it, a truncated one looks whole but is not.
        self._send(200, content, length if fault == "cut" else len(content))

    def _plain(self, fault: str) -> None:
        if fault == "html":
            self._send(200, b"<html><title>Sign in</title></html>")
            return
        headers = {"429": {"Retry-After": "1"}, "503": {"Retry-After": "0"}}.get(fault, {})
        self._send(int(fault), b'{"error": "try again"}', **headers)

    def _send(self, status: int, content: bytes, length: int | None = None, **said: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in said.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        if length is not None and length != len(content):
            self.close_connection = True

    def _reset(self) -> None:
        """End the connection with a reset instead of a proper close."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
