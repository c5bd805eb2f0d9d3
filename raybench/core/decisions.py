"""What a sequential run decided: a verdict for each pair of neighbours in a ranking.

The record of a run is one JSON file below the output folder, beside the rows it judges. Its models
go by `model_id`, since tables tell namesakes apart by other names than runs do.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raybench.core.errors import StoreError
from raybench.core.keys import digest

__all__ = ["Decisions", "PairDecision", "decisions_of", "model_id"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDecision:
    """Two models that stand beside each other in the ranking.

    Attributes:
        lower, higher: their names; by mean over images, or as the verdict says.
        verdict: "separated", "tied" (within the margin of each other) or "undecided".
        difference: mean of higher - lower over the images that both have.
        images: how many those are.
        decided_at: images at the look that first told; None where none did.
        path: the confidence sequence: (images, low, high) at each look, for the mean of higher -
            lower; None where it has no end yet.
    """

    lower: str
    higher: str
    verdict: str
    difference: float
    images: int
    decided_at: int | None
    path: tuple[tuple[int, float | None, float | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The outcome of a sequential run over all its models.

    Attributes:
        evaluation: canonical spec of the reading whose numbers decided.
        column: what was compared: "normalised", "log normalised" or "score"; margin, differences
            and paths are in its unit.
        method: "betting" or "asymptotic"; see `metrics.sequences`.
        alpha: probability that any verdict at any look is wrong, over all pairs.
        pairs_covered: pairs of models that share it; neighbours are known only afterwards.
        margin: differences up to it are a tie; 0 calls none.
        decided: whether every pair of neighbours is separated or tied.
        fixed_n: images of the fixed-n design, for every model.
        queries_spent: queries made for the measurements of the run.
        queries_fixed_n: what the fixed-n design asks.
        models: name by `model_id` -> (name, images).
        pairs: neighbours, the lowest first.
    """

    evaluation: str
    column: str
    method: str
    alpha: float
    pairs_covered: int
    margin: float
    decided: bool
    fixed_n: int
    queries_spent: int
    queries_fixed_n: int
    models: Mapping[str, tuple[str, int]]
    pairs: tuple[PairDecision, ...]

    def named(self, names: Mapping[str, str]) -> "Decisions":
        """Return a copy whose models are called by `names` (by `model_id`; others keep theirs)."""
        models = {one: (names.get(one, name), n) for one, (name, n) in self.models.items()}
        shown = {name: models[one][0] for one, (name, _) in self.models.items()}
        pairs = tuple(
            replace(pair, lower=shown[pair.lower], higher=shown[pair.higher]) for pair in self.pairs
        )
        return replace(self, models=models, pairs=pairs)

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Return the neighbours that the model called `name` is not separated from."""
        return tuple(
            other
            for pair in self.pairs
            if pair.verdict != "separated"
            for one, other in ((pair.lower, pair.higher), (pair.higher, pair.lower))
            if one == name
        )

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def model_id(model: Mapping[str, Any]) -> str:
    """Return what tells one model of a run from another; `model` is part of a measurement."""
    return digest([model["name"], model["fingerprint"], model["access"]])


def decisions_of(content: Mapping[str, Any]) -> Decisions:
    """Return the decisions in a record's JSON.

    Raises:
        StoreError: it is no such record.
    """
    try:
        pairs = tuple(
            PairDecision(**{**pair, "path": tuple(tuple(look) for look in pair["path"])})
            for pair in content["pairs"]
        )
        models = {one: (str(name), int(n)) for one, (name, n) in content["models"].items()}
        return Decisions(**{**content, "pairs": pairs, "models": models})
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise StoreError(f"no record of a sequential run: {error!r}") from error
