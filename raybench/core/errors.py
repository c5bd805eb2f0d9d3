"""Every error raybench raises on purpose.

::

    RaybenchError
    ├── InputError(ValueError)     the user's mistake: names the input, the rule and the mend
    │   ├── SpecError              a model, dataset or reading that cannot be understood or found
    │   ├── AccessError            a method that needs more than the model offers
    │   └── OutputError            a model whose answers break its own declaration
    ├── StoreError                 results on disk that are damaged, incomplete or foreign
    ├── RunError                   a run that ended before its work was done
    ├── BudgetSpentError           a model's query budget does not allow the next question
    └── Interrupted                the run was asked to stop; carries the exit code
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "AccessError",
    "BudgetSpentError",
    "InputError",
    "Interrupted",
    "OutputError",
    "RaybenchError",
    "RunError",
    "SpecError",
    "StoreError",
    "near_miss",
]


class RaybenchError(Exception):
    """Base of every error raised on purpose; its text is meant for the user."""


class InputError(RaybenchError, ValueError):
    """Something the user gave is wrong; exit code 2."""


class SpecError(InputError):
    """A spec string that is malformed, names nothing known, or cannot be loaded."""


class AccessError(InputError):
    """A method asked for a higher access level than the model offers (spec 00 section 0.3)."""


class OutputError(InputError):
    """A model answered with a wrong shape, non-finite values, or the wrong kind of scores."""


class StoreError(RaybenchError):
    """Stored results that are damaged, incomplete, or belong to another measurement."""


class RunError(RaybenchError):
    """A run ended with work undone; exit code 3. What was committed stays."""


class BudgetSpentError(RaybenchError):
    """A model may not be asked any more: its query budget is spent; exit code 4.

    Nothing was asked beyond the budget, and what was committed stays.
    """


class Interrupted(RaybenchError):  # noqa: N818 - a request, not a fault
    """The run was asked to stop. ``exit_code`` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("interrupted; run the same command again to go on")
        self.exit_code = exit_code


def near_miss(name: str, known: Iterable[str]) -> str:
    """Return the tail of an error about an unknown name: what it may have meant, what exists."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{hint} (known: {', '.join(names)})" if names else hint
