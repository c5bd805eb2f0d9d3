"""What a v2 server says of its model, put into the spec where that leaves it open.

    complete(parse("http://h:8000/v2/models/net?protocol=v2"), client, address)
    # ...?classes=10&input=image&protocol=v2&scores=probabilities&shape=1x8x8

The finished spec goes to the workers, which then need not ask, and into the results, where it says
what was understood.
"""

from collections.abc import Mapping
from typing import Any

from raybench.core.errors import OutputError, SpecError
from raybench.core.spec import Spec
from raybench.models.http_address import Address
from raybench.models.http_client import Client, Malformed
from raybench.models.http_protocols import DATATYPES, read_json

__all__ = ["complete"]

_MOST_BYTES = 1 << 20


def complete(spec: Spec, client: Client, address: Address) -> Spec:
    """Return `spec` with input, shape, classes and scores as the server's metadata has them.

    Nothing is asked where the spec says enough, or of another protocol than v2.

    Raises:
        SpecError: the metadata cannot be had, or names other tensors than the spec.
    """
    open_ = [name for name in ("input", "shape", "classes") if spec.get(name) is None]
    if spec.get("topk") is not None and spec.get("scores") is None:
        open_.append("scores")
    if spec.get("protocol") != "v2" or not open_:
        return spec
    try:
        found = client.ask(
            None,
            {"Accept": "application/json"},
            queries=0,
            most=_MOST_BYTES,
            read=_tensors,
            target=address.target,
        )
    except (SpecError, OutputError) as error:
        wanted = ", ".join(f"{name}=" for name in open_)
        raise SpecError(f"{error}. Without the server's metadata the spec needs {wanted}") from None
    given = _choose(found[0], spec.get("input"), spec, "input")
    taken = _choose(found[1], spec.get("scores"), spec, "scores")
    values: dict[str, Any] = {
        "input": given["name"],
        "scores": taken["name"],
        "shape": _image_shape(given, spec.get("layout") or "nchw"),
        "classes": _classes(taken),
    }
    if given["datatype"] in DATATYPES and given["datatype"] != "FP32":
        values["datatype"] = given["datatype"]
    values = {name: value for name, value in values.items() if spec.get(name) is None}
    return spec.with_options(**{name: value for name, value in values.items() if value})


Tensor = Mapping[str, Any]


def _tensors(body: bytes, headers: Mapping[str, str]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the input and output tensors that metadata describes."""
    del headers
    content = read_json(body)
    groups = [content.get(key) if isinstance(content, dict) else None for key in _GROUPS]
    for group in groups:
        if not isinstance(group, list) or not group or not all(map(_described, group)):
            raise Malformed("the metadata describes no inputs and outputs")
    return groups[0], groups[1]  # type: ignore[return-value]


_GROUPS = ("inputs", "outputs")


def _described(tensor: Any) -> bool:
    return (
        isinstance(tensor, dict)
        and isinstance(tensor.get("name"), str)
        and isinstance(tensor.get("datatype"), str)
        and isinstance(tensor.get("shape"), list)
        and all(isinstance(side, int) for side in tensor["shape"])
    )


def _choose(tensors: list[Tensor], name: str | None, spec: Spec, option: str) -> Tensor:
    names = [str(tensor["name"]) for tensor in tensors]
    if name is None and len(tensors) == 1:
        return tensors[0]
    for tensor in tensors:
        if tensor["name"] == name:
            return tensor
    raise SpecError(
        f"{spec}: {option}= must be one of the model's tensors: {', '.join(names)}"
        + (f"; found {name}" if name else "")
    )


def _image_shape(tensor: Tensor, layout: str) -> str | None:
    """Return CxHxW of a tensor of images, 0 for sides of any size; None where it shows none."""
    shape = [max(side, 0) for side in tensor["shape"]]
    if layout == "flat" or len(shape) != 4:
        return None
    channels, height, width = shape[1:] if layout == "nchw" else (shape[3], *shape[1:3])
    return f"{channels}x{height}x{width}" if channels else None


def _classes(tensor: Tensor) -> int | None:
    """Return K of a tensor [N, K], or of [N, K, 1, 1]; None where it does not say."""
    shape = tensor["shape"]
    last = [side for side in shape[1:] if side != 1]
    return last[0] if len(last) == 1 and last[0] > 1 else None
