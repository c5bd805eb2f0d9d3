"""What models that are paid for by the query have cost: a sentence for each, after a run."""

from raybench.core.errors import RaybenchError
from raybench.core.plan import Plan
from raybench.core.spec import parse
from raybench.core.work import Outcome

__all__ = ["cost_notes", "spent_models"]


def cost_notes(plan: Plan, outcome: Outcome) -> list[str]:
    """Return, of each model reached over HTTP, what this run asked, and what all runs have sent."""
    asked: dict[str, int] = {}
    paid: dict[str, int] = {}
    for task, receipt in outcome.receipts.items():
        if receipt.paid is not None:
            spec = plan.measurements[task.measurement].model.spec
            asked[spec] = asked.get(spec, 0) + receipt.queries
            paid[spec] = paid.get(spec, 0) + receipt.paid
    models = {measurement.model.spec: measurement.model for measurement in plan.measurements}
    dropped = {plan.measurements[task.measurement].model.spec for task in outcome.spent}
    notes = []
    for spec, model in models.items():
        if spec not in paid and spec not in dropped:
            continue
        notes.append(
            f"{model.name}: the shards of this run asked {asked.get(spec, 0):,} queries and sent "
            f"{paid.get(spec, 0):,}, repeats after failures included; the rest was kept from "
            f"before{_total(spec)}"
        )
    return notes


def spent_models(plan: Plan, outcome: Outcome) -> tuple[tuple[str, int, str], ...]:
    """Return (model, shards left, error) of each model whose query budget is spent."""
    found: dict[str, tuple[int, str]] = {}
    for task, error in sorted(outcome.spent.items()):
        name = plan.measurements[task.measurement].model.name
        found[name] = (found.get(name, (0, ""))[0] + 1, error)
    return tuple((name, shards, error) for name, (shards, error) in found.items())


def _total(spec: str) -> str:
    if parse(spec).scheme not in ("http", "https"):
        return ""
    from raybench.models.http import spent

    try:
        total, budget = spent(parse(spec))
    except RaybenchError:
        return ""  # a ledger that cannot be read any more spoils no result
    limit = "" if budget is None else f" of a budget of {budget:,}"
    return f". Sent in all runs so far: {total:,}{limit}"
