"""Commands whose options are a configuration's fields, declared once for flags, YAML, Python."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from raybench.config import RunConfig, load_config, make_config

__all__ = ["Json", "Quiet", "configured", "read_options"]

Config = TypeVar("Config", bound=RunConfig)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]

# Fields whose flag is not simply --their-name.
_FLAGS = {"resume": "--resume/--fresh", "skip_missing": "--skip-missing/--all-models"}


def configured(
    kind: type[Config],
    body: Callable[[Config, bool, bool], int],
    defaults: Mapping[str, Any] | None = None,
    read: Callable[[Path | None, Mapping[str, Any]], Config] | None = None,
) -> Callable[..., int]:
    """Return `body` as a Typer command whose options are the fields of `kind`.

    The fields are the one place where an option is declared: the YAML file, Python and every
    command read them. A flag that is not given leaves the file's value, then the default.

    Args:
        kind: the configuration.
        body: takes the configuration, ``as_json`` and ``quiet``; returns the exit code.
        defaults: values that replace the fields' own defaults (recipes in ``jobs/``).
        read: makes the configuration of a file and the flags given; by default `read_options`.
    """
    defaults = defaults or {}

    def command(config: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
        settings = read(config, given) if read else read_options(kind, config, given, defaults)
        return body(settings, as_json, quiet)

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_annotation(kind, name, defaults),
            default=None,
        )
        for name in kind.model_fields
    ]
    help_text = "YAML file of these options."
    extra = {
        "config": (Annotated[Path | None, typer.Option("--config", help=help_text)], None),
        "as_json": (Json, False),
        "quiet": (Quiet, False),
    }
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=known, default=default)
        for name, (known, default) in extra.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = body.__doc__
    command.__name__ = body.__name__
    return command


def _annotation(kind: type[RunConfig], name: str, defaults: Mapping[str, Any]) -> Any:
    field = kind.model_fields[name]
    default = defaults.get(name, None if field.is_required() else field.get_default())
    text = field.description or ""
    if default is not None and not isinstance(default, bool):
        shown = " ".join(map(str, default)) if isinstance(default, tuple | list) else default
        text += f" (default: {shown})"
    if name == "models":
        return Annotated[list[str] | None, typer.Argument(help=text, show_default=False)]
    types: dict[Any, Any] = {tuple[str, ...]: list[str], int: int, float: float, bool: bool}
    given = types.get(field.annotation, str)
    flag = _FLAGS.get(name, "--" + name.replace("_", "-"))
    return Annotated[given | None, typer.Option(flag, help=text, show_default=False)]


def read_options(
    kind: type[Config],
    config: Path | None,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Return the configuration: flags `given` (None: not given) over the file over `defaults`.

    Raises:
        InputError: every mistake, each with its field.
    """
    values = {name: value for name, value in given.items() if value not in (None, [])}
    base = dict(defaults or {})
    return load_config(kind, config, values, base) if config else make_config(kind, base | values)
