"""A JSON API of anyone's making, described by a small file instead of code.

    # api.yaml (YAML or JSON)
    request: {model: digits-v3, instances: [{}]}   # sent as it is, with the images put in
    image: instances.*.image.b64                   # where; * is one element for each image
    encoding: png                                  # or tensor (the default)
    scores: results.*.probabilities                # where the answer says what it thinks

Paths have dots between keys and positions; a list of steps spells keys that hold dots. Without
``*`` the place of the image takes the list of all of them, or the image alone with ``batch:
false``, which asks about one image at a time.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raybench.core.errors import SpecError, near_miss
from raybench.core.spec import Spec
from raybench.models.http_protocols import LAYOUTS, Encoded, arrange, as_png, at_path, read_json

__all__ = ["TemplateProtocol", "load_template"]

_ENCODINGS = ("tensor", "png")
_KEYS = ("request", "image", "encoding", "layout", "batch", "scores", "label", "score")

Path_ = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateProtocol:
    """The protocol that a template describes; see the module.

    Attributes:
        request: the body without images.
        image: where they go.
        scores: where the answer says what it thinks of them.
        encoding: "tensor" (nested lists of numbers) or "png" (base64 text).
        layout: of a tensor, one of `LAYOUTS`.
        batch: several images in a request.
        label, score: keys of an answer's objects; see `AnswerReader`.
    """

    request: Mapping[str, Any]
    image: Path_
    scores: Path_
    encoding: str = "tensor"
    layout: str = "nchw"
    batch: bool = True
    label: str = "label"
    score: str = "score"

    def encode(self, pixels: np.ndarray) -> Encoded:
        """Return body and headers; see `WireProtocol`."""
        if self.encoding == "png":
            values: list[Any] = [as_png(image) for image in pixels]
        else:
            values = arrange(pixels, self.layout).tolist()
        assert self.batch or len(values) == 1, len(values)
        body = copy.deepcopy(dict(self.request))
        _put(body, self.image, values, self.batch)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return json.dumps(body, allow_nan=False).encode(), headers

    def decode(self, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return what is said of each image; see `WireProtocol`."""
        del headers
        found = at_path(read_json(body), self.scores)
        return found if self.batch or "*" in self.scores else [found]


def load_template(path: Path, spec: Spec) -> TemplateProtocol:
    """Return the protocol described by the file `path`; `spec` begins every message.

    Raises:
        SpecError: no such file, no YAML or JSON mapping, or a key that is missing or wrong.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{spec}: template {path} cannot be read: {error}") from error
    where = f"{spec}: template {path}"
    if not isinstance(content, dict):
        raise SpecError(f"{where}: expected a mapping, found {type(content).__name__}")
    for key in content:
        if key not in _KEYS:
            raise SpecError(f"{where}: no key is named {key!r}{near_miss(str(key), _KEYS)}")
    for key in ("image", "scores"):
        if key not in content:
            raise SpecError(f"{where}: {key} must say where in the JSON it stands")
    request = content.get("request", {})
    if not isinstance(request, dict):
        raise SpecError(f"{where}: request must be a mapping, found {type(request).__name__}")
    for key, known in (("encoding", _ENCODINGS), ("layout", LAYOUTS)):
        if content.get(key, known[0]) not in known:
            raise SpecError(f"{where}: {key} must be {' or '.join(known)}, found {content[key]!r}")
    batch = content.get("batch", True)
    if not isinstance(batch, bool):
        raise SpecError(f"{where}: batch must be true or false, found {batch!r}")
    for key in ("label", "score"):
        if not isinstance(content.get(key, ""), str):
            raise SpecError(f"{where}: {key} must be text, found {content[key]!r}")
    protocol = TemplateProtocol(
        request=request,
        image=_path(content["image"], f"{where}: image"),
        scores=_path(content["scores"], f"{where}: scores"),
        encoding=content.get("encoding", "tensor"),
        layout=content.get("layout", "nchw"),
        batch=batch,
        label=content.get("label", "label"),
        score=content.get("score", "score"),
    )
    try:
        # An image of one pixel shows whether the path leads anywhere.
        json.dumps(request, allow_nan=False)
        _put(copy.deepcopy(request), protocol.image, ["x"], batch)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise SpecError(f"{where}: the image cannot be put into the request: {error}") from error
    return protocol


def _path(raw: Any, where: str) -> Path_:
    steps = raw.split(".") if isinstance(raw, str) else raw
    if not isinstance(steps, list) or not steps:
        raise SpecError(f"{where} must be a path such as inputs.0.data, found {raw!r}")
    if not all(isinstance(step, str | int) and step != "" for step in steps):
        raise SpecError(f"{where} has an empty or odd step: {raw!r}")
    if steps.count("*") > 1:
        raise SpecError(f"{where} may have one * alone: it stands for the images")
    return tuple(steps)


def _put(body: Any, path: Path_, values: list[Any], batch: bool) -> None:
    """Put `values`, one an image, at `path` into `body`, making the mappings that are missing."""
    step, rest = path[0], path[1:]
    if step == "*":
        raise ValueError("the path begins with *, but the body is a mapping; name its key first")
    key: str | int = step
    if isinstance(body, list):
        if not str(step).isdigit():
            raise ValueError(f"{step!r} is no position in a list")
        key = int(step)
    elif not isinstance(body, dict):
        raise ValueError(f"{step!r} is to stand in a {type(body).__name__}")
    if not rest:
        body[key] = values if batch else values[0]
        return
    if rest[0] == "*":
        body[key] = [
            _filled(body.get(key) if isinstance(body, dict) else body[key], rest[1:], value)
            for value in values
        ]
        return
    if isinstance(body, dict):
        body.setdefault(key, {})
    _put(body[key], rest, values, batch)


def _filled(elements: Any, path: Path_, value: Any) -> Any:
    """Return the element of one image: a copy of the first in the request, if there is one."""
    if not path:
        return value
    element = copy.deepcopy(elements[0]) if isinstance(elements, list) and elements else {}
    _put(element, path, [value], batch=False)
    return element
