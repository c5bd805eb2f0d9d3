"""Small networks, a real local web server, and a dataset that needs no other layer."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from raybench.core import catalog
from raybench.core.spec import Spec, parse
from raybench.core.types import Batch, DatasetInfo


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAYBENCH_CACHE", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return folder


def make_net(classes: int = 10, side: int = 8) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * side * side, classes),
    )


@pytest.fixture
def net() -> nn.Sequential:
    return make_net()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass
class Answer:
    """What the local server says for one path."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    announced: int | None = None


@dataclass
class Server:
    url: str
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, **fields: object) -> None:
        self.answers[path] = Answer(**fields)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            answer = state.answers.get(self.path.partition("?")[0], Answer(status=404))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            size = len(answer.body) if answer.announced is None else answer.announced
            if size >= 0:
                self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


class Digits:
    """scikit-learn's digits behind the `Dataset` protocol, as far as training asks."""

    def __init__(self, spec: Spec) -> None:
        bunch = load_digits()
        chosen = slice(0, 1000) if spec.get("split") == "train" else slice(1000, None)
        size = int(spec.get("n") or 1000)
        self.images = torch.tensor(bunch.images[chosen][:size] / 16, dtype=torch.float32)[:, None]
        self.targets = bunch.target[chosen][:size].astype(np.int64)
        self.ids = [f"{spec.get('split')}/{i}" for i in range(len(self.images))]
        self.info = DatasetInfo(
            spec=spec.canonical(),
            name=spec.scheme,
            shape=(1, 8, 8),
            num_classes=10,
            size=len(self.images),
            has_labels=spec.scheme != "unlabelled",
            fingerprint=hashlib.sha256(self.images.numpy().tobytes()).hexdigest(),
        )

    def read(self, ids: list[str]) -> Batch:
        rows = [int(each.partition("/")[2]) for each in ids]
        return Batch(tuple(ids), tuple(ids), self.images[rows])

    def labels(self, ids: list[str]) -> np.ndarray:
        return self.targets[[int(each.partition("/")[2]) for each in ids]]


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Digits]:
    def open_it(spec: str | Spec) -> Digits:
        return Digits(parse(spec) if isinstance(spec, str) else spec)

    monkeypatch.setattr(catalog, "open_dataset", open_it)
    return open_it
