"""The tables of one selection of images: what a report ranks together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raybench.core.results import ModelScore, ScoreTable
from raybench.core.robustness import AttackScore, AttackTable
from raybench.core.types import DatasetInfo, ModelInfo

__all__ = ["ImageTables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTables:
    """Scores and robust accuracies on the same images; one table at least."""

    scores: Sequence[ScoreTable]
    attacks: Sequence[AttackTable]

    @property
    def dataset(self) -> DatasetInfo:
        """The images."""
        return self.scores[0].dataset if self.scores else self.attacks[0].dataset

    @property
    def shown(self) -> list[ScoreTable]:
        """The tables of scores that are no mere column of another."""
        return [table for table in self.scores if table.shown]

    @property
    def models(self) -> list[ModelInfo]:
        """Every model under the name that its table gives it, those of scores first."""
        found = [row.model for table in self.scores for row in table.rows]
        found += [row.model for table in self.attacks for row in table.rows]
        return list({info.name: info for info in found}.values())

    def measurements(self) -> Iterator[ModelScore | AttackScore]:
        """Yield every measurement's headline, those that have no table of their own included."""
        for scores in self.scores:
            yield from scores.rows
        for attacks in self.attacks:
            yield from attacks.measurements()
