"""The options of an HTTP model, read and checked before anything is asked.

>>> spec = parse("http://127.0.0.1:5000/invocations?protocol=mlflow&shape=1x8x8&classes=10")
>>> address, settings = read_settings(spec)    # where, and how fast
>>> asking = read_asking(spec)                 # what is sent, and how answers are read
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from raybench.core.errors import SpecError, near_miss
from raybench.core.keys import digest
from raybench.core.spec import Spec, boolean
from raybench.core.types import Access
from raybench.models import options as shared
from raybench.models.http_address import Address, looks_secret, may_be_private, parse_address
from raybench.models.http_answers import AnswerReader
from raybench.models.http_client import Settings
from raybench.models.http_protocols import DATATYPES, FORMS, LAYOUTS, WireProtocol
from raybench.models.http_template import TemplateProtocol
from raybench.models.http_wire import choose_wire

__all__ = ["PROTOCOLS", "Asking", "read_asking", "read_settings"]

PROTOCOLS = ("mlflow", "v2", "json")

_NAMES_EVERYWHERE = ("access", "mean", "std", "shape", "output", "classes", "name")
_SETTINGS = {
    "budget": "budget",
    "rps": "rps",
    "concurrency": "concurrency",
    "timeout": "timeout_s",
    "retries": "retries",
    "backoff": "backoff_s",
    "header": "auth",
}
_RESERVED_HEADERS = ("host", "cookie", "content-length", "content-type", "transfer-encoding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """What an HTTP model is asked, and how its answers are read.

    Attributes:
        protocol: encodes and decodes.
        reader: makes scores or labels of what was decoded.
        shape: (C, H, W); H and W 0 for any size.
        access: what the model offers.
        mean, std: normalise pixels before they are sent; empty for none.
        eight_bit: what carries pixels as bytes ("PNG", "UINT8"), or None where they are floats.
        batch: images in a request, at most.
        version: what the user says is served, or None.
        cache: answers are kept.
        target: path and query that requests go to.
        name: what tables call it.
        identity: everything that decides what an answer means, as JSON values.
        warnings: what must be said beside every result.
    """

    protocol: WireProtocol
    reader: AnswerReader
    shape: tuple[int, int, int]
    access: Access
    mean: tuple[float, ...]
    std: tuple[float, ...]
    eight_bit: str | None
    batch: int
    version: str | None
    cache: bool
    target: str
    name: str
    identity: Mapping[str, Any]
    warnings: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """The digest of `identity`."""
        return digest(dict(self.identity))


def read_settings(spec: Spec) -> tuple[Address, Settings]:
    """Return where the model of `spec` is, and how it is asked.

    Raises:
        SpecError: an address or option that is refused, or a host that is on no list.
    """
    _no_secrets(spec)
    address = _base(spec)
    values = _read(spec).extra
    given = {
        field: values[name] for name, field in _SETTINGS.items() if values.get(name) is not None
    }
    return address, Settings(private=may_be_private(address, values.get("allow")), **given)


def read_asking(spec: Spec) -> Asking:
    """Return what the model of `spec` is asked.

    Raises:
        SpecError: an option is missing, unknown, or contradicts another.
    """
    options = _read(spec)
    values = options.extra
    address = _base(spec)
    kind = values["protocol"]
    for name, value in (("shape", options.shape), ("classes", options.classes)):
        if value is None:
            example = "shape=3x32x32" if name == "shape" else "classes=10"
            also = ", and the server's metadata does not" if kind == "v2" else ""
            raise SpecError(f"{spec}: {name}= must say what the API takes{also}, as {example}")
    assert options.shape is not None
    assert options.classes is not None
    if options.classes < 2:
        raise SpecError(f"{spec}: classes must be at least 2")
    output = spec.get("output") or "probabilities"
    protocol, eight_bit, keys = choose_wire(spec, values)
    access = _access(spec, options.access, output, values.get("topk"))
    _check_pixels(spec, options, eight_bit)
    names = _class_names(spec, values.get("labels"), options.classes)
    topk = values.get("topk")
    if topk is not None and topk > options.classes:
        raise SpecError(f"{spec}: topk={topk} is more than classes={options.classes}")
    reader = AnswerReader(
        classes=options.classes,
        output=output,
        names=names,
        topk=topk,
        renormalise=values.get("renormalise", False),
        **keys,
    )
    identity = {
        "address": address.url,
        "version": values.get("version"),
        "protocol": kind,
        "wire": asdict(protocol),  # type: ignore[call-overload]
        "answers": {"output": output, "topk": topk, "renormalise": reader.renormalise, **keys},
        "names": digest(names) if names else None,
        "shape": options.shape,
        "classes": options.classes,
        "mean": options.mean,
        "std": options.std,
    }
    batch = values.get("batch", 32)
    if isinstance(protocol, TemplateProtocol) and not protocol.batch:
        batch = 1
    return Asking(
        protocol=protocol,
        reader=reader,
        shape=options.shape,
        access=access,
        mean=options.mean,
        std=options.std,
        eight_bit=eight_bit,
        batch=batch,
        version=values.get("version"),
        cache=values.get("cache", True),
        target=address.target + ("/infer" if kind == "v2" else ""),
        name=options.name or _name(address),
        identity=identity,
        warnings=_warnings(eight_bit, values, topk, options.classes, access),
    )


def _warnings(
    eight_bit: str | None, values: Mapping[str, Any], topk: int | None, classes: int, access: Access
) -> tuple[str, ...]:
    found = []
    if eight_bit:
        found.append(
            f"images are sent as {eight_bit} of 8 bits: changes of less than half of 1/255 never "
            "reach the model"
        )
    if values.get("datatype") == "FP16":
        found.append("images are sent in half precision (FP16), about 3 digits")
    if topk is not None and topk < classes and access >= Access.SCORES:
        found.append(
            f"the API tells {topk} of {classes} classes; the probability left is spread evenly "
            "over the others"
        )
    return tuple(found)


def _read(spec: Spec) -> shared.Options:
    """Return all options of `spec`, each one known to its protocol."""
    raw = spec.get("protocol")
    if raw is None:
        raise SpecError(f"{spec}: protocol= must say how it is asked: {', '.join(PROTOCOLS)}")
    if raw not in PROTOCOLS:
        raise SpecError(f"{spec}: no protocol is named {raw!r}{near_miss(raw, PROTOCOLS)}")
    known = {**_EVERYWHERE, **_OF_PROTOCOL[raw]}
    for name, _ in spec.options:
        owners = [kind for kind, options in _OF_PROTOCOL.items() if name in options]
        if owners and name not in known:
            raise SpecError(f"{spec}: the option {name} belongs to protocol={' or '.join(owners)}")
    return shared.read(spec, known, common=_NAMES_EVERYWHERE)


def _base(spec: Spec) -> Address:
    """Return the address that identifies the model: for v2 without the verb at the end."""
    address = parse_address(spec)
    if spec.get("protocol") != "v2":
        return address
    if "?" in address.target:
        raise SpecError(f"{spec}: the address of a v2 model has no query string")
    target = address.target.rstrip("/").removesuffix("/infer")
    if "/v2/models/" not in target:
        raise SpecError(
            f"{spec}: expected {spec.scheme}://host:port/v2/models/NAME or .../versions/V, found "
            f"{address.target}"
        )
    return replace(address, target=target)


def _no_secrets(spec: Spec) -> None:
    """Refuse options that are named like credentials, without repeating their values."""
    for name, _ in spec.options:
        if looks_secret(name):
            raise SpecError(
                f"{spec.scheme} model: the option {name} looks like a credential; specs are stored "
                "beside results, so set RAYBENCH_HTTP_TOKEN instead (docs/http.md)"
            )


def _access(spec: Spec, asked: Access | None, output: str, topk: int | None) -> Access:
    offered = Access.LOGITS if output == "logits" else Access.SCORES
    access = offered if asked is None else asked
    if access > offered:
        raise SpecError(
            f"{spec}: access={access.name.lower()} is above what this API offers "
            f"({offered.name.lower()}); over HTTP there are labels, scores, and logits where "
            "output=logits"
        )
    if topk is not None and access >= Access.SCORES and output == "logits":
        raise SpecError(
            f"{spec}: topk={topk} of logits leaves the others unknown; use access=labels, or have "
            "the API give probabilities"
        )
    return access


def _check_pixels(spec: Spec, options: shared.Options, eight_bit: str | None) -> None:
    assert options.shape is not None
    if options.mean and eight_bit:
        raise SpecError(f"{spec}: mean and std cannot be applied to {eight_bit}, which holds bytes")
    if len(options.mean) not in (0, 1, options.shape[0]):
        raise SpecError(f"{spec}: mean and std need 1 or {options.shape[0]} values")


def _class_names(spec: Spec, path: str | None, classes: int) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{spec}: labels={path} cannot be read: {error}") from error
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != classes or len(set(names)) != classes:
        raise SpecError(
            f"{spec}: labels={path} holds {len(set(names))} different names on {len(names)} lines, "
            f"expected {classes}, one for each class in order"
        )
    return names


def _name(address: Address) -> str:
    """Return what tables call the model at `address`, unless name= says otherwise."""
    path = address.target.partition("?")[0]
    found = re.search(r"/v2/models/([^/]+)", path)
    last = path.rstrip("/").rpartition("/")[2]
    piece = found.group(1) if found else "" if last == "invocations" else last
    return f"{piece}@{address.netloc}" if piece else address.netloc


def _one_of(*names: str) -> Callable[[str], str]:
    def convert(raw: str) -> str:
        if raw not in names:
            raise ValueError(f"expected {' or '.join(names)}")
        return raw

    return convert


def _above_zero(raw: str) -> float:
    value = shared.floats(raw)[0] if "," not in raw else 0.0
    if not value > 0:
        raise ValueError("expected a number above 0")
    return value


def _at_most(largest: int, convert: Callable[[str], int]) -> Callable[[str], int]:
    def bounded(raw: str) -> int:
        value = convert(raw)
        if value > largest:
            raise ValueError(f"expected at most {largest}")
        return value

    return bounded


def _text(raw: str) -> str:
    if not raw.strip():
        raise ValueError("expected text")
    return raw


def _header(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", raw) or raw.lower() in _RESERVED_HEADERS:
        raise ValueError("expected bearer, basic or the name of a header such as x-api-key")
    return raw


_EVERYWHERE: Mapping[str, Callable[[str], Any]] = {
    "protocol": _one_of(*PROTOCOLS),
    "labels": _text,
    "topk": shared.positive,
    "renormalise": boolean,
    "version": _text,
    "batch": _at_most(4096, shared.positive),
    "rps": _above_zero,
    "budget": shared.positive,
    "concurrency": _at_most(64, shared.positive),
    "timeout": _above_zero,
    "retries": _at_most(100, shared.whole),
    "backoff": _above_zero,
    "allow": _text,
    "header": _header,
    "cache": boolean,
    "ledger": _text,
}
_OF_PROTOCOL: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "mlflow": {
        "format": _one_of(*FORMS),
        "encoding": _one_of("tensor", "png"),
        "layout": _one_of(*LAYOUTS),
        "input": _text,
        "scores": _text,
        "label": _text,
        "score": _text,
    },
    "v2": {
        "datatype": _one_of(*DATATYPES),
        "binary": boolean,
        "layout": _one_of(*LAYOUTS),
        "input": _text,
        "scores": _text,
    },
    "json": {"template": _text},
}
