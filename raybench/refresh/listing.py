"""From the lines of a leaderboard file to the models they name: patterns are spelt out."""

import glob
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from raybench.core.errors import InputError, SpecError
from raybench.core.spec import Spec, parse
from raybench.refresh.file import LeaderboardFile, ModelLine
from raybench.sinks.parts import write_atomically

__all__ = ["Listed", "list_models"]

_FILES = frozenset({"file", "torchscript", "exported", "onnx"})
_MAGIC = ("*", "[", "?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One model that the file asks for, on each of some datasets.

    Attributes:
        spec: the model; canonical.
        datasets: names of the datasets.
        files: what its factory is said to read.
        info: facts for the exported entry.
        problem: why there is none, where a pattern stands for nothing; `spec` is then the pattern.
    """

    spec: str
    datasets: tuple[str, ...]
    files: tuple[Path, ...] = ()
    info: tuple[tuple[str, Any], ...] = ()
    problem: str | None = None


def list_models(file: LeaderboardFile, cache: Path) -> list[Listed]:
    """Return every model of `file`, in its order.

    A model that has a line of its own is left out of patterns, so that the line can give it another
    name; of two patterns the first has it. A pattern that nothing fits is an entry with a
    `problem`: an empty folder must not stop the others.

    Args:
        file: the leaderboard.
        cache: where the names that RobustBench knows are kept: importing it takes seconds.

    Raises:
        InputError: two lines for one model on one dataset; a name for a pattern that would call
            several models the same.
    """
    every = tuple(line.name for line in file.datasets)
    problems: list[str] = []
    taken: set[tuple[str, str]] = set()
    for index, line in enumerate(file.models):
        if _is_pattern(spec := parse(line.spec)):
            continue
        for name in line.datasets or every:
            if (_identity(spec), name) in taken:
                problems.append(f"models.{index}: {line.spec} is given twice for {name}")
            taken.add((_identity(spec), name))
    listed: list[Listed] = []
    for index, line in enumerate(file.models):
        spec, datasets = parse(line.spec), line.datasets or every
        if not _is_pattern(spec):
            own = spec if line.name is None else spec.with_options(name=line.name)
            listed.append(_entry(line, own, datasets))
            continue
        try:
            matches = _matches(spec, cache)
            if not matches:
                raise InputError(f"{spec} stands for no model: nothing fits the pattern")
        except InputError as error:
            listed.append(_entry(line, spec, datasets, problem=str(error)))
            continue
        try:
            named = [_named(match, line) for match in matches]
        except InputError as error:
            problems.append(f"models.{index}: {error}")
            continue
        for match, full in zip(matches, named, strict=True):
            free = tuple(name for name in datasets if (_identity(match), name) not in taken)
            taken |= {(_identity(match), name) for name in free}
            if free:
                listed.append(_entry(line, full, free))
    if problems:
        raise InputError("\n  ".join(problems))
    return listed


def _identity(spec: Spec) -> str:
    return spec.with_options(name=None).canonical()


def _is_pattern(spec: Spec) -> bool:
    if not any(mark in spec.rest for mark in _MAGIC):
        return False
    # A path may hold brackets itself.
    return spec.scheme not in _FILES or not Path(spec.rest).expanduser().exists()


def _entry(
    line: ModelLine, spec: Spec, datasets: tuple[str, ...], problem: str | None = None
) -> Listed:
    return Listed(
        spec=spec.canonical(),
        datasets=datasets,
        files=line.files,
        info=tuple(sorted(line.info.items())),
        problem=problem,
    )


def _named(spec: Spec, line: ModelLine) -> Spec:
    if line.name is None:
        return spec
    path = PurePath(spec.rest)
    places = {"{stem}": path.name.partition(".")[0], "{folder}": path.parent.name}
    if not any(place in line.name for place in places):
        raise InputError(
            f"{line.spec} stands for several models, so the name {line.name!r} must hold "
            f"{' or '.join(places)}"
        )
    name = line.name
    for place, text in places.items():
        name = name.replace(place, text)
    return spec.with_options(name=name)


def _matches(spec: Spec, cache: Path) -> list[Spec]:
    """Return what a pattern stands for: files sorted, names in the order of their list.

    Raises:
        SpecError: a scheme whose models cannot be listed; RobustBench without the package.
    """
    if spec.scheme in _FILES:
        found = sorted(glob.glob(str(Path(spec.rest).expanduser()), recursive=True))
        return [Spec(spec.scheme, name, spec.options) for name in found if Path(name).is_file()]
    if spec.scheme == "robustbench":
        names = [f"{group}/{name}" for group, all_ in _robustbench(cache).items() for name in all_]
    elif spec.scheme == "zoo":
        from raybench.models.zoo import NAMES

        names = list(NAMES)
    elif spec.scheme == "control":
        from raybench.models.controls import NAMES as CONTROLS

        names = list(CONTROLS)
    else:
        raise SpecError(
            f"{spec}: the models of {spec.scheme} cannot be listed; name each one, or use a "
            f"pattern with {', '.join(sorted((*_FILES, 'robustbench', 'zoo', 'control')))}"
        )
    return [Spec(spec.scheme, name, spec.options) for name in names if _fits(name, spec.rest)]


def _fits(name: str, pattern: str) -> bool:
    """Whether `name` fits `pattern` piece by piece: a star does not reach over a slash."""
    mine, wanted = name.split("/"), pattern.split("/")
    return len(mine) == len(wanted) and all(map(fnmatchcase, mine, wanted))


def _robustbench(cache: Path) -> dict[str, Sequence[str]]:
    try:
        installed = version("robustbench")
    except PackageNotFoundError:
        installed = "absent"
    try:
        content = json.loads(cache.read_bytes())
        if content["version"] == installed:
            return dict(content["names"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    from raybench.models.robustbench import listing

    names: dict[str, Sequence[str]] = dict(listing())
    write_atomically(cache, json.dumps({"version": installed, "names": names}).encode())
    return names
