"""The command line: thin verbs over the package. ``raybench --help`` lists them.

Exit codes: 0 done, 2 bad input, 3 some shards failed (the message says which), 4 a model's query
budget is spent (the same command with a larger budget goes on), 130 interrupted, 143 stopped by
SIGTERM. The last two can be resumed by the same command.
"""

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from raybench.config import AttackConfig, RunConfig, ScoreConfig
from raybench.core.errors import BudgetSpentError, InputError, Interrupted, RaybenchError
from raybench.core.mirrors import shown
from raybench.options import Json, Quiet, configured

__all__ = ["app", "invoke", "main", "run_job"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Robustness evaluation of image classifiers in batches, on Ray.",
)

Dir = Annotated[
    Path, typer.Argument(help="A folder that raybench wrote, or its s3:// or gs:// address.")
]
Out = Annotated[Path, typer.Option(help="Output folder.")]
TrackingUri = Annotated[
    str | None, typer.Option(help=ScoreConfig.model_fields["tracking_uri"].description)
]
Experiment = Annotated[
    str | None, typer.Option(help=ScoreConfig.model_fields["experiment"].description)
]
Log = Annotated[str | None, typer.Option(help=ScoreConfig.model_fields["log"].description)]
Baseline = Annotated[
    str | None, typer.Option(help=ScoreConfig.model_fields["baseline"].description)
]


class Rank(StrEnum):
    """What tables rank by."""

    normalised = "normalised"
    score = "score"
    matched = "matched"


RankBy = Annotated[Rank, typer.Option(help=ScoreConfig.model_fields["rank_by"].description)]


def run_job(config: RunConfig, *, as_json: bool = False, quiet: bool = False) -> int:
    """Score or attack, print the tables, and return the exit code."""
    from raybench.display import make_display
    from raybench.driver import execute
    from raybench.job import build_job
    from raybench.signals import StopFlag, catch_signals
    from raybench.sinks.logs import log_lines
    from raybench.sinks.mlflow import ui_command

    display = make_display(quiet=quiet)
    flag = StopFlag()
    with log_lines(config.log):
        with catch_signals(flag, at_once=True):
            job = build_job(config, display.note)
        for note in job.notes:
            display.note(note)
        run = execute(job, config, display, flag)
    _print_tables(run.tables, as_json=as_json)
    for model, shard, error in run.failures:
        print(f"failed: {model} shard {shard}: {error}", file=sys.stderr)
    for model, shards, error in run.spent:
        print(f"budget spent: {model} has {shards} shards left: {error}", file=sys.stderr)
    if run.gave_up:
        print(f"gave up: {run.gave_up}", file=sys.stderr)
    if not as_json:
        print(f"\nresults: {shown(run.out)}")
        for path in run.files:
            if path.suffix == ".png":
                print(f"figure:  {path}")
        if run.tracking_uri is not None:
            print(f"compare: {ui_command(config.tracking_uri, run.out)}")
            print("         there: Model training (top left), the dataset, tick the runs, Compare")
    return run.exit_code


def _print_tables(tables: Sequence[Any], *, as_json: bool) -> None:
    from raybench.core.robustness import AttackTable
    from raybench.reports.attack_text import attacks_as_json, print_attacks
    from raybench.reports.tables import as_json as scores_as_json
    from raybench.reports.tables import print_table

    tables = [table for table in tables if isinstance(table, AttackTable) or table.shown]
    if as_json:
        contents = [
            attacks_as_json(table) if isinstance(table, AttackTable) else scores_as_json(table)
            for table in tables
        ]
        head = contents[0] if contents else {"models": []}
        # One object, whatever the number of readings: the first table's, and all of them.
        print(json.dumps(head | {"tables": contents} if len(contents) > 1 else head))
        return
    for table in tables:
        if isinstance(table, AttackTable):
            print_attacks(table)
        else:
            print_table(table)


def _score(config: ScoreConfig, as_json: bool, quiet: bool) -> int:
    """Score models on unlabelled images and rank them."""
    return run_job(config, as_json=as_json, quiet=quiet)


