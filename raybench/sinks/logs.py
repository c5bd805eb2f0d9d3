"""Logs as one JSON object a line, for machines: what happened, in which run, to which shard.

    with log_lines("run.jsonl"):
        logging.getLogger("raybench.run").info("shard-done", extra={"facts": {"shard": 3}})

    {"time": "2026-07-27T10:00:00.123+00:00", "level": "info", "event": "shard-done", "shard": 3}

Python's own `logging` carries them, so a program that uses raybench can send them elsewhere. Facts
that hold for a while (`log_fields`) are in every line meanwhile, those of other libraries included.
Credentials are replaced by ``***``.
"""

import contextvars
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raybench.core.errors import InputError
from raybench.sinks.tracking import redact

__all__ = ["JsonLines", "log_fields", "log_lines", "log_process"]

LOGGER = "raybench"

_NONE: dict[str, Any] = {}
_FIELDS: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("fields", default=_NONE)

# Silent until somebody listens: otherwise Python prints warnings of a library without a handler.
logging.getLogger(LOGGER).addHandler(logging.NullHandler())


class JsonLines(logging.Formatter):
    """A record as a JSON object on one line: time, level, event, then whatever is known."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": redact(record.getMessage()),
            **_FIELDS.get(),
            **getattr(record, "facts", {}),
        }
        if not record.name.startswith(LOGGER):
            facts["logger"] = record.name
        if record.exc_info:
            facts["error"] = self.formatException(record.exc_info)
        if isinstance(facts.get("error"), str):
            facts["error"] = redact(facts["error"])
        return json.dumps(facts, ensure_ascii=False, default=str)


@contextmanager
def log_fields(**fields: Any) -> Iterator[None]:
    """Have `fields` in every line that this thread logs while the block runs."""
    token = _FIELDS.set(_FIELDS.get() | fields)
    try:
        yield
    finally:
        _FIELDS.reset(token)


@contextmanager
def log_lines(target: str | None) -> Iterator[None]:
    """Append what raybench logs to the file `target`, or to stderr for "-"; None logs nothing.

    Raises:
        InputError: the file cannot be written.
    """
    if target is None:
        yield
        return
    handler: logging.Handler
    try:
        if target == "-":
            handler = logging.StreamHandler(sys.stderr)
        else:
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(target, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"log {target} cannot be written ({error.strerror or error}); name a file, or - for "
            "stderr"
        ) from error
    logger = logging.getLogger(LOGGER)
    level = logger.level
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


def log_process(**fields: Any) -> None:
    """Have everything this process logs from now on, with `fields`, on stderr as JSON lines.

    raybench's own from INFO up, other libraries' from WARNING up. A worker's stderr is among Ray's
    logs, on its machine and in the dashboard. Where raybench's are listened to already, as in the
    driver's own process, they go there and nothing is changed.
    """
    if logging.getLogger(LOGGER).isEnabledFor(logging.INFO):
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger(LOGGER).setLevel(logging.INFO)
    _FIELDS.set(_FIELDS.get() | fields)
