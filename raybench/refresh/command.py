"""``raybench refresh``: the leaderboard file in, tables and a summary out, an exit code back."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raybench.core.errors import InputError
from raybench.core.robustness import AttackTable
from raybench.display import make_display
from raybench.refresh.file import load_leaderboard
from raybench.refresh.run import Refreshed, refresh
from raybench.refresh.state import state_path
from raybench.refresh.status import status_lines, summary_line
from raybench.reports.attack_text import attacks_as_json
from raybench.reports.tables import as_json as scores_as_json
from raybench.signals import StopFlag

__all__ = ["run_refresh"]


def run_refresh(
    path: Path,
    given: Mapping[str, Any],
    print_tables: Callable[..., None],
    *,
    rehash: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Refresh the leaderboard of the file at `path`, print what it came to, return the exit code.

    Args:
        path: the leaderboard file.
        given: options of the run that go before the file's; None where one was not given.
        print_tables: prints ranked tables.
        rehash: trust no record of models or parts.
        as_json: print one JSON object.
        quiet: show no progress.

    Raises:
        InputError: mistakes in the file or in `given`.
    """
    began = time.monotonic()
    file = load_leaderboard(path)
    try:
        means = file.means(**given)
    except ValidationError as error:
        first = error.errors()[0]
        text = str(first["msg"]).removeprefix("Value error, ")
        raise InputError(f"--{first['loc'][0]}: {text}, found {first['input']!r}") from error
    display = make_display(quiet=quiet, bars=False)
    done = refresh(file, means, display, StopFlag(), rehash=rehash, began=began)
    if as_json:
        print(json.dumps(_as_json(done)))
    else:
        for one in done.ranked:
            print(f"\n{one.dataset}, benchmark version {done.state.benchmark_version}\n")
            print_tables(one.tables, as_json=False)
            print(one.agreement, end="")
    for line in status_lines(done.state):
        print(line, file=sys.stderr)
    if done.gave_up:
        print(f"gave up: {done.gave_up}", file=sys.stderr)
    if not as_json:
        print(f"\n{summary_line(done.state, done.computed, done.loaded)}")
        print(f"state: {state_path(done.out)}")
    return done.exit_code


def _as_json(done: Refreshed) -> dict[str, Any]:
    state = json.loads(state_path(done.out).read_bytes())
    tables = [
        {"leaderboard_dataset": one.dataset}
        | (attacks_as_json(table) if isinstance(table, AttackTable) else scores_as_json(table))
        for one in done.ranked
        for table in one.tables
    ]
    return {
        "computed": done.computed,
        "loaded": done.loaded,
        "gave_up": done.gave_up,
        "state": state,
        "tables": tables,
    }