def _plan(config: ScoreConfig, as_json: bool, quiet: bool) -> int:
    """Say what a score run would cost, from a pilot of two shards a model; run nothing else."""
    from raybench.display import make_display
    from raybench.forecast import forecast
    from raybench.job import build_job

    display = make_display(quiet=quiet)
    job = build_job(config, display.note)
    if config.until_decided:
        display.note("until-decided may stop earlier: this is what all images cost")
    result = forecast(job, config, os.cpu_count() or 1, display.note)
    print(json.dumps(result.as_json()) if as_json else result.as_text())
    for model, shard, error in result.failures:
        _warn(f"failed: {model} shard {shard}: {error}")
    for text in result.spent:
        _warn(f"budget spent: {text}")
    return 4 if result.spent else 3 if result.failures else 0


def _attack(config: AttackConfig, as_json: bool, quiet: bool) -> int:
    """Attack models on labelled images; robust accuracy is the worst case image by image."""
    return run_job(config, as_json=as_json, quiet=quiet)


def _robust_acc(config: AttackConfig, as_json: bool, quiet: bool) -> int:
    """Measure robust accuracy by a suite of attacks (AutoAttack, where none is named)."""
    return run_job(config, as_json=as_json, quiet=quiet)


app.command("score")(configured(ScoreConfig, _score))
app.command("plan")(configured(ScoreConfig, _plan))
app.command("attack")(configured(AttackConfig, _attack))
app.command("robust-acc")(configured(AttackConfig, _robust_acc, {"suite": "autoattack"}))


