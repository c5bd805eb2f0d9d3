"""What the report's page says besides scores: published values, costs, provenance, the unranked."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

from raybench.core.results import ModelScore
from raybench.core.robustness import AttackScore
from raybench.refresh.state import Entry, State
from raybench.report_published import Line
from raybench.reports.html_tables import Cell, Grid, Heading, shown_spec, text_grid
from raybench.reports.tables import number
from raybench.sinks.store import Manifest
from raybench.sinks.tracking import redact

__all__ = [
    "about",
    "cost_view",
    "entry_grid",
    "failed_entries",
    "provenance",
    "published_grid",
    "unranked_grid",
]

_NONE = "–"  # noqa: RUF001 - a dash where a number would stand
_METRICS = {
    "robust_accuracy": "robust accuracy, %",
    "clean_accuracy": "clean accuracy, %",
    "brittle_score": "brittle-score",
}


def published_grid(published: Sequence[Line]) -> Grid:
    """Return the published values beside ours, each with whether they compare, and why."""
    headings = (
        Heading("model", numeric=False),
        Heading("what", numeric=False),
        Heading("ours"),
        Heading("published"),
        Heading("difference", hint="ours less theirs; only of what can be compared"),
        Heading("comparable", numeric=False),
        Heading("why", numeric=False),
        Heading("source", numeric=False),
    )
    return text_grid(
        "Published values beside ours",
        headings,
        [_published_cells(line) for line in published],
        sortable=True,
    )


def _published_cells(line: Line) -> list[Cell | str]:
    share = line.metric != "brittle_score"

    def show(value: float | None) -> str:
        if value is None:
            return _NONE
        # Published accuracies have two decimals.
        return f"{100 * value:.2f}".rstrip("0").rstrip(".") if share else number(value)

    bounds = ""
    if line.low is not None and line.high is not None:
        bounds = f"[{show(line.low)}, {show(line.high)}]"
    difference = Cell(_NONE)
    if line.difference is not None:
        text = f"{100 * line.difference:+.2f}" if share else f"{line.difference:+.4g}"
        inside = line.low is not None and line.high is not None
        within = inside and (line.low or 0.0) <= line.published <= (line.high or 0.0)
        place = ("within our interval" if within else "outside our interval") if inside else ""
        difference = Cell(text.replace("-", "\N{MINUS SIGN}"), line.difference, detail=place)
    return [
        line.model,
        Cell(_METRICS[line.metric], line.metric, detail=line.threat or ""),
        Cell(show(line.ours), line.ours, detail=bounds),
        Cell(show(line.published), line.published),
        difference,
        "yes" if line.comparable else "no",
        redact(line.why),
        redact(line.source),
    ]


def cost_view(
    rows: Sequence[ModelScore | AttackScore], manifests: Mapping[str, Manifest]
) -> tuple[Grid, str]:
    """Return what every measurement cost, and the sums in a sentence.

    `manifests` are those that can be read, by their folder below the output folder.
    """
    queries = gradients = images = 0
    seconds = 0.0
    cells: list[list[Cell | str]] = []
    for row in rows:
        spent = _seconds(manifests.get(row.folder))
        backward = row.gradients if isinstance(row, AttackScore) else 0
        queries, gradients = queries + row.queries, gradients + backward
        images, seconds = images + row.n, seconds + (spent or 0.0)
        cells.append(
            [
                row.model.name,
                Cell(row.reading, row.reading, code=True),
                Cell(f"{row.n:,}", row.n),
                Cell(f"{row.queries:,}", row.queries),
                Cell(f"{backward:,}", backward),
                Cell(number(spent, 3) if spent else _NONE, spent),
                Cell(
                    number(row.images_per_second, 3) if row.images_per_second else _NONE,
                    row.images_per_second,
                ),
                Cell(f"{row.unscored:,}", row.unscored),
            ]
        )
    headings = (
        Heading("model", numeric=False),
        Heading("measurement", numeric=False),
        Heading("images"),
        Heading("queries", hint="images the model was asked about, in all"),
        Heading("gradients", hint="backward passes, in all"),
        Heading("worker seconds", hint="time of the workers, added up"),
        Heading("images/s", hint="for one worker"),
        Heading("unscored"),
    )
    note = (
        f"{len(rows):,} measurements · {queries:,} queries · "
        + (f"{gradients:,} gradients · " if gradients else "")
        + f"{number(seconds, 3)} worker seconds"
    )
    return text_grid("Throughput and cost", headings, cells, sortable=True), note


def _seconds(manifest: Manifest | None) -> float | None:
    """Return the time that workers spent on a measurement; None where a crash lost some of it."""
    if manifest is None:
        return None
    known = [part["seconds"] for part in manifest.parts.values()]
    return sum(known) if known and all(known) else None


def about(manifests: Sequence[Manifest], state: State | None) -> str:
    """Return the line below the title: versions, and when."""
    versions = sorted({one.environment.get("raybench", "?") for one in manifests})
    runs = sorted(one.run for one in manifests if one.run)
    parts = [f"{len(manifests):,} measurements by raybench {', '.join(versions)}"]
    if runs:
        first, last = runs[0][:10], runs[-1][:10]
        parts.append(f"measured {first}" if first == last else f"measured {first} to {last}")
    if state is not None:
        parts = [
            f"Benchmark version {state.benchmark_version}",
            f"refreshed {state.written[:16].replace('T', ' ')} in {state.seconds:.0f} s: "
            f"{state.counts.new:,} new, {state.counts.unchanged:,} unchanged, "
            f"{state.counts.failed:,} failed",
            *parts,
        ]
    return " · ".join(parts)


def provenance(manifests: Sequence[Manifest]) -> list[Grid]:
    """Return the settings, the models and the libraries of measurements."""
    models: dict[str, list[Cell | str]] = {}
    settings: Counter[tuple[str, ...]] = Counter()
    libraries: Counter[str] = Counter()
    for manifest in manifests:
        facts = manifest.measurement
        model, dataset = facts["model"], facts["dataset"]
        details = "; ".join(f"{name}: {value}" for name, value in model["details"].items())
        models[f"{model['name']} {model['fingerprint']} {model['access']}"] = [
            Cell(model["name"], model["name"].casefold()),
            Cell(shown_spec(model["spec"]), model["spec"], code=True),
            Cell(model["fingerprint"][:16], model["fingerprint"], code=True),
            model["access"],
            " x ".join(map(str, model["input_shape"])),
            model["normalisation"],
            redact(details),
        ]
        settings[
            (
                dataset["name"],
                shown_spec(dataset["spec"]),
                dataset["fingerprint"][:16],
                facts["evaluation"],
                str(facts["seed"]),
                str(manifest.shard_size),
            )
        ] += 1
        environment = manifest.environment
        libraries[", ".join(f"{k} {v}" for k, v in sorted(environment.items())) or "unknown"] += 1
    text = functools.partial(Heading, numeric=False)
    return [
        text_grid(
            "Settings",
            [
                text("dataset"), text("images"), text("fingerprint"), text("evaluation"),
                Heading("seed"), Heading("shard size"), Heading("models"),
            ],
            [
                [
                    name,
                    Cell(spec, spec, code=True),
                    Cell(fingerprint, code=True),
                    Cell(evaluation, code=True),
                    seed,
                    size,
                    str(count),
                ]
                for (name, spec, fingerprint, evaluation, seed, size), count in sorted(
                    settings.items()
                )
            ],
        ),
        text_grid(
            "Models",
            [
                text("model"), text("spec"), text("fingerprint"), text("access"),
                text("input"), text("normalisation"), text("details"),
            ],
            [models[name] for name in sorted(models)],
        ),
        text_grid(
            "Libraries",
            [text("versions"), Heading("measurements")],
            [[versions, str(count)] for versions, count in sorted(libraries.items())],
        ),
    ]  # fmt: skip


def failed_entries(state: State | None, fingerprint: str) -> list[str]:
    """Return which entries on the images of `fingerprint` failed, each with its error."""
    if state is None:
        return []
    keys = {one.key for one in state.datasets if one.fingerprint == fingerprint}
    return [
        redact(f"{entry.name}: {_summary(entry.error)}")
        for entry in state.entries
        if entry.status == "failed" and entry.dataset in keys
    ]


def unranked_grid(rows: Sequence[tuple[str, ModelScore | AttackScore]]) -> Grid | None:
    """Return the measurements without a result, given with their datasets' names; None if all have.

    That is what a report can say where no leaderboard keeps history.
    """
    cells: list[list[Cell | str]] = [
        [
            row.model.name,
            name,
            row.status,
            Cell(row.reading, row.reading, code=True),
            redact(_summary(row.error)),
        ]
        for name, row in rows
        if row.status != "complete"
    ]
    return _unranked(("model", "dataset", "status", "measurement", "reason"), cells)


def entry_grid(state: State) -> Grid | None:
    """Return the entries of a leaderboard that are history or failed; None where none is."""
    names = {one.key: one.name for one in state.datasets}
    cells = [
        _entry_cells(entry, names.get(entry.dataset, entry.dataset))
        for entry in state.entries
        if entry.status != "current"
    ]
    headings = ("model", "dataset", "status", "spec", "first seen", "last seen", "reason")
    return _unranked(headings, cells)


def _unranked(headings: Sequence[str], cells: list[list[Cell | str]]) -> Grid | None:
    if not cells:
        return None
    return text_grid(
        "Not ranked", [Heading(text, numeric=False) for text in headings], cells, sortable=True
    )


def _entry_cells(entry: Entry, dataset: str) -> list[Cell | str]:
    kept = f"{len(entry.measurements)} measurements are kept" if entry.measurements else ""
    if entry.status == "history":
        reason = f"no longer asked for; {kept}" if kept else "no longer asked for"
    else:
        reason = "; ".join(filter(None, (_summary(entry.error), kept)))
    return [
        entry.name,
        dataset,
        entry.status,
        Cell(shown_spec(entry.spec), entry.spec, code=True),
        Cell(_day(entry.first_seen), entry.first_seen),
        Cell(_day(entry.last_seen), entry.last_seen),
        redact(reason),
    ]


def _day(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _summary(error: str | None) -> str:
    """Return the line of an error that says what happened: in a traceback, its last."""
    found = [line for line in (error or "").splitlines() if line.strip()]
    if not found:
        return "no reason is known"
    return found[-1 if found[0].startswith("Traceback") else 0].strip()
