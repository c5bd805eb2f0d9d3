"""The command line: thin verbs over the package. ``raybench --help`` lists them.

Exit codes: 0 done, 2 bad input, 3 some shards failed (the message says which), 130 interrupted,
143 stopped by SIGTERM. The last two can be resumed by the same command.
"""

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from raybench.config import ScoreConfig, load_config, make_config
from raybench.core.errors import InputError, Interrupted, RaybenchError

__all__ = ["app", "invoke", "main", "read_options", "run_score", "scoring_command"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Robustness evaluation of image classifiers in batches, on Ray.",
)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Dir = Annotated[Path, typer.Argument(help="A folder that raybench score wrote.")]
Out = Annotated[Path, typer.Option(help="Output folder.")]
TrackingUri = Annotated[
    str | None, typer.Option(help=ScoreConfig.model_fields["tracking_uri"].description)
]
Experiment = Annotated[
    str | None, typer.Option(help=ScoreConfig.model_fields["experiment"].description)
]
Baseline = Annotated[
    str | None, typer.Option(help=ScoreConfig.model_fields["baseline"].description)
]


class Rank(StrEnum):
    """What tables rank by."""

    normalised = "normalised"
    score = "score"
    matched = "matched"


RankBy = Annotated[Rank, typer.Option(help=ScoreConfig.model_fields["rank_by"].description)]

# Fields whose flag is not simply --their-name.
_FLAGS = {"resume": "--resume/--fresh", "skip_missing": "--skip-missing/--all-models"}


def scoring_command(
    body: Callable[[ScoreConfig, bool, bool], int],
    defaults: Mapping[str, Any] | None = None,
    read: Callable[[Path | None, Mapping[str, Any]], ScoreConfig] | None = None,
) -> Callable[..., int]:
    """Return `body` as a Typer command whose options are the fields of `ScoreConfig`.

    The fields are the one place where an option is declared: the YAML file, Python and every
    command read them. A flag that is not given leaves the file's value, then the default.

    Args:
        body: takes the configuration, ``as_json`` and ``quiet``; returns the exit code.
        defaults: values that replace the fields' own defaults (recipes in ``jobs/``).
        read: makes the configuration of a file and the flags given; by default `read_options`.
    """
    defaults = defaults or {}

    def command(config: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
        settings = read(config, given) if read else read_options(config, given, defaults)
        return body(settings, as_json, quiet)

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_annotation(name, defaults),
            default=None,
        )
        for name in ScoreConfig.model_fields
    ]
    help_text = "YAML file of these options."
    extra = {
        "config": (Annotated[Path | None, typer.Option("--config", help=help_text)], None),
        "as_json": (Json, False),
        "quiet": (Quiet, False),
    }
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in extra.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = body.__doc__
    command.__name__ = body.__name__
    return command


def _annotation(name: str, defaults: Mapping[str, Any]) -> Any:
    field = ScoreConfig.model_fields[name]
    default = defaults.get(name, None if field.is_required() else field.get_default())
    text = field.description or ""
    if default is not None and not isinstance(default, bool):
        shown = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
        text += f" (default: {shown})"
    if name == "models":
        return Annotated[list[str] | None, typer.Argument(help=text, show_default=False)]
    kinds: dict[Any, Any] = {tuple[str, ...]: list[str], int: int, float: float, bool: bool}
    kind = kinds.get(field.annotation, str)
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    return Annotated[kind | None, typer.Option(flag, help=text, show_default=False)]


