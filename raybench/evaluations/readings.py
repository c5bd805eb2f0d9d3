"""Reading specs: from what a user types to an evaluation's settings.

>>> parse_reading("superpixel", samples=1000, shape=(3, 224, 224)).canonical()
'superpixel?fill=mean&kernel_size=4.0&samples=1000&target=prob_pred'
"""

from raybench.core.errors import SpecError, near_miss
from raybench.core.spec import boolean, parse
from raybench.evaluations.lime import READINGS as LIME_READINGS
from raybench.evaluations.lime import LimeEvaluation
from raybench.evaluations.radius import FLIP_RADIUS, RadiusEvaluation

__all__ = ["READINGS", "parse_reading"]

READINGS = {
    **LIME_READINGS,
    FLIP_RADIUS: "no LIME: the distance at which the prediction changes, found by queries",
}


def parse_reading(
    text: str, *, samples: int, shape: tuple[int, int, int]
) -> LimeEvaluation | RadiusEvaluation:
    """Return the evaluation that a reading spec names, decided for images of `shape` (C, H, W).

    Args:
        text: ``reading?target=...&fill=...``; see `LimeEvaluation` for the options.
        samples: k, unless the spec sets ``samples`` itself.
        shape: (C, H, W).

    Raises:
        SpecError: an unknown reading, option or value.
        InputError: settings that images of this shape cannot satisfy.
    """
    spec = parse(text)
    if spec.scheme not in READINGS:
        raise SpecError(f"no reading is named {spec.scheme!r}{near_miss(spec.scheme, READINGS)}")
    if spec.rest:
        raise SpecError(f"reading {text!r}: expected reading?option=value, found {spec.rest!r}")
    if spec.scheme == FLIP_RADIUS:
        chosen = {"samples": samples} | spec.read_options({"samples": int})
        return RadiusEvaluation(**chosen)
    options = spec.read_options(
        {
            "target": str,
            "fill": _fill,
            "samples": int,
            "design": str,
            "cells": int,
            "segmentation": str,
            "kernel_size": float,
            "count": int,
            "sigma": float,
            "alpha": float,
            "force": boolean,
        }
    )
    settings = {"samples": samples} | options
    return LimeEvaluation(reading=spec.scheme, **settings).resolved(shape)


def _fill(raw: str) -> str:
    if raw in ("mean", "blur"):
        return raw
    try:
        return repr(float(raw))
    except ValueError:
        raise ValueError("expected mean, blur, or a number in [0, 1]") from None
