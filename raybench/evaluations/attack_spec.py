"""Attack specs: from what a user types to an evaluation's settings.

>>> parse_attack("pgd", norm="linf", eps="8/255", shape=(3, 32, 32), classes=10).canonical()
'pgd?eps=8/255&loss=ce&norm=linf&restarts=1&step_size=2/255&steps=40'
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from raybench.core.errors import InputError, SpecError, near_miss
from raybench.core.spec import boolean, parse
from raybench.evaluations.attack import AttackEvaluation
from raybench.evaluations.attack_table import ATTACKS, AttackKind, fraction_text

__all__ = ["parse_attack"]

_TARGETS = ("next", "least-likely")


def parse_attack(
    text: str,
    *,
    norm: str | None,
    eps: str | None,
    shape: tuple[int, int, int],
    classes: int | None,
    targeted: str | None = None,
    keep_images: bool = False,
) -> AttackEvaluation:
    """Return the evaluation that an attack spec names.

    Args:
        text: ``name?option=value``; its own ``norm``, ``eps``, ``targeted`` go before the others.
        norm: norm of the budget; None takes the attack's first.
        eps: budget, a number or a fraction such as 8/255.
        shape: (C, H, W) of the images.
        classes: K, where known.
        targeted: "next", "least-likely" or a class number; None for any wrong class.
        keep_images: keep the attacked images in the rows.

    Raises:
        SpecError: an unknown attack, option or value.
        InputError: a budget or target that images of this shape and number of classes cannot have.
    """
    spec = parse(text)
    if spec.scheme not in ATTACKS:
        raise SpecError(f"no attack is named {spec.scheme!r}{near_miss(spec.scheme, ATTACKS)}")
    if spec.rest:
        raise SpecError(f"attack {text!r}: expected attack?option=value, found {spec.rest!r}")
    kind = ATTACKS[spec.scheme]
    known: dict[str, Callable[[str], Any]] = dict.fromkeys(kind.settings, str)
    known |= {"norm": str.lower, "eps": str, "targeted": str, "keep_images": boolean}
    given = spec.read_options(known)
    norm = given.pop("norm", norm and norm.lower()) or kind.norms[0]
    eps = given.pop("eps", eps)
    targeted = given.pop("targeted", targeted)
    keep_images = given.pop("keep_images", keep_images)
    if norm not in kind.norms:
        raise SpecError(
            f"attack {spec.scheme}: norm must be {' or '.join(kind.norms)}, found {norm}"
        )
    eps = _budget(spec.scheme, kind, norm, eps, shape)
    _check_target(spec.scheme, kind, targeted, classes)
    options = {}
    for name, setting in kind.settings.items():
        raw = given.get(name, setting.default)
        if raw.startswith("eps*"):
            assert eps is not None
            raw = str(Fraction(eps) * Fraction(raw.removeprefix("eps*")))
        try:
            value = setting.read(raw)
        except ValueError as error:
            raise SpecError(f"attack {text!r}: option {name}={raw!r}: {error}") from error
        options[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return AttackEvaluation(
        attack=spec.scheme,
        norm=norm,
        eps=eps,
        targeted=targeted,
        options=tuple(sorted(options.items())),
        keep_images=keep_images,
    )


def _budget(
    name: str, kind: AttackKind, norm: str, eps: str | None, shape: tuple[int, int, int]
) -> str | None:
    """Return `eps` as an exact fraction, or say what is wrong with it."""
    if eps is None:
        if kind.goal == "budget":
            raise InputError(f"attack {name} needs a budget: give --eps, such as --eps 8/255")
        return None
    head = f"attack {name}: eps={eps}"
    try:
        text = fraction_text(eps)
    except ValueError as error:
        nothing = not eps.strip("0./")
        what = "a budget of 0 changes no image; give a number above 0" if nothing else error
        raise InputError(f"{head}: {what}") from error
    if norm == "l0" and Fraction(text) < 1:
        raise InputError(f"{head}: a budget in l0 counts pixels; give a number from 1 up")
    size = shape[0] * shape[1] * shape[2]
    pixels = shape[1] * shape[2]
    largest = {"linf": 1.0, "l2": size**0.5, "l1": float(size), "l0": float(pixels)}[norm]
    if Fraction(text) > largest:
        hint = f"; did you mean {eps}/255?" if norm == "linf" and Fraction(text) <= 255 else ""
        raise InputError(
            f"{head} is more than images in [0, 1] of this size can change in {norm} "
            f"({largest:g}){hint}"
        )
    return text


def _check_target(name: str, kind: AttackKind, targeted: str | None, classes: int | None) -> None:
    if targeted is None:
        if kind.targeted == "only":
            raise InputError(
                f"attack {name} is targeted only: give --targeted next, least-likely or a class"
            )
        return
    if kind.targeted == "no":
        raise InputError(f"attack {name} has no targeted form; leave out --targeted")
    if targeted in _TARGETS:
        return
    if not (targeted.isascii() and targeted.isdigit()):
        raise InputError(
            f"targeted={targeted}: expected {', '.join(_TARGETS)} or the number of a class"
        )
    if classes is not None and int(targeted) >= classes:
        raise InputError(f"targeted={targeted}: the model has classes 0 to {classes - 1}")
