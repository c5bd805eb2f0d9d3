"""MLServer itself, where there is one: it cannot be installed beside our own versions.

python -m venv /tmp/mlserver && /tmp/mlserver/bin/pip install mlserver==1.7.1
RAYBENCH_MLSERVER=/tmp/mlserver/bin/mlserver pytest -m slow tests/unit/models/test_http_mlserver.py
"""

import json
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from http_servers import softmax, weights

from raybench.core.catalog import load_model
from raybench.models.check import check_outputs

RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Linear(MLModel):
    async def load(self):
        self.weights = np.load("weights.npy")
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = self.decode(payload.inputs[0], default_codec=NumpyCodec).astype(np.float32)
        scores = images.reshape(len(images), -1) @ self.weights
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        outputs = [NumpyCodec.encode_output("scores", scores)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


@pytest.mark.slow
def test_mlserver_answers_as_the_network_it_serves(tmp_path: Path) -> None:
    command = os.environ.get("RAYBENCH_MLSERVER")
    if not command:
        pytest.skip("set RAYBENCH_MLSERVER to an mlserver command to ask the real one")
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        ports = [listener.getsockname()[1] for listener in listeners]
    np.save(tmp_path / "weights.npy", weights())
    (tmp_path / "runtime.py").write_text(RUNTIME)
    settings = dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    content = json.dumps(settings | {"parallel_workers": 0, "host": "127.0.0.1"})
    (tmp_path / "settings.json").write_text(content)
    model = {
        "name": "digits",
        "implementation": "runtime.Linear",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
    }
    (tmp_path / "model-settings.json").write_text(json.dumps(model))
    url = f"http://127.0.0.1:{ports[0]}"
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            [command, "start", "."],
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )
    try:
        began = time.monotonic()
        while True:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() - began < 120
            try:
                if requests.get(f"{url}/v2/health/ready", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        images = torch.rand(40, 1, 8, 8)
        found = load_model(f"{url}/v2/models/digits?protocol=v2")
        assert check_outputs(found, images[:8]) == []
        expected = softmax(images.numpy()).astype(np.float64)
        np.testing.assert_allclose(found.probabilities(images).numpy(), expected, atol=1e-6)
    finally:
        child.terminate()
        child.wait(timeout=60)