@app.command()
def refresh(
    file: Annotated[Path, typer.Argument(help="The leaderboard file (YAML).")],
    out: Annotated[Path | None, typer.Option(help="Output folder, in place of the file's.")] = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Trust no record: load every model, read every byte.")
    ] = False,
    runner: Annotated[str | None, typer.Option(help="ray or local.")] = None,
    actors: Annotated[str | None, typer.Option(help="Worker processes, or auto.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, or local.")] = None,
    tracking_uri: TrackingUri = None,
    log: Log = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Bring a leaderboard of many models and datasets up to date, in one run."""
    from raybench.refresh.command import run_refresh
    from raybench.sinks.logs import log_lines

    given = {
        "out": out,
        "runner": runner,
        "actors": actors,
        "address": address,
        "tracking_uri": tracking_uri,
    }
    with log_lines(log):
        return run_refresh(file, given, _print_tables, rehash=rehash, as_json=as_json, quiet=quiet)


@app.command()
def status(folder: Dir, as_json: Json = False) -> int:
    """Say how far a run has come, from any machine that sees its results."""
    from raybench.sinks.mirror import mirrored
    from raybench.status import look

    with mirrored(folder, _warn) as out:
        found = look(out, shown(out))
    print(json.dumps(found.as_json()) if as_json else found.as_text())
    return found.exit_code


@app.command()
def show(
    folder: Dir,
    baseline: Baseline = None,
    rank_by: RankBy = Rank.normalised,
    as_json: Json = False,
) -> int:
    """Print the ranked tables and draw the figures again from stored results."""
    from raybench.publish_all import publish_stored
    from raybench.reports.agreement import agreement_text
    from raybench.sinks.mirror import mirrored

    with mirrored(folder, _warn, reports=True) as out:
        stored = publish_stored(out, baseline, rank_by.value, _warn)
    _print_tables([table for view in stored.views for table in view.tables], as_json=as_json)
    if not as_json:
        print(agreement_text(stored.agreements), end="")
        for path in stored.files:
            print(path)
    return 0


@app.command()
def report(
    folder: Dir,
    baseline: Baseline = None,
    rank_by: RankBy = Rank.normalised,
    as_json: Json = False,
) -> int:
    """Write one HTML page of everything stored, with figures, JSON, CSV, Markdown, model cards."""
    from raybench.report import write_report
    from raybench.sinks.mirror import mirrored

    with mirrored(folder, _warn, reports=True) as out:
        written = write_report(out, baseline, rank_by.value, _warn)
    if as_json:
        files = [str(path) for path in written.files]
        print(json.dumps({"page": str(written.page), "files": files}))
    else:
        print(written.page)
    return 0


@app.command()
def verify(
    folder: Dir,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute damaged and missing shards again.")
    ] = False,
    tracking_uri: TrackingUri = None,
    runner: Annotated[str, typer.Option(help="ray or local.")] = "ray",
    as_json: Json = False,
) -> int:
    """Check every stored part against its manifest: bytes, rows, sample ids, schema."""
    from raybench.display import make_display
    from raybench.repair import repair as repair_parts
    from raybench.repair import verify_all
    from raybench.signals import StopFlag
    from raybench.sinks.mirror import mirrored

    with mirrored(folder, _warn, parts=True, anew=True, reports=repair) as out:
        verdicts = verify_all(out)
        if repair and not all(verdict.sound for verdict in verdicts):
            display = make_display()
            repair_parts(
                out,
                verdicts,
                display,
                StopFlag(),
                display.note,
                tracking_uri=tracking_uri,
                runner=runner,
            )
            verdicts = verify_all(out)
    if as_json:
        print(
            json.dumps(
                {
                    "sound": all(v.sound for v in verdicts),
                    "measurements": [v.as_json() | {"folder": shown(v.folder)} for v in verdicts],
                }
            )
        )
    else:
        for v in verdicts:
            print(shown(out, v.as_text()))
    return 0 if all(verdict.sound for verdict in verdicts) else 3


@app.command()
def sync(
    folder: Dir,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = None,
    baseline: Baseline = None,
    rank_by: RankBy = Rank.normalised,
) -> int:
    """Push every complete measurement to MLflow, from the stored results alone."""
    from raybench.publish_all import sync as push
    from raybench.sinks.mirror import mirrored

    with mirrored(folder, _warn) as out:
        where = push(
            out,
            tracking_uri=tracking_uri,
            experiment=experiment,
            baseline=baseline,
            rank_by=rank_by.value,
            say=_warn,
        )
    print(f"pushed to {where}")
    return 0


@app.command()
def models(as_json: Json = False) -> int:
    """List the model schemes that can be named."""
    from raybench.core.catalog import model_schemes

    return _list(model_schemes(), as_json)


@app.command()
def datasets(as_json: Json = False) -> int:
    """List the datasets that can be named."""
    from raybench.core.catalog import DATASETS

    return _list(dict(DATASETS), as_json)


@app.command()
def attacks(as_json: Json = False) -> int:
    """List the attacks that can be named, with what they need and their options."""
    from raybench.core.catalog import SUITES
    from raybench.evaluations.attack_table import ATTACKS

    if as_json:
        facts = {
            name: {
                "summary": kind.summary,
                "source": kind.source,
                "access": kind.requires.name.lower(),
                "goal": kind.goal,
                "norms": kind.norms,
                "targeted": kind.targeted,
                "options": {key: setting.default for key, setting in kind.settings.items()},
            }
            for name, kind in ATTACKS.items()
        }
        print(json.dumps(facts | {"suites": SUITES}))
        return 0
    for name, kind in ATTACKS.items():
        options = " ".join(f"{key}={setting.default}" for key, setting in kind.settings.items())
        print(f"{name:18} {kind.summary}")
        print(
            f"{'':18} needs {kind.requires.name.lower()}; {kind.goal}; {', '.join(kind.norms)}"
            + (f"; {options}" if options else "")
        )
    for name, members in SUITES.items():
        print(f"suite {name}: {', '.join(members)}")
    return 0


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _list(entries: dict[str, Any], as_json: bool) -> int:
    if as_json:
        facts = {name: {"summary": e.summary, "example": e.example} for name, e in entries.items()}
        print(json.dumps(facts))
    else:
        for name, entry in sorted(entries.items()):
            print(f"{name:14} {entry.summary}\n{'':14} {entry.example}")
    return 0


@app.command()
def doctor(out: Out = Path("results"), as_json: Json = False) -> int:
    """Say what this machine offers and lacks."""
    from raybench.doctor import examine

    checks = examine(out)
    if as_json:
        print(json.dumps([{"subject": c.subject, "ok": c.ok, "text": c.text} for c in checks]))
    else:
        for check in checks:
            print(f"{'ok ' if check.ok else 'no '} {check.subject:20} {check.text}")
    return 0 if all(check.ok for check in checks) else 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code; errors go to stderr as one message."""
    return invoke(app, arguments)


def _tell(error: RaybenchError) -> None:
    """Print an error; the input it quotes may hold a credential."""
    from raybench.sinks.tracking import redact

    print(f"raybench: {redact(str(error))}", file=sys.stderr)


def invoke(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run a Typer application and return its exit code; errors go to stderr as one message."""
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except Interrupted as error:
        _tell(error)
        return error.exit_code
    except InputError as error:
        _tell(error)
        return 2
    except BudgetSpentError as error:
        _tell(error)
        return 4
    except RaybenchError as error:
        _tell(error)
        return 3
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("raybench: interrupted", file=sys.stderr)
        return 130
    except Exception as error:  # usage errors have no public base class in Typer: told by `show`
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return 2


if __name__ == "__main__":
    sys.exit(main())
