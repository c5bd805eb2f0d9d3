"""Two published ways of asking a server about images: MLflow's scoring server, and protocol v2.

    mlflow = MlflowProtocol(form="inputs", layout="nchw")
    body, headers = mlflow.encode(pixels)              # float32 [N, C, H, W], or uint8 for PNG
    values = mlflow.decode(answer_body, answer_headers)  # a list about the N images

MLflow's ``/invocations`` takes ``inputs``, ``instances``, ``dataframe_split`` and
``dataframe_records`` and answers ``{"predictions": ...}`` (MLflow 2 and 3). Protocol v2, the Open
Inference Protocol, is that of KServe, Triton and MLServer; its binary extension sends tensors as
raw little-endian bytes behind the JSON.
"""

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from raybench.models.http_client import Malformed

__all__ = [
    "DATATYPES",
    "FORMS",
    "LAYOUTS",
    "MlflowProtocol",
    "V2Protocol",
    "WireProtocol",
    "arrange",
    "as_png",
    "at_path",
    "read_json",
]

LAYOUTS = ("nchw", "nhwc", "flat")
FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")
DATATYPES = {"FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "u1"}

_ANSWER_TYPES = {
    **DATATYPES,
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
}
_BINARY_LENGTH = "Inference-Header-Content-Length"
_JSON = {"Content-Type": "application/json", "Accept": "application/json"}

Encoded = tuple[bytes, dict[str, str]]


class WireProtocol(Protocol):
    """Turns pixels [N, C, H, W] into a request body, and an answer's body into N values."""

    def encode(self, pixels: np.ndarray) -> Encoded:
        """Return body and headers that ask about `pixels`, float32 or uint8 [N, C, H, W]."""
        ...

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return what is said of each image: a list or array of N; raise Malformed."""
        ...


def arrange(pixels: np.ndarray, layout: str) -> np.ndarray:
    """Return pixels [N, C, H, W] in one of `LAYOUTS`."""
    if layout == "nhwc":
        return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return pixels.reshape(len(pixels), -1) if layout == "flat" else pixels


def as_png(pixels: np.ndarray) -> str:
    """Return an image [C, H, W] uint8 as the base64 text of a PNG, grey or RGB."""
    image = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def read_json(body: bytes) -> Any:
    """Return the JSON value of `body`.

    Raises:
        Malformed: it is none: truncated, or an HTML page.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        start = body[:40].decode(errors="replace")
        raise Malformed(f"the answer is no JSON: {len(body)} bytes that begin {start!r}") from None


def at_path(value: Any, path: tuple[str | int, ...]) -> Any:
    """Return what stands at `path` in a JSON value; ``*`` stands for every element of a list.

    Raises:
        Malformed: there is nothing there.
    """
    for place, step in enumerate(path):
        if step == "*":
            if not isinstance(value, list):
                break
            return [at_path(each, path[place + 1 :]) for each in value]
        try:
            if isinstance(value, list):
                value = value[int(step)]
            elif isinstance(value, dict):
                value = value[step if step in value else str(step)]
            else:
                break
        except (KeyError, IndexError, ValueError):
            break
    else:
        return value
    there = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
    shown = ".".join(map(str, path))
    raise Malformed(f"the answer has nothing at {shown}: at {path[place]!r} it has {there}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowProtocol:
    """What ``mlflow models serve`` speaks.

    Attributes:
        form: one of `FORMS`.
        layout: one of `LAYOUTS`; dataframes of pixels are always flat.
        name: name of the input tensor, or of the column of PNGs; None for a single unnamed one.
        png: each image is the base64 text of a PNG.
        scores: path to what is said of the images.
    """

    form: str = "inputs"
    layout: str = "nchw"
    name: str | None = None
    png: bool = False
    scores: tuple[str | int, ...] = ("predictions",)

    def encode(self, pixels: np.ndarray) -> Encoded:
        """Return body and headers; see `WireProtocol`."""
        columns: list[Any] = [self.name] if self.png else []
        if self.png:
            values: list[Any] = [as_png(image) for image in pixels]
            rows = [[value] for value in values]
        else:
            values = rows = arrange(pixels, self.layout).tolist()
        content: Any = values
        if self.form == "inputs" and self.name:
            content = {self.name: values}
        elif self.form == "instances" and self.name:
            content = [{self.name: value} for value in values]
        elif self.form == "dataframe_split":
            content = {"data": rows} | ({"columns": columns} if self.name else {})
        elif self.form == "dataframe_records":
            names = columns if self.name else list(map(str, range(len(rows[0]))))
            content = [dict(zip(names, row, strict=True)) for row in rows]
        return json.dumps({self.form: content}, allow_nan=False).encode(), dict(_JSON)

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return the predictions; see `WireProtocol`."""
        del headers
        return at_path(read_json(body), self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class V2Protocol:
    """The Open Inference Protocol, with one image tensor in and one tensor of scores out.

    Attributes:
        name: name of the input tensor.
        datatype: one of `DATATYPES`.
        layout: one of `LAYOUTS`.
        binary: tensors are sent, and asked for, as raw bytes.
        output: name of the tensor of scores; None where the server has just one.
        topk: ask for so many classes of each image by Triton's classification extension.
    """

    name: str
    datatype: str = "FP32"
    layout: str = "nchw"
    binary: bool = False
    output: str | None = None
    topk: int | None = None

    def encode(self, pixels: np.ndarray) -> Encoded:
        """Return body and headers; see `WireProtocol`."""
        tensor = arrange(pixels, self.layout).astype(DATATYPES[self.datatype])
        content: dict[str, Any] = {
            "name": self.name,
            "shape": list(tensor.shape),
            "datatype": self.datatype,
        }
        raw = b""
        if self.binary:
            raw = tensor.tobytes()
            content["parameters"] = {"binary_data_size": len(raw)}
        else:
            content["data"] = tensor.reshape(-1).tolist()
        request: dict[str, Any] = {"inputs": [content]}
        wanted: dict[str, Any] = {"binary_data": True} if self.binary else {}
        if self.topk is not None:
            wanted = {"classification": self.topk}
        if self.output is not None:
            parameters = {"parameters": wanted} if wanted else {}
            request["outputs"] = [{"name": self.output} | parameters]
        elif wanted:
            request["parameters"] = {"binary_data_output": True}
        head = json.dumps(request, allow_nan=False).encode()
        if not self.binary:
            return head, dict(_JSON)
        # Any answer is taken: servers differ in what they call one that is half JSON.
        headers = {"Content-Type": "application/octet-stream", _BINARY_LENGTH: str(len(head))}
        return head + raw, headers

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return the output tensor [N, K] or [N]; see `WireProtocol`."""
        length = headers.get(_BINARY_LENGTH)
        if length is not None and not (length.isdigit() and int(length) <= len(body)):
            raise Malformed(f"the answer's {_BINARY_LENGTH} is {length[:20]!r}")
        split = len(body) if length is None else int(length)
        outputs = at_path(read_json(body[:split]), ("outputs",))
        if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
            raise Malformed("the answer's outputs are no list of tensors")
        found, start = None, split
        for output in outputs:
            size = (output.get("parameters") or {}).get("binary_data_size")
            end = start + (size if isinstance(size, int) and size >= 0 else 0)
            if output.get("name") == self.output or (self.output is None and len(outputs) == 1):
                found = (output, None if size is None else body[start:end])
            start = end
        if found is None:
            names = ", ".join(str(output.get("name")) for output in outputs)
            raise Malformed(f"the answer has the tensors {names}; scores= names the one to read")
        return self._tensor(*found)

    def _tensor(self, output: Mapping[str, Any], raw: bytes | None) -> Any:
        shape, kind = output.get("shape"), output.get("datatype")
        if (
            not isinstance(shape, list)
            or not shape
            or not all(isinstance(side, int) and side >= 0 for side in shape)
        ):
            raise Malformed(f"the output's shape is {shape!r}")
        if kind == "BYTES":
            return _classified(_flat(output.get("data")), shape)
        if kind not in _ANSWER_TYPES:
            raise Malformed(f"the output's datatype is {kind!r}, no number that is known here")
        dtype = np.dtype(_ANSWER_TYPES[kind])
        if raw is None:
            data = _flat(output.get("data"))
            values: np.ndarray = np.array([np.nan if v is None else v for v in data])
            if values.dtype.kind not in "fiu" or len(values) != np.prod(shape):
                raise Malformed(f"the output has {len(values)} values for the shape {shape}")
        else:
            if len(raw) != np.prod(shape) * dtype.itemsize:
                raise Malformed(f"the output has {len(raw)} bytes for {kind} of shape {shape}")
            values = np.frombuffer(raw, dtype)
        values = values.reshape(shape)
        # [N, 1] holds labels, [N, K, 1, 1] scores as some image networks leave them.
        return values.reshape(shape[0], -1) if len(shape) > 1 else values.tolist()


def _flat(data: Any) -> list[Any]:
    """Return the values of a tensor that is sent flat or nested: the protocol allows both."""
    if not isinstance(data, list):
        raise Malformed("the output has no data")
    values: list[Any] = []
    for each in data:
        values.extend(_flat(each) if isinstance(each, list) else [each])
    return values


def _classified(data: list[Any], shape: list[int]) -> list[list[tuple[Any, float]]]:
    """Return (class, score) pairs of each image from texts ``score:index`` or ``...:name``."""
    count = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if len(data) != shape[0] * count:
        raise Malformed(f"the output has {len(data)} texts for the shape {shape}")
    pairs: list[tuple[Any, float]] = []
    for text in data:
        score, colon, rest = str(text).partition(":")
        try:
            pairs.append((rest.partition(":")[0], float(score)))
        except ValueError:
            colon = ""
        if not colon:
            raise Malformed(f"the output holds {str(text)[:40]!r}, expected score:index")
    return [pairs[start : start + count] for start in range(0, len(pairs), count)]
