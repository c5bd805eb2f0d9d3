"""From a spec's options to the protocol that speaks to the server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybench.core.errors import SpecError
from raybench.core.spec import Spec
from raybench.models.http_protocols import MlflowProtocol, V2Protocol, WireProtocol
from raybench.models.http_template import load_template

__all__ = ["choose_wire"]


def choose_wire(
    spec: Spec, values: Mapping[str, Any]
) -> tuple[WireProtocol, str | None, dict[str, str]]:
    """Return the protocol that the options `values` describe, and what goes with it.

    That is what carries pixels in 8 bits ("PNG", "UINT8"), or None where they are floats; and the
    keys of a class and its number in answers made of objects, where the options name them.

    Raises:
        SpecError: options that are missing, or that contradict each other.
    """
    kind = values["protocol"]
    keys = {name: values[name] for name in ("label", "score") if name in values}
    if kind == "json":
        if "template" not in values:
            raise SpecError(f"{spec}: template= must name the file that describes the API")
        template = load_template(Path(values["template"]).expanduser(), spec)
        keys = {"label": template.label, "score": template.score}
        return template, "PNG" if template.encoding == "png" else None, keys
    if kind == "v2":
        datatype = values.get("datatype", "FP32")
        if datatype == "FP16" and not values.get("binary", False):
            raise SpecError(f"{spec}: FP16 has no form in JSON; add binary=true")
        if values.get("topk") is not None and "scores" not in values:
            raise SpecError(f"{spec}: topk= needs scores=, the name of the output to classify")
        if "input" not in values:
            raise SpecError(
                f"{spec}: input= must name the model's input tensor; the server's metadata does not"
            )
        v2 = V2Protocol(
            name=values["input"],
            datatype=datatype,
            layout=values.get("layout", "nchw"),
            binary=values.get("binary", False),
            output=values.get("scores"),
            topk=values.get("topk"),
        )
        return v2, "UINT8" if datatype == "UINT8" else None, keys
    form, png = values.get("format", "inputs"), values.get("encoding") == "png"
    table = form.startswith("dataframe")
    if png and form == "dataframe_records" and "input" not in values:
        raise SpecError(f"{spec}: input= must name the column of images in dataframe_records")
    if table and not png and "input" in values:
        raise SpecError(f"{spec}: a {form} of pixels has a column for each; input= is for PNGs")
    if table and values.get("layout", "flat") != "flat":
        raise SpecError(f"{spec}: a {form} holds no tensors; use layout=flat or format=inputs")
    if png and "layout" in values:
        raise SpecError(f"{spec}: layout= is for tensors; encoding=png sends pictures")
    mlflow = MlflowProtocol(
        form=form,
        layout="flat" if table else values.get("layout", "nchw"),
        name=values.get("input"),
        png=png,
        scores=tuple(values.get("scores", "predictions").split(".")),
    )
    return mlflow, "PNG" if png else None, keys