def read_options(
    config: Path | None, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> ScoreConfig:
    """Return the configuration: flags `given` (None: not given) over the file over `defaults`.

    Raises:
        InputError: every mistake, each with its field.
    """
    values = {name: value for name, value in given.items() if value not in (None, [])}
    base = dict(defaults or {})
    return load_config(config, values, base) if config else make_config(base | values)


def run_score(config: ScoreConfig, *, as_json: bool = False, quiet: bool = False) -> int:
    """Score, print the tables, and return the exit code."""
    from raybench.display import make_display
    from raybench.driver import execute
    from raybench.job import build_job
    from raybench.signals import StopFlag, catch_signals
    from raybench.sinks.mlflow import ui_command

    display = make_display(quiet=quiet)
    flag = StopFlag()
    with catch_signals(flag, at_once=True):
        job = build_job(config, display.note)
    for note in job.notes:
        display.note(note)
    run = execute(job, config, display, flag)
    _print_tables(run.tables, as_json=as_json)
    for model, shard, error in run.failures:
        print(f"failed: {model} shard {shard}: {error}", file=sys.stderr)
    if run.gave_up:
        print(f"gave up: {run.gave_up}", file=sys.stderr)
    if not as_json:
        print(f"\nresults: {run.out}")
        for path in run.files:
            if path.suffix == ".png":
                print(f"figure:  {path}")
        if run.tracking_uri is not None:
            print(f"compare: {ui_command(config.tracking_uri, run.out)}")
    return run.exit_code


def _print_tables(tables: Sequence[Any], *, as_json: bool) -> None:
    from raybench.reports.tables import as_json as to_json
    from raybench.reports.tables import print_table

    tables = [table for table in tables if table.shown]
    if as_json:
        contents = [to_json(table) for table in tables]
        head = contents[0] if contents else {"models": []}
        # One object, whatever the number of readings: the first table's, and all of them.
        print(json.dumps(head | {"tables": contents} if len(contents) > 1 else head))
        return
    for table in tables:
        print_table(table)


def _score(config: ScoreConfig, as_json: bool, quiet: bool) -> int:
    """Score models on unlabelled images and rank them."""
    return run_score(config, as_json=as_json, quiet=quiet)


def _plan(config: ScoreConfig, as_json: bool, quiet: bool) -> int:
    """Say what a score run would cost, from a pilot of two shards a model; run nothing else."""
    from raybench.display import make_display
    from raybench.forecast import forecast
    from raybench.job import build_job

    display = make_display(quiet=quiet)
    job = build_job(config, display.note)
    result = forecast(job, config, os.cpu_count() or 1, display.note)
    print(json.dumps(result.as_json()) if as_json else result.as_text())
    return 0


app.command("score")(scoring_command(_score))
app.command("plan")(scoring_command(_plan))


@app.command()
def show(
    folder: Dir,
    baseline: Baseline = None,
    rank_by: RankBy = Rank.normalised,
    as_json: Json = False,
) -> int:
    """Print the ranked tables and draw the figures again from stored results."""
    from raybench.publish import write_reports
    from raybench.reports.summary import load_tables

    tables = load_tables(folder, baseline, rank_by.value)
    files = write_reports(folder, tables, None)
    _print_tables(tables, as_json=as_json)
    if not as_json:
        for path in (path for paths in files.values() for path in paths):
            print(path)
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

    verdicts = verify_all(folder)
    if repair and not all(verdict.sound for verdict in verdicts):
        display = make_display()
        repair_parts(
            folder,
            verdicts,
            display,
            StopFlag(),
            display.note,
            tracking_uri=tracking_uri,
            runner=runner,
        )
        verdicts = verify_all(folder)
    if as_json:
        print(
            json.dumps(
                {
                    "sound": all(v.sound for v in verdicts),
                    "measurements": [
                        {
                            "folder": str(v.folder),
                            "shards": len(v.manifest.shards),
                            "missing": [shard.index for shard in v.manifest.missing],
                            "damaged": {finding.file: finding.problem for finding in v.findings},
                        }
                        for v in verdicts
                    ],
                }
            )
        )
    else:
        for v in verdicts:
            print(
                f"{v.folder}: {len(v.manifest.parts)} of {len(v.manifest.shards)} shards, "
                f"{len(v.findings)} damaged"
            )
            for finding in v.findings:
                print(f"  shard {finding.shard} ({finding.file}): {finding.problem}")
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
    from raybench.driver import sync as push

    where = push(
        folder,
        tracking_uri=tracking_uri,
        experiment=experiment,
        baseline=baseline,
        rank_by=rank_by.value,
        say=lambda text: print(text, file=sys.stderr),
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


def invoke(app: typer.Typer, arguments: list[str] | None = None) -> int:
    """Run a Typer application and return its exit code; errors go to stderr as one message."""
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except Interrupted as error:
        print(f"raybench: {error}", file=sys.stderr)
        return error.exit_code
    except InputError as error:
        print(f"raybench: {error}", file=sys.stderr)
        return 2
    except RaybenchError as error:
        print(f"raybench: {error}", file=sys.stderr)
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
