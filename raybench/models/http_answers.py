"""From what an API says of each image to scores [N, K] or labels [N], whatever its way of saying.

    reader = AnswerReader(classes=10)
    reader.scores([[0.1, ...], [0.7, ...]], 2)                       # [2, 10] float64
    AnswerReader(classes=10, topk=3).scores([{"7": 0.8, "1": 0.1, "3": 0.05}], 1)

Understood of each image: K numbers in the order of the classes; a mapping from class to number;
pairs of class and number; objects with a class and a number in them; and, for labels, a class
alone. A class is its index, or a name out of the list of names.

Legend: N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from raybench.models.http_client import Malformed, NotFinite

__all__ = ["AnswerReader"]

# What `models.check` takes for probabilities; here a little more, since it is checked each time.
_SUM_TOLERANCE = 2e-4
_ROUNDED = 0.05  # the largest error of a sum that rounding is believed to make


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReader:
    """How the answers of one API are read; see the module.

    Attributes:
        classes: K.
        output: "probabilities", which are checked to be such, or "logits".
        names: class names in the order of the classes; empty where classes are numbers.
        topk: how many classes the API tells at most; None for all. The probability that is left is
            spread evenly over the others.
        label, score: keys of an object that holds a class and its number.
        renormalise: probabilities that rounding has moved by up to 0.05 are divided by their sum.
    """

    classes: int
    output: str = "probabilities"
    names: tuple[str, ...] = ()
    topk: int | None = None
    label: str = "label"
    score: str = "score"
    renormalise: bool = False
    _indices: dict[str, int] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        indices = {name: index for index, name in enumerate(self.names)}
        object.__setattr__(self, "_indices", indices)

    def scores(self, values: Any, count: int) -> np.ndarray:
        """Return scores [count, K] float64 of an answer about `count` images.

        Raises:
            Malformed: the answer has another form, or is no probability where such is declared.
            NotFinite: its scores are NaN or infinite (or null, as some servers write NaN).
        """
        rows = self._rows(values, count)
        scores = np.stack([self._scores_of(row) for row in rows])
        if not np.isfinite(scores).all():
            raise NotFinite(scores)
        return self._checked(scores) if self.output == "probabilities" else scores

    def labels(self, values: Any, count: int) -> np.ndarray:
        """Return classes [count] int64 of an answer about `count` images; ties go to the lower.

        Raises:
            Malformed: the answer has another form.
        """
        labels = [self._label_of(row) for row in self._rows(values, count)]
        return np.array(labels, dtype=np.int64)

    def _rows(self, values: Any, count: int) -> Sequence[Any] | np.ndarray:
        if not isinstance(values, list | tuple | np.ndarray):
            self._odd("the answer", values, f"a list about {count} images")
        if len(values) != count:
            raise Malformed(f"the answer is about {len(values)} images, {count} were asked about")
        return values

    def _scores_of(self, row: Any) -> np.ndarray:
        if isinstance(row, np.ndarray):
            if row.shape != (self.classes,) or row.dtype.kind not in "fiu":
                self._odd("scores", row, f"{self.classes} numbers")
            return row.astype(np.float64)
        if isinstance(row, list | tuple) and all(map(_is_number, row)):
            if len(row) != self.classes:
                raise Malformed(f"{len(row)} scores for an image, expected {self.classes}")
            return np.array([np.nan if value is None else value for value in row], np.float64)
        told = self._pairs(row)
        if len(told) < self.classes and (self.topk is None or len(told) > self.topk):
            asked = "topk= says how many are told" if self.topk is None else f"topk={self.topk}"
            raise Malformed(f"{len(told)} of {self.classes} classes are told of an image; {asked}")
        return self._spread(told)

    def _spread(self, told: dict[int, float]) -> np.ndarray:
        """Return scores [K], what is left of the probability spread over the classes not told."""
        missing = self.classes - len(told)
        left = 1.0 - sum(told.values())
        if missing and not left >= -_SUM_TOLERANCE:
            raise Malformed(f"the probabilities told sum to {1 - left:.4g}, more than one")
        share = max(0.0, left) / missing if missing else 0.0
        if missing and share > min(told.values()) + _SUM_TOLERANCE:
            raise Malformed(
                f"the {len(told)} classes told cannot be the likeliest of {self.classes}: "
                f"{left:.4g} of the probability is left for the others"
            )
        scores = np.full(self.classes, share)
        for index, value in told.items():
            scores[index] = value
        return scores

    def _checked(self, scores: np.ndarray) -> np.ndarray:
        """Return probabilities, checked to be such, and renormalised where that was asked for."""
        sums = scores.sum(1)
        low, high = float(scores.min()), float(scores.max())
        worst = float(sums[np.abs(sums - 1).argmax()])
        allowed = _ROUNDED if self.renormalise else _SUM_TOLERANCE
        if low < -_SUM_TOLERANCE or high > 1 + allowed or abs(worst - 1) > allowed:
            raise Malformed(
                f"no probabilities: they lie in {low:.4g} to {high:.4g}, and those of an image sum "
                f"to {worst:.6g}; output=logits says that they are logits, renormalise=true that "
                "the API rounds them"
            )
        return scores / sums[:, None] if self.renormalise else scores

    def _label_of(self, row: Any) -> int:
        if isinstance(row, np.ndarray) and row.ndim == 1 and len(row) == self.classes:
            return self._largest(row.astype(np.float64))
        if isinstance(row, np.ndarray) and row.size == 1:
            return self._index(row.reshape(-1)[0].item())
        if isinstance(row, list | tuple) and len(row) == 1 and not isinstance(row[0], dict | list):
            return self._index(row[0])
        if isinstance(row, list | tuple) and len(row) == self.classes and all(map(_is_real, row)):
            return self._largest(np.array(row, np.float64))
        if isinstance(row, dict) and self.label in row:
            return self._index(row[self.label])
        if isinstance(row, dict | list | tuple):
            told = self._pairs(row)
            return max(told, key=lambda index: (told[index], -index))
        return self._index(row)

    def _largest(self, scores: np.ndarray) -> int:
        if not np.isfinite(scores).all():
            raise Malformed("the scores are not finite, so that no class is the largest")
        return int(scores.argmax())

    def _pairs(self, row: Any) -> dict[int, float]:
        """Return the classes told of an image with their numbers, whatever form they have."""
        expected = f"{self.classes} numbers, or classes with numbers"
        pairs: list[tuple[Any, Any]] = []
        if isinstance(row, dict) and self.label in row and self.score in row:
            pairs = [(row[self.label], row[self.score])]
        elif isinstance(row, dict):
            pairs = list(row.items())
        elif isinstance(row, list | tuple):
            for each in row:
                if isinstance(each, dict) and self.label in each and self.score in each:
                    pairs.append((each[self.label], each[self.score]))
                elif isinstance(each, list | tuple) and len(each) == 2:
                    pairs.append((each[0], each[1]))
                else:
                    self._odd("an image's answer", each, expected)
        if not pairs:
            self._odd("an image's answer", row, expected)
        told: dict[int, float] = {}
        for name, value in pairs:
            index = self._index(name)
            if index in told or not _is_number(value):
                self._odd(f"class {name!r}", value, "one number for each class")
            told[index] = np.nan if value is None else float(value)
        return told

    def _index(self, name: Any) -> int:
        """Return the index of a class given by number, by its digits, or by name."""
        if isinstance(name, str) and name in self._indices:
            return self._indices[name]
        if isinstance(name, str) and name.isascii() and name.isdigit():
            name = int(name)
        if isinstance(name, float) and name.is_integer():
            name = int(name)
        if isinstance(name, int) and not isinstance(name, bool) and 0 <= name < self.classes:
            return name
        known = "labels= names the classes" if not self.names else "it is none of labels="
        raise Malformed(
            f"class {_shown(name)} is no number of 0 to {self.classes - 1}, and {known}"
        )

    def _odd(self, what: str, found: Any, expected: str) -> NoReturn:
        raise Malformed(f"{what} is {_shown(found)}, expected {expected}")


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return value is None or _is_real(value)


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)} and type {value.dtype}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
