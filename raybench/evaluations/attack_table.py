"""Every attack that can be named: where its kernel is, what it needs, and its settings.

One line for each attack; a test runs the contract over every line, and every file of
``kernels/attacks`` must have one. Kernels are named as text, so that reading a spec imports none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import import_module
from typing import Any

from raybench.core.spec import boolean
from raybench.core.types import Access

__all__ = ["ATTACKS", "AttackKind", "Setting", "fraction_text"]

LINF, LP, ALL = ("linf",), ("linf", "l2"), ("linf", "l2", "l1")


@dataclass(frozen=True, slots=True)
class Setting:
    """One option of an attack: how it is read, its default as text, and what it means.

    A default that starts with ``eps`` is that multiple of the budget: ``eps*1/4``.
    """

    read: Callable[[str], Any]
    default: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackKind:
    """One line of the table.

    Attributes:
        kernel: "module:function" below ``raybench.kernels.attacks``.
        summary: one line for people.
        source: paper, and section of the specification.
        requires: the access level it needs.
        goal: "budget" (succeed within eps) or "minimal" (nearest success, then compared with eps).
        norms: the norms it knows; the first is the default.
        passes: arguments the kernel takes of "keys", "norm", "eps", "targeted", and "start", an
            image of the wanted class for each, or None where the attack is untargeted.
        targeted: "no", "yes" (may be) or "only".
        least_classes: fewest classes it can work with.
        settings: its own options by name.
        fixed: further arguments, not to be set.
    """

    kernel: str
    summary: str
    source: str
    requires: Access = Access.GRADIENTS
    goal: str = "budget"
    norms: tuple[str, ...] = LP
    passes: tuple[str, ...] = ("keys", "norm", "eps", "targeted")
    targeted: str = "yes"
    least_classes: int = 2
    settings: Mapping[str, Setting] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)

    def resolve(self) -> Callable[..., Any]:
        """Import and return the kernel."""
        module, _, name = self.kernel.partition(":")
        found: Callable[..., Any] = getattr(
            import_module(f"raybench.kernels.attacks.{module}"), name
        )
        return found


def fraction_text(raw: str) -> str:
    """Return the one spelling of a positive number such as ``8/255`` or ``0.30``, exactly.

    A decimal where it ends within six places, else 255ths, which is how people name budgets, else a
    fraction in lowest terms.
    """
    try:
        value = Fraction(raw)
    except (ValueError, ZeroDivisionError):
        raise ValueError("expected a number or a fraction such as 8/255") from None
    if value <= 0:
        raise ValueError("expected a number above 0")
    if 10**6 % value.denominator == 0:
        return f"{float(value):.6f}".rstrip("0").rstrip(".")
    if 255 % value.denominator == 0:
        return f"{value.numerator * (255 // value.denominator)}/255"
    return str(value)


def _count(raw: str) -> int:
    if not (raw.isascii() and raw.isdigit() and int(raw) >= 1):
        raise ValueError("expected a whole number of at least 1")
    return int(raw)


def _number(raw: str) -> float:
    value = float(Fraction(raw)) if "/" in raw else float(raw)
    if not 0 <= value < float("inf"):
        raise ValueError("expected a finite number of at least 0")
    return value


def _loss(raw: str) -> str:
    if raw not in ("ce", "margin", "dlr"):
        raise ValueError("expected ce, margin or dlr")
    return raw


def _version(raw: str) -> str:
    if raw not in ("standard", "plus", "rand"):
        raise ValueError("expected standard, plus or rand")
    return raw


def steps(default: int) -> Setting:
    """Return the option ``steps``."""
    return Setting(_count, str(default), "iterations")


_STEP = Setting(fraction_text, "eps*1/4", "step size in pixel units")
_RESTARTS = Setting(_count, "1", "random restarts; the best is kept")
_LOSS = Setting(_loss, "ce", "loss that is ascended: ce, margin or dlr")
_MARGIN = Setting(_loss, "margin", "loss that is ascended: ce or margin")
_EOT = Setting(_count, "1", "gradients averaged over a random defence (EOT)")
_TARGETS = Setting(_count, "9", "classes aimed at, most likely first")

ATTACKS: Mapping[str, AttackKind] = {
    "fgsm": AttackKind(
        kernel="fgsm:fgsm",
        summary="one step along the sign of the gradient",
        source="Goodfellow et al. 2015; spec 02 section 2.1",
        passes=("norm", "eps", "targeted"),
    ),
    "bim": AttackKind(
        kernel="pgd:pgd",
        summary="iterated FGSM without a random start",
        source="Kurakin et al. 2017; spec 02 section 2.2",
        settings={
            "steps": steps(10),
            "step_size": Setting(fraction_text, "eps*1/10", "step size in pixel units"),
        },
        fixed={"random_start": False},
    ),
    "pgd": AttackKind(
        kernel="pgd:pgd",
        summary="projected gradient ascent from a random start",
        source="Madry et al. 2018; spec 02 section 2.3",
        settings={"steps": steps(40), "step_size": _STEP, "restarts": _RESTARTS, "loss": _LOSS},
    ),
    "apgd-ce": AttackKind(
        kernel="apgd:apgd",
        summary="parameter-free PGD on the cross-entropy",
        source="Croce and Hein 2020; spec 02 section 2.8",
        norms=ALL,
        settings={"steps": steps(100), "restarts": _RESTARTS, "eot": _EOT},
        fixed={"loss": "ce"},
    ),
    "apgd-dlr": AttackKind(
        kernel="apgd:apgd",
        summary="parameter-free PGD on the difference of logits ratio",
        source="Croce and Hein 2020; spec 02 section 2.8",
        norms=ALL,
        passes=("keys", "norm", "eps"),
        targeted="no",
        least_classes=3,
        settings={"steps": steps(100), "restarts": _RESTARTS, "eot": _EOT},
        fixed={"loss": "dlr"},
    ),
    "apgd-t": AttackKind(
        kernel="apgd:apgd_targeted",
        summary="parameter-free PGD on the targeted ratio, over several target classes",
        least_classes=4,
        source="Croce and Hein 2020; spec 02 section 2.8",
        norms=ALL,
        passes=("keys", "norm", "eps"),
        targeted="no",
        settings={
            "steps": steps(100),
            "restarts": _RESTARTS,
            "num_targets": _TARGETS,
            "eot": _EOT,
        },
    ),
    "fab": AttackKind(
        kernel="fab:fab",
        summary="fast adaptive boundary: the nearest misclassified point",
        source="Croce and Hein 2020 (FAB); spec 02 section 2.8",
        goal="minimal",
        norms=ALL,
        settings={"steps": steps(100), "restarts": _RESTARTS},
    ),
    "fab-t": AttackKind(
        kernel="fab:fab_targeted",
        summary="fast adaptive boundary against several target classes",
        source="Croce and Hein 2020 (FAB); spec 02 section 2.8",
        goal="minimal",
        norms=ALL,
        passes=("keys", "norm", "eps"),
        targeted="no",
        settings={"steps": steps(100), "restarts": _RESTARTS, "num_targets": _TARGETS},
    ),
    "square": AttackKind(
        kernel="square:square",
        summary="random search with squares, scores only",
        source="Andriushchenko et al. 2020; spec 03 section 3.4",
        requires=Access.SCORES,
        norms=ALL,
        settings={
            "queries": Setting(_count, "5000", "queries an image"),
            "p": Setting(_number, "0.8", "share of the image in the first square"),
            "restarts": _RESTARTS,
        },
    ),
    "noise": AttackKind(
        kernel="noise:random_noise",
        summary="random noise in the ball: what any attack must beat",
        source="spec 03 section 3.6",
        requires=Access.SCORES,
        norms=ALL,
        settings={
            "tries": Setting(_count, "100", "draws an image"),
            "corners": Setting(boolean, "false", "draw signs at full size (linf)"),
        },
    ),
    "carlini-l2": AttackKind(
        kernel="carlini:carlini_l2",
        summary="nearest misclassified point in L2, by Adam and a search over the weight",
        source="Carlini and Wagner 2017; spec 02 section 2.5",
        goal="minimal",
        norms=("l2",),
        passes=("targeted",),
        settings={
            "steps": steps(1000),
            "search_steps": Setting(_count, "9", "values of the weight tried"),
            "confidence": Setting(_number, "0", "margin asked for, in logits"),
            "lr": Setting(_number, "0.01", "step size of Adam"),
        },
    ),
    "carlini-linf": AttackKind(
        kernel="carlini:carlini_linf",
        summary="nearest misclassified point in Linf, by a falling bound",
        source="Carlini and Wagner 2017; spec 02 section 2.5",
        goal="minimal",
        norms=("linf",),
        passes=("targeted",),
        settings={
            "steps": steps(1000),
            "confidence": Setting(_number, "0", "margin asked for, in logits"),
            "lr": Setting(_number, "0.005", "step size of Adam"),
        },
    ),
    "carlini-l0": AttackKind(
        kernel="carlini_l0:carlini_l0",
        summary="fewest pixels, by freezing those that matter least",
        source="Carlini and Wagner 2017; spec 02 section 2.5",
        goal="minimal",
        norms=("l0",),
        passes=("targeted",),
        settings={
            "steps": steps(1000),
            "confidence": Setting(_number, "0", "margin asked for, in logits"),
            "lr": Setting(_number, "0.01", "step size of Adam"),
        },
    ),
    "deepfool": AttackKind(
        kernel="deepfool:deepfool",
        summary="steps to the nearest linearised boundary",
        source="Moosavi-Dezfooli et al. 2016; spec 02 section 2.6",
        goal="minimal",
        norms=("l2", "linf"),
        passes=("norm",),
        targeted="no",
        settings={
            "steps": steps(50),
            "overshoot": Setting(_number, "0.02", "share added to the whole step"),
            "candidates": Setting(_count, "10", "classes considered, most likely first"),
        },
    ),
    "jsma": AttackKind(
        kernel="jsma:jsma",
        summary="pairs of pixels by saliency, towards a target",
        source="Papernot et al. 2016; spec 02 section 2.7",
        goal="minimal",
        norms=("l0",),
        passes=(),
        targeted="only",
        settings={
            "theta": Setting(_number, "1", "change of a pixel"),
            "gamma": Setting(_number, "0.1", "largest share of pixels changed"),
        },
    ),
    "lbfgs": AttackKind(
        kernel="lbfgs:lbfgs",
        summary="L-BFGS-B on distance and loss, one image at a time (slow)",
        source="Szegedy et al. 2014; spec 02 section 2.4",
        goal="minimal",
        norms=("l2",),
        passes=("targeted",),
        settings={
            "search_steps": Setting(_count, "5", "values of the weight tried"),
            "max_iter": Setting(_count, "1000", "iterations of each"),
        },
    ),
    "finite-differences": AttackKind(
        kernel="estimated:finite_differences",
        summary="gradient ascent with differences along coordinates, scores only",
        source="spec 03 section 3.1",
        requires=Access.SCORES,
        settings={
            "steps": steps(20),
            "step_size": _STEP,
            "coordinates": Setting(_count, "256", "coordinates a step"),
            "loss": _MARGIN,
        },
    ),
    "nes": AttackKind(
        kernel="estimated:nes",
        summary="gradient ascent with antithetic Gaussian differences, scores only",
        source="Ilyas et al. 2018; spec 03 section 3.2",
        requires=Access.SCORES,
        settings={
            "queries": Setting(_count, "10000", "queries an image"),
            "samples": Setting(_count, "50", "queries a step"),
            "sigma": Setting(_number, "0.001", "size of the differences"),
            "loss": _MARGIN,
        },
    ),
    "spsa": AttackKind(
        kernel="estimated:spsa",
        summary="gradient ascent with simultaneous sign differences and Adam, scores only",
        source="Uesato et al. 2018; spec 03 section 3.3",
        requires=Access.SCORES,
        settings={
            "queries": Setting(_count, "10000", "queries an image"),
            "samples": Setting(_count, "128", "queries a step"),
            "delta": Setting(_number, "0.01", "size of the differences"),
            "loss": _MARGIN,
        },
    ),
    "hopskipjump": AttackKind(
        kernel="hopskipjump:hopskipjump",
        summary="walks the boundary, predicted classes only",
        source="Chen et al. 2020; spec 03 section 3.5",
        requires=Access.LABELS,
        goal="minimal",
        norms=("l2", "linf"),
        passes=("keys", "norm", "targeted", "start"),
        settings={"queries": Setting(_count, "5000", "queries an image")},
    ),
    "autoattack": AttackKind(
        kernel="autoattack:autoattack",
        summary="APGD, FAB and Square in a cascade on what is still robust",
        source="Croce and Hein 2020; spec 02 section 2.8",
        passes=("keys", "norm", "eps"),
        norms=ALL,
        targeted="no",
        settings={"version": Setting(_version, "standard", "standard, plus or rand")},
    ),
}
