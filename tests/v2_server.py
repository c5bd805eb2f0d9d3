"""A small ASGI server of the Open Inference Protocol, strict about what the protocol says.

Every request and every answer is validated against the published schemas, written down here from
https://github.com/kserve/open-inference-protocol (REST), and the binary extension's rules from
https://kserve.github.io/website (binary tensor data). It runs the linear network of
`http_servers`.
"""

import json
from typing import Any

import jsonschema
import numpy as np
from http_servers import CLASSES, softmax
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "u1", "INT64": "<i8"}
LENGTH = "Inference-Header-Content-Length"

_WHOLE = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}
_TENSOR_DATA = {"type": "array"}
_TENSOR = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "shape": {"type": "array", "items": _WHOLE},
        "datatype": _TEXT,
        "parameters": {"type": "object"},
        "data": _TENSOR_DATA,
    },
    "required": ["name", "shape", "datatype"],
    "additionalProperties": False,
    # Data stand in the JSON, or behind it under the binary extension; never both or neither.
    "oneOf": [
        {"required": ["data"]},
        {
            "required": ["parameters"],
            "properties": {
                "parameters": {
                    "properties": {"binary_data_size": _WHOLE},
                    "required": ["binary_data_size"],
                }
            },
        },
    ],
}
REQUEST = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        "inputs": {"type": "array", "items": _TENSOR, "minItems": 1},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": _TEXT,
                    "parameters": {
                        "type": "object",
                        "properties": {
                            "binary_data": {"type": "boolean"},
                            "classification": {"type": "integer", "minimum": 1},
                        },
                    },
                },
                "required": ["name"],
                "additionalProperties": False,
            },
        },
    },
    "required": ["inputs"],
    "additionalProperties": False,
}
ANSWER = {
    "type": "object",
    "properties": {
        "model_name": _TEXT,
        "model_version": _TEXT,
        "id": _TEXT,
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
    "required": ["model_name", "outputs"],
    "additionalProperties": False,
}
_DESCRIBED = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "datatype": _TEXT,
        "shape": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name", "datatype", "shape"],
}
METADATA = {
    "type": "object",
    "properties": {
        "name": _TEXT,
        "versions": {"type": "array", "items": _TEXT},
        "platform": _TEXT,
        "inputs": {"type": "array", "items": _DESCRIBED},
        "outputs": {"type": "array", "items": _DESCRIBED},
    },
    "required": ["name", "platform", "inputs", "outputs"],
}


class V2Server:
    """The application, and what it was asked: `seen` holds each decoded input tensor.

    Args:
        datatype: of the input.
        layout: "nchw" or "nhwc".
        second: a second output tensor stands before the scores.
        nested: JSON data are nested lists instead of flat ones: both are allowed.
    """

    def __init__(
        self,
        *,
        datatype: str = "FP32",
        layout: str = "nchw",
        second: bool = False,
        nested: bool = False,
    ) -> None:
        self.datatype, self.layout, self.second, self.nested = datatype, layout, second, nested
        self.seen: list[np.ndarray] = []
        self.bodies: list[bytes] = []
        self.app = Starlette(
            routes=[
                Route("/v2/models/digits", self.metadata),
                Route("/v2/models/digits/infer", self.infer, methods=["POST"]),
            ]
        )

    async def metadata(self, request: Request) -> Response:
        side = [-1, 1, 8, 8] if self.layout == "nchw" else [-1, 8, 8, 1]
        outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, CLASSES]}]
        if self.second:
            outputs.insert(0, {"name": "features", "datatype": "FP32", "shape": [-1, 64]})
        content = {
            "name": "digits",
            "versions": ["1"],
            "platform": "numpy",
            "inputs": [{"name": "image", "datatype": self.datatype, "shape": side}],
            "outputs": outputs,
        }
        jsonschema.validate(content, METADATA)
        return JSONResponse(content)

    async def infer(self, request: Request) -> Response:
        body = await request.body()
        self.bodies.append(body)
        try:
            return self._infer(body, dict(request.headers))
        except (jsonschema.ValidationError, AssertionError, ValueError) as error:
            return JSONResponse({"error": str(error).splitlines()[0]}, status_code=400)

    def _infer(self, body: bytes, headers: dict[str, str]) -> Response:
        length = headers.get(LENGTH.lower())
        head = body if length is None else body[: int(length)]
        content = json.loads(head)
        jsonschema.validate(content, REQUEST)
        (tensor,) = content["inputs"]
        assert tensor["name"] == "image", "no input of this name"
        assert tensor["datatype"] == self.datatype, f"{tensor['datatype']} is not the datatype"
        dtype = np.dtype(TYPES[self.datatype])
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            assert length is None, "no binary data, but a length of the JSON"
            assert headers["content-type"] == "application/json"
            assert self.datatype != "FP16", "FP16 has no form in JSON"
            values = np.array(tensor["data"], dtype)
        else:
            assert length is not None, "binary data need the length of the JSON"
            assert len(body) == int(length) + size, "bytes are missing or left over"
            values = np.frombuffer(body[int(length) :], dtype)
        assert values.size == np.prod(tensor["shape"]), "data do not fill the shape"
        images = values.reshape(tensor["shape"]).astype(np.float32)
        if self.datatype == "UINT8":
            images = images / np.float32(255)
        if self.layout == "nhwc":
            images = images.transpose(0, 3, 1, 2)
        assert images.shape[1:] == (1, 8, 8), f"images of shape {images.shape}"
        self.seen.append(images)
        return self._answer(images, content)

    def _answer(self, images: np.ndarray, content: dict[str, Any]) -> Response:
        named = {"scores": softmax(images)}
        if self.second:
            named = {"features": images.reshape(len(images), -1), **named}
        asked = {one["name"]: one.get("parameters", {}) for one in content.get("outputs", [])}
        everything = content.get("parameters", {}).get("binary_data_output", False)
        outputs, raw = [], b""
        for name, values in named.items():
            if asked and name not in asked:
                continue
            wants = asked.get(name, {})
            if "classification" in wants:
                outputs.append(_classified(name, values, wants["classification"]))
                continue
            output: dict[str, Any] = {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP32",
            }
            if wants.get("binary_data", everything):
                part = np.ascontiguousarray(values, "<f4").tobytes()
                output["parameters"] = {"binary_data_size": len(part)}
                raw += part
            else:
                output["data"] = (values if self.nested else values.reshape(-1)).tolist()
            outputs.append(output)
        answer = {"model_name": "digits", "model_version": "1", "outputs": outputs}
        jsonschema.validate(answer, ANSWER)
        text = json.dumps(answer).encode()
        if not raw:
            return Response(text, media_type="application/json")
        headers = {LENGTH: str(len(text))}
        return Response(text + raw, media_type="application/octet-stream", headers=headers)


def _classified(name: str, values: np.ndarray, count: int) -> dict[str, Any]:
    """Return the most likely classes as Triton's classification extension writes them."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    texts = [
        f"{values[row, index]:.6f}:{index}"
        for row, indices in enumerate(order)
        for index in indices
    ]
    return {"name": name, "shape": [len(values), count], "datatype": "BYTES", "data": texts}
