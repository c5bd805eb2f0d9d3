"""An attack as an evaluation: one row for each image, its success judged anew by the model.

    rows = parse_attack("pgd", norm="linf", eps="8/255", shape=(3, 32, 32), classes=10)(
        model, batch, seed=0, batch_size=128
    )

The kernel proposes images; whether they count is decided here (spec 00 section 0.4 rule 3): in
range, within the budget (both in float64), and misclassified in a fresh forward pass, once as they
are and once rounded to 8 bits. Images that are wrong to begin with are not attacked and not robust.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from raybench.core.spec import Spec
from raybench.core.types import Access, Batch, Model
from raybench.evaluations.attack_table import ATTACKS, AttackKind, fraction_text
from raybench.evaluations.explain import scores_of
from raybench.evaluations.rows import empty_row, to_record_batch
from raybench.kernels.attacks.common import AttackResult, lp_norm
from raybench.kernels.counter import sample_keys

__all__ = ["DISTANCES", "AttackEvaluation"]

DISTANCES = ("l0", "l1", "l2", "linf")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackEvaluation:
    """Settings of one attack under one threat model.

    Attributes:
        attack: a name of `ATTACKS`.
        norm: the norm of the budget.
        eps: the budget as an exact fraction, in pixel units; None for a minimal attack without one,
            whose every success counts.
        targeted: "next" (true class + 1), "least-likely", a class number as text, or None.
        options: the attack's own options, every one, sorted by name.
        keep_images: whether rows hold the attacked images, rounded to 8 bits.
    """

    attack: str
    norm: str
    eps: str | None
    targeted: str | None
    options: tuple[tuple[str, str], ...]
    keep_images: bool = False

    @property
    def family(self) -> str:
        return "attack"

    @property
    def kind(self) -> AttackKind:
        """The attack's line of the table."""
        return ATTACKS[self.attack]

    @property
    def requires(self) -> Access:
        return self.kind.requires

    @property
    def needs_labels(self) -> bool:
        return True

    def canonical(self) -> str:
        return (
            Spec(self.attack)
            .with_options(
                norm=self.norm,
                eps=self.eps,
                targeted=self.targeted,
                keep_images="true" if self.keep_images else None,
                **dict(self.options),
            )
            .canonical()
        )

    def queries(self, images: int) -> int:
        """Return a rough upper bound of the forward passes of `images` images; rows hold the facts.

        It serves forecasts: early successes stop most attacks sooner.
        """
        own = {name: int(value) for name, value in self.options if value.isdigit()}
        once = own.get("queries") or own.get("tries") or own.get("steps", own.get("max_iter", 1))
        folds = [
            own.get(name, 1)
            for name in ("restarts", "num_targets", "search_steps", "candidates", "eot")
        ]
        total = once
        for fold in folds:
            total *= fold
        if self.attack == "autoattack":
            total = 100 + 9 * 100 + 9 * 100 + 5000
        return images * total

    def schema(self) -> pa.Schema:
        numbers = (*DISTANCES, "eps")
        counts = ("queries", "gradients", "found_at", "found_queries")
        flags = ("already_wrong", "success", "success_u8", "zero_gradient", "out_of_budget")
        image = [pa.field("image", pa.list_(pa.uint8()))] if self.keep_images else []
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                pa.field("source", pa.string(), nullable=False),
                pa.field("status", pa.string(), nullable=False),
                pa.field("error", pa.string()),
                pa.field("label", pa.int32()),
                pa.field("target", pa.int32()),
                pa.field("predicted", pa.int32()),
                pa.field("adversarial", pa.int32()),
                *(pa.field(name, pa.bool_()) for name in flags),
                *(pa.field(name, pa.float64()) for name in numbers),
                *(pa.field(name, pa.int64()) for name in counts),
                pa.field("losses", pa.list_(pa.float32())),
                *image,
                pa.field("attack", pa.string(), nullable=False),
                pa.field("seed", pa.int64(), nullable=False),
            ]
        )

    def __call__(self, model: Model, batch: Batch, *, seed: int, batch_size: int) -> pa.RecordBatch:
        """Return one row for each sample of `batch`; see `schema`.

        The whole batch is attacked together: its size is the shard's, so that a repetition asks the
        model in the same batches.
        """
        del batch_size
        assert batch.labels is not None, "an attack needs labels"
        rows = self._attacked(model, batch, batch.labels, seed) if batch.ids else []
        rows += [empty_row(bad.id, bad.source, bad.error) for bad in batch.failures]
        constants = {"attack": self.canonical(), "seed": seed}
        return to_record_batch([row | constants for row in rows], self.schema())

    def _attacked(
        self, model: Model, batch: Batch, labels: Tensor, seed: int
    ) -> list[dict[str, Any]]:
        images, labels = batch.images.to(model.device), labels.to(model.device)
        scores = _ask(model, images)
        predicted = scores.argmax(1)
        wanted = self._targets(scores, labels)
        goal = labels if wanted is None else wanted
        finite = torch.isfinite(scores).all(1)
        clash = goal == labels if wanted is not None else torch.zeros_like(finite)
        fit = finite & ~clash & (predicted == labels)
        chosen = fit.nonzero()[:, 0]
        result = None
        if len(chosen):
            ids = tuple(batch.ids[index] for index in chosen.tolist())
            starts, tries = self._starts(model, images[chosen], goal[chosen], batch)
            result = self._run(model, images[chosen], goal[chosen], ids, seed, starts)
            result = replace(result, queries=result.queries + tries)
        attacked = {index: place for place, index in enumerate(chosen.tolist())}
        judged = (
            None if result is None else self._judge(model, images[chosen], goal[chosen], result)
        )
        rows = []
        for index, (sample_id, source) in enumerate(zip(batch.ids, batch.sources, strict=True)):
            if not finite[index]:
                rows.append(empty_row(sample_id, source, "the model's answer was not finite"))
                continue
            if clash[index]:
                text = f"the target class {int(goal[index])} is the image's own label"
                rows.append(empty_row(sample_id, source, text))
                continue
            row: dict[str, Any] = {
                "sample_id": sample_id,
                "source": source,
                "status": "ok",
                "error": None,
                "label": int(labels[index]),
                "target": None if wanted is None else int(wanted[index]),
                "predicted": int(predicted[index]),
                "eps": None if self.eps is None else float(Fraction(self.eps)),
            }
            if index in attacked and judged is not None:
                rows.append(row | judged[attacked[index]])
            else:
                rows.append(row | _UNTOUCHED | {"adversarial": int(predicted[index])})
        return rows

    def _targets(self, scores: Tensor, labels: Tensor) -> Tensor | None:
        if self.targeted is None:
            return None
        if self.targeted == "next":
            return (labels + 1) % scores.shape[1]
        if self.targeted == "least-likely":
            return scores.argmin(1)
        return torch.full_like(labels, int(self.targeted))

    def _starts(
        self, model: Model, images: Tensor, goal: Tensor, batch: Batch
    ) -> tuple[Tensor | None, Tensor]:
        """Return where a targeted walk begins [N, C, H, W], and the queries [N] to find that out.

        That is the first image with the wanted label that the model gives that label. Without any,
        it is the image itself, from which there is no walk.
        """
        tries = torch.zeros_like(goal)
        if self.targeted is None or "start" not in self.kind.passes:
            return None, tries
        assert batch.examples is not None, "labels come with examples"
        starts = images.clone()
        for wanted in sorted(set(goal.tolist())):
            known = batch.examples(wanted).to(images.device)
            mine = goal == wanted
            tries[mine] = len(known)
            fitting = known[_labels(model, known) == wanted] if len(known) else known
            if len(fitting):
                starts[mine] = fitting[0]
        return starts, tries

    def _run(
        self,
        model: Model,
        images: Tensor,
        goal: Tensor,
        ids: tuple[str, ...],
        seed: int,
        starts: Tensor | None,
    ) -> AttackResult:
        kind = self.kind
        shared: dict[str, object] = {
            "keys": torch.from_numpy(sample_keys(seed, f"attack {self.attack}", ids)).to(
                images.device
            ),
            "norm": self.norm,
            "eps": float(Fraction(self.eps)) if self.eps is not None else 1.0,
            "targeted": self.targeted is not None,
            "start": starts,
        }
        own = {name: _value(kind, name, text) for name, text in self.options}
        if "num_targets" in own:  # as many as there are, where the model knows fewer classes
            own["num_targets"] = min(own["num_targets"], model.info.num_classes - 1)
        answer = {
            Access.LABELS: model.labels,
            Access.SCORES: scores_of(model),
            Access.GRADIENTS: model.logits,
        }[kind.requires]
        arguments = {name: shared[name] for name in kind.passes} | own | dict(kind.fixed)
        result: AttackResult = kind.resolve()(answer, images, goal, **arguments)
        return result

    def _judge(
        self, model: Model, images: Tensor, goal: Tensor, result: AttackResult
    ) -> list[dict[str, Any]]:
        """Return the columns that say what came out for each attacked image, trusting nothing."""
        made = result.images.detach()
        sound = torch.isfinite(made).flatten(1).all(1)
        made = torch.where(sound.view(-1, 1, 1, 1), made, images)
        delta = made.to(torch.float64) - images.to(torch.float64)
        sizes = {norm: lp_norm(delta, norm) for norm in DISTANCES}
        inside = ((made >= 0) & (made <= 1)).flatten(1).all(1) & sound
        if self.eps is not None and self.kind.goal == "budget":
            limit = float(Fraction(self.eps)) * (1 + 1e-5) + 1e-6
            inside &= sizes[self.norm] <= limit
        near = torch.ones_like(inside)
        if self.eps is not None:
            near = sizes[self.norm] <= float(Fraction(self.eps)) * (1 + 1e-5) + 1e-6
        rounded = (made * 255).round() / 255
        adversarial = _labels(model, made)
        coarse = _labels(model, rounded)
        if self.targeted is None:
            reached, reached_u8 = adversarial != goal, coarse != goal
        else:
            reached, reached_u8 = adversarial == goal, coarse == goal
        success = reached & inside & near
        columns = {
            "adversarial": adversarial,
            "already_wrong": torch.zeros_like(success),
            "success": success,
            "success_u8": reached_u8 & inside & near,
            "zero_gradient": result.zero_gradient,
            "out_of_budget": ~inside,
            "queries": result.queries + 3,  # one to choose the image, two to judge the outcome
            "gradients": result.gradients,
            "found_at": result.found_at,
            "found_queries": result.found_queries,
            **sizes,
        }
        plain = {name: values.tolist() for name, values in columns.items()}
        rows = [
            {name: values[index] for name, values in plain.items()} for index in range(len(images))
        ]
        if result.losses is not None:
            for row, path in zip(rows, result.losses.tolist(), strict=True):
                row["losses"] = path
        if self.keep_images:
            pixels = (made * 255).round().to(torch.uint8).flatten(1).cpu()
            for row, values in zip(rows, pixels, strict=True):
                row["image"] = values.tolist()
        return rows


_UNTOUCHED: dict[str, Any] = {
    "already_wrong": True,
    "success": False,
    "success_u8": False,
    "zero_gradient": False,
    "out_of_budget": False,
    "queries": 1,
    "gradients": 0,
    "found_at": -1,
    "found_queries": -1,
    **dict.fromkeys(DISTANCES, 0.0),
}


def _ask(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return scores_of(model)(images).to(torch.float64)


def _labels(model: Model, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.labels(images)


def _value(kind: AttackKind, name: str, text: str) -> Any:
    value = kind.settings[name].read(text)
    # Fractions stay exact in the spec; kernels take floats.
    return float(Fraction(value)) if kind.settings[name].read is fraction_text else value
