"""What is sent is what the published protocols ask for, and what comes back is read exactly."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from http_servers import from_png
from v2_server import ANSWER, LENGTH, REQUEST

from raybench.core.errors import SpecError
from raybench.core.spec import parse
from raybench.models.http_client import Malformed
from raybench.models.http_protocols import MlflowProtocol, V2Protocol, as_png, at_path
from raybench.models.http_template import TemplateProtocol, load_template

PIXELS = np.random.default_rng(0).random((3, 3, 4, 5), dtype=np.float32)
BYTES = np.random.default_rng(0).integers(0, 256, (3, 1, 4, 5), dtype=np.uint8)
SPEC = parse("http://h/x?protocol=json")


def test_mlflow_bodies_by_form() -> None:
    def body(**options: Any) -> Any:
        return json.loads(MlflowProtocol(**options).encode(PIXELS)[0])

    np.testing.assert_array_equal(np.array(body()["inputs"], np.float32), PIXELS)
    assert list(body(name="image")["inputs"]) == ["image"]
    assert np.shape(body(form="instances")["instances"]) == PIXELS.shape
    assert [list(one) for one in body(form="instances", name="x")["instances"]] == [["x"]] * 3
    nhwc = np.array(body(layout="nhwc")["inputs"], np.float32)
    np.testing.assert_array_equal(nhwc, PIXELS.transpose(0, 2, 3, 1))
    split = body(form="dataframe_split", layout="flat")["dataframe_split"]
    np.testing.assert_array_equal(np.array(split["data"], np.float32), PIXELS.reshape(3, -1))
    records = body(form="dataframe_records", layout="flat")["dataframe_records"]
    assert list(records[0]) == [str(i) for i in range(60)]
    assert records[2]["59"] == PIXELS[2, 2, 3, 4]


def test_mlflow_sends_pngs() -> None:
    for form in ("inputs", "instances", "dataframe_split", "dataframe_records"):
        wire = MlflowProtocol(form=form, name="image", png=True)
        content = json.loads(wire.encode(BYTES)[0])[form]
        found = {
            "inputs": lambda c: c["image"],
            "instances": lambda c: [one["image"] for one in c],
            "dataframe_split": lambda c: [row[c["columns"].index("image")] for row in c["data"]],
            "dataframe_records": lambda c: [one["image"] for one in c],
        }[form](content)
        for text, image in zip(found, BYTES, strict=True):
            np.testing.assert_allclose(from_png(text) * 255, image)


def test_png_of_colours_keeps_every_byte() -> None:
    import base64
    import io

    from PIL import Image

    colours = np.random.default_rng(1).integers(0, 256, (3, 6, 7), dtype=np.uint8)
    image = Image.open(io.BytesIO(base64.b64decode(as_png(colours))))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), colours)


def test_mlflow_answers_by_path() -> None:
    body = json.dumps({"predictions": {"scores": [[1, 2]], "other": 1}}).encode()
    assert MlflowProtocol(scores=("predictions", "scores")).decode(body, {}) == [[1, 2]]
    with pytest.raises(Malformed, match=r"nothing at predictions\.nope.*other.*scores"):
        MlflowProtocol(scores=("predictions", "nope")).decode(body, {})
    with pytest.raises(Malformed, match="no JSON: 8 bytes"):
        MlflowProtocol().decode(b'{"predic', {})
    with pytest.raises(Malformed, match="<html>"):
        MlflowProtocol().decode(b"<html><body>", {})


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
@pytest.mark.parametrize("binary", [False, True])
def test_v2_requests_hold_to_the_schema(datatype: str, binary: bool) -> None:
    pixels = BYTES if datatype == "UINT8" else PIXELS
    wire = V2Protocol(name="image", datatype=datatype, binary=binary, output="scores")
    body, headers = wire.encode(pixels)
    head = body[: int(headers[LENGTH])] if binary else body
    content = json.loads(head)
    jsonschema.validate(content, REQUEST)
    (tensor,) = content["inputs"]
    assert (tensor["shape"], tensor["datatype"]) == (list(pixels.shape), datatype)
    dtype = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "u1"}[datatype]
    if binary:
        assert tensor["parameters"]["binary_data_size"] == len(body) - len(head)
        values = np.frombuffer(body[len(head) :], dtype)
    else:
        values = np.array(tensor["data"], dtype)
    np.testing.assert_array_equal(values.reshape(pixels.shape), pixels.astype(dtype))


def v2_answer(*outputs: dict[str, Any], raw: bytes = b"") -> tuple[bytes, dict[str, str]]:
    content = {"model_name": "m", "outputs": list(outputs)}
    jsonschema.validate(content, ANSWER)
    text = json.dumps(content).encode()
    return text + raw, {LENGTH: str(len(text))} if raw else {}


SCORES = np.random.default_rng(2).random((3, 4), dtype=np.float32)


@pytest.mark.parametrize("kind", ["<f4", "<f8", "<f2"])
def test_v2_binary_answers_are_exact(kind: str) -> None:
    values = SCORES.astype(kind)
    name = {"<f4": "FP32", "<f8": "FP64", "<f2": "FP16"}[kind]
    first = np.arange(5, dtype="<i8")
    outputs = [
        {
            "name": "ids",
            "shape": [5],
            "datatype": "INT64",
            "parameters": {"binary_data_size": 40},
        },
        {
            "name": "s",
            "shape": [3, 4],
            "datatype": name,
            "parameters": {"binary_data_size": values.nbytes},
        },
    ]
    body, headers = v2_answer(*outputs, raw=first.tobytes() + values.tobytes())
    np.testing.assert_array_equal(V2Protocol(name="x", output="s").decode(body, headers), values)
    found = V2Protocol(name="x", output="ids").decode(body, headers)
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ({"datatype": "FP32", "shape": [3, 4], "data": SCORES.reshape(-1).tolist()}, SCORES),
        ({"datatype": "FP32", "shape": [3, 4], "data": SCORES.tolist()}, SCORES),
        ({"datatype": "FP32", "shape": [3, 4, 1, 1], "data": SCORES.reshape(-1).tolist()}, SCORES),
        ({"datatype": "INT64", "shape": [3], "data": [4, 5, 6]}, [4, 5, 6]),
        (
            {"datatype": "BYTES", "shape": [2, 2], "data": ["0.5:3", "0.25:1:cat", "1:0", "0:9"]},
            [[("3", 0.5), ("1", 0.25)], [("0", 1.0), ("9", 0.0)]],
        ),
    ],
)
def test_v2_json_answers(output: dict[str, Any], expected: Any) -> None:
    body, headers = v2_answer({"name": "s", **output})
    found = V2Protocol(name="x").decode(body, headers)
    if isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("output", "raw", "said"),
    [
        ({"datatype": "FP32", "shape": [3, 4], "data": [1.0]}, b"", "1 values"),
        ({"datatype": "FP32", "shape": [], "data": []}, b"", "shape"),
        ({"datatype": "FP32", "shape": [1, 2], "data": ["a", "b"]}, b"", "2 values"),
        ({"datatype": "BF16", "shape": [1, 1], "data": [1]}, b"", "BF16"),
        ({"datatype": "BYTES", "shape": [1, 1], "data": ["cat"]}, b"", "score:index"),
        ({"datatype": "BYTES", "shape": [1, 2], "data": ["1:2"]}, b"", "1 texts"),
        (
            {"datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}},
            b"1234",
            "4 bytes",
        ),
        (
            {"datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 4}},
            b"12345678",
            "4 bytes",
        ),
    ],
)
def test_odd_v2_answers_are_refused(output: dict[str, Any], raw: bytes, said: str) -> None:
    body, headers = v2_answer({"name": "s", **output}, raw=raw)
    with pytest.raises(Malformed, match=said):
        V2Protocol(name="x").decode(body, headers)


def test_v2_answers_with_several_tensors_need_a_name() -> None:
    one = {"datatype": "INT64", "shape": [1], "data": [1]}
    body, headers = v2_answer({"name": "a", **one}, {"name": "b", **one})
    with pytest.raises(Malformed, match="the tensors a, b; scores= names the one"):
        V2Protocol(name="x").decode(body, headers)
    for length in ("-1", "9999", "x"):
        with pytest.raises(Malformed, match=LENGTH):
            V2Protocol(name="x").decode(body, {LENGTH: length})


def template(tmp_path: Path, text: str) -> TemplateProtocol:
    path = tmp_path / "api.yaml"
    path.write_text(text)
    return load_template(path, SPEC)


def test_template_with_one_element_an_image(tmp_path: Path) -> None:
    wire = template(
        tmp_path,
        """
        request: {model: digits-v3, instances: [{kind: grey}]}
        image: instances.*.image.b64
        encoding: png
        scores: results.*.probabilities
        """,
    )
    body = json.loads(wire.encode(BYTES)[0])
    assert body["model"] == "digits-v3"
    assert [one["kind"] for one in body["instances"]] == ["grey"] * 3
    for one, image in zip(body["instances"], BYTES, strict=True):
        np.testing.assert_allclose(from_png(one["image"]["b64"]) * 255, image)
    answer = {"results": [{"probabilities": [1, 0]}, {"probabilities": [0, 1]}]}
    assert wire.decode(json.dumps(answer).encode(), {}) == [[1, 0], [0, 1]]
    # The template itself stays as it was.
    assert json.loads(wire.encode(BYTES[:1])[0])["instances"][1:] == []


def test_template_with_a_tensor_and_one_with_a_single_image(tmp_path: Path) -> None:
    wire = template(tmp_path, '{"image": "data.0.values", "scores": "out", "layout": "nhwc",'
                    ' "request": {"data": [{"name": "x"}]}}')  # fmt: skip
    body = json.loads(wire.encode(PIXELS)[0])
    assert body["data"][0]["name"] == "x"
    values = np.array(body["data"][0]["values"], np.float32)
    np.testing.assert_array_equal(values, PIXELS.transpose(0, 2, 3, 1))
    single = template(tmp_path, "{image: p, scores: [a, 'b.c', 0], batch: false, layout: flat}")
    body = json.loads(single.encode(PIXELS[:1])[0])
    np.testing.assert_array_equal(np.array(body["p"], np.float32), PIXELS[0].reshape(-1))
    assert single.decode(b'{"a": {"b.c": [[0.5, 0.5]]}}', {}) == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "expected a mapping"),
        ("{image: x}", "scores must say where"),
        ("{scores: x}", "image must say where"),
        ("{image: x, scores: y, encodign: png}", "did you mean encoding"),
        ("{image: x, scores: y, encoding: jpeg}", "tensor or png"),
        ("{image: x, scores: y, layout: hwc}", "nchw or nhwc or flat"),
        ("{image: x, scores: y, batch: 1}", "true or false"),
        ("{image: x, scores: y, request: [1]}", "request must be a mapping"),
        ("{image: a..b, scores: y}", "empty or odd step"),
        ("{image: '*.x', scores: y}", "begins with"),
        ("{image: a.*.b.*, scores: y}", "one \\* alone"),
        ("{image: a.3.b, scores: y, request: {a: [{}]}}", "cannot be put"),
        ("{image: a.b, scores: y, request: {a: text}}", "stand in a str"),
        ("{image: 5, scores: y}", "must be a path"),
        ("{image: x, scores: y, label: 3}", "label must be text"),
        ("{image: x", "cannot be read"),
    ],
)
def test_odd_templates_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        template(tmp_path, text)
    with pytest.raises(SpecError, match="cannot be read"):
        load_template(tmp_path / "absent.yaml", SPEC)


def test_paths_into_answers() -> None:
    value = {"a": [{"b": 1}, {"b": 2}], "c.d": {"0": "x"}}
    assert at_path(value, ("a", "*", "b")) == [1, 2]
    assert at_path(value, ("a", "1", "b")) == 2
    assert at_path(value, ("c.d", 0)) == "x"
    for path in (("a", "5", "b"), ("a", "b"), ("x",), ("c.d", "*"), ("a", "0", "b", "c")):
        with pytest.raises(Malformed, match="nothing at"):
            at_path(value, path)
