"""MLflow's own scoring server over logged models: what it takes, and what it answers."""

import os
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch
from http_servers import serving_asgi, softmax, weights

from raybench.core.catalog import load_model
from raybench.core.errors import SpecError
from raybench.models.check import check_outputs

IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(3))
EXPECTED = softmax(IMAGES.numpy())

# Models from code: the server's process has nothing of these tests to import.
CODE = """
import base64, io
import mlflow
import numpy as np
import pandas as pd
from PIL import Image

WEIGHTS = np.load({weights!r})
ANSWER = {answer!r}

def png(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), np.float32) / 255

class Linear(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        values = model_input
        if isinstance(values, dict):
            values = values["image"]
        if isinstance(values, pd.DataFrame):
            if "image" in values.columns:
                values = np.stack([png(text) for text in values["image"]])
            else:
                values = values.to_numpy()
        values = np.asarray(values)
        if values.dtype.kind in "UO":
            values = np.stack([png(text) for text in values])
        scores = values.reshape(len(values), -1).astype(np.float32) @ WEIGHTS
        scores = np.exp(scores - scores.max(1, keepdims=True))
        scores /= scores.sum(1, keepdims=True)
        if ANSWER == "frame":
            return pd.DataFrame(scores)
        if ANSWER == "labels":
            return scores.argmax(1)
        if ANSWER == "dict":
            return {{"probabilities": scores, "version": "x"}}
        return scores

mlflow.models.set_model(Linear())
"""


def save(folder: Path, answer: str = "array", signature: Any = None) -> Path:
    """Log the linear network as a pyfunc, and return where it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

        np.save(folder / "weights.npy", weights())
        code = folder / "code.py"
        code.write_text(CODE.format(weights=str(folder / "weights.npy"), answer=answer))
        path = folder / f"model-{answer}"
        mlflow.pyfunc.save_model(
            path, python_model=str(code), signature=signature, pip_requirements=["mlflow"]
        )
    return path


def application(path: Path) -> Any:
    """Return the application that ``mlflow models serve`` runs on a logged model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        from mlflow.pyfunc import scoring_server

        return scoring_server.init(mlflow.pyfunc.load_model(str(path)))


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow.pyfunc.utils import data_validation
    # It praises type hints, past all filters.
    monkeypatch.setattr(data_validation, "color_warning", lambda *args, **options: None)
    # The server says in the environment that it is one.
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")


def spec(url: str, options: str = "") -> str:
    return f"{url}/invocations?protocol=mlflow&shape=1x8x8&classes=10&retries=2{options}"


def test_every_format_of_a_model_without_a_signature(tmp_path: Path) -> None:
    with serving_asgi(application(save(tmp_path))) as url:
        forms = {
            "": 0,
            "&layout=flat": 0,
            "&format=instances": 0,
            "&input=image": 0,
            "&format=dataframe_split": 0,
            "&format=dataframe_records": 0,
            "&format=dataframe_split&encoding=png&input=image": 0.02,
            "&encoding=png": 0.02,
        }
        for form, tolerance in forms.items():
            model = load_model(spec(url, form))
            found = model.probabilities(IMAGES).numpy()
            np.testing.assert_allclose(
                found, EXPECTED.astype(np.float64), rtol=0, atol=tolerance, err_msg=form
            )
        assert check_outputs(load_model(spec(url)), IMAGES[:8]) == []


def test_a_tensor_signature_and_answers_of_several_kinds(tmp_path: Path) -> None:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    signature = ModelSignature(Schema([TensorSpec(np.dtype(np.float32), (-1, 1, 8, 8))]))
    with serving_asgi(application(save(tmp_path, "frame", signature))) as url:
        found = load_model(spec(url)).probabilities(IMAGES).numpy()
        np.testing.assert_array_equal(found, EXPECTED.astype(np.float64))
        # The schema is enforced by the server, and its reason reaches the user.
        with pytest.raises(SpecError, match=r"refuses with 400.*(?i:shape|schema)"):
            load_model(spec(url, "&layout=flat")).probabilities(IMAGES)
    with serving_asgi(application(save(tmp_path, "dict"))) as url:
        model = load_model(spec(url, "&scores=predictions.probabilities"))
        np.testing.assert_array_equal(model.probabilities(IMAGES).numpy(), found)
    with serving_asgi(application(save(tmp_path, "labels"))) as url:
        model = load_model(spec(url, "&access=labels"))
        assert check_outputs(model, IMAGES[:8]) == []
        np.testing.assert_array_equal(model.labels(IMAGES).numpy(), EXPECTED.argmax(1))


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    path = save(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", str(path), "-p", str(port),
        "--env-manager", "local", "--host", "127.0.0.1",
    ]  # fmt: skip
    # The server starts uvicorn by name: the one of this environment.
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env=os.environ | {"PATH": binaries, "MLFLOW_TRACKING_URI": f"file:{tmp_path}/runs"},
            start_new_session=True,
        )
    try:
        began = time.monotonic()
        while True:
            assert child.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() - began < 200, (tmp_path / "log").read_text()
            try:
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.5)
        model = load_model(spec(f"http://127.0.0.1:{port}"))
        assert check_outputs(model, IMAGES[:8]) == []
        found = model.probabilities(IMAGES).numpy()
        np.testing.assert_array_equal(found, EXPECTED.astype(np.float64))
    finally:
        os.killpg(child.pid, 15)
        child.wait(timeout=30)
