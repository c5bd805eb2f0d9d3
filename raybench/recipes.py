"""What the scripts in ``jobs/`` share: a command line whose defaults are an experiment's."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from raybench.cli import invoke, run_job
from raybench.config import ScoreConfig
from raybench.core.errors import InputError
from raybench.options import configured, read_options

__all__ = ["run_recipe"]


def run_recipe(
    text: str | None,
    defaults: Mapping[str, Any],
    models_for: Callable[[str], tuple[str, ...]] | None = None,
    and_then: Callable[[str], Mapping[str, Any]] | None = None,
    arguments: list[str] | None = None,
) -> int:
    """Run a job with the options of ``raybench score`` over `defaults`; return the exit code.

    Args:
        text: the job's help text.
        defaults: fields of `ScoreConfig` that replace its defaults.
        models_for: gives the models for a dataset spec, where none are named.
        and_then: gives the options of a second run for a dataset spec, where no models are named.
        arguments: command line; None takes the process's own.
    """

    def body(config: ScoreConfig, as_json: bool, quiet: bool) -> int:
        code = run_job(config, as_json=as_json, quiet=quiet)
        if and_then is None or config.models != tuple(defaults.get("models", ())):
            return code
        settings = config.model_dump(exclude_unset=True) | dict(and_then(config.data))
        second = ScoreConfig.model_validate(settings)
        try:
            return max(code, run_job(second, as_json=as_json, quiet=quiet))
        except InputError as error:
            print(f"left out the second table: {error}", file=sys.stderr)
            return code

    body.__doc__ = text

    def complete(config: Path | None, given: Mapping[str, Any]) -> ScoreConfig:
        if models_for is None:
            return read_options(ScoreConfig, config, given, defaults)
        # The models depend on the dataset, which only the options together decide.
        probe = read_options(ScoreConfig, config, given, {**defaults, "models": ("zoo:mlp2",)})
        return read_options(
            ScoreConfig, config, given, {**defaults, "models": models_for(probe.data)}
        )

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(configured(ScoreConfig, body, defaults, complete))
    return invoke(app, arguments)
