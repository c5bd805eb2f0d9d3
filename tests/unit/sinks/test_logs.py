"""Lines of JSON: what is in them, where they go, and that nobody is bothered who did not ask."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raybench.core.errors import InputError
from raybench.sinks.logs import JsonLines, log_fields, log_lines

LOG = logging.getLogger("raybench.test")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_when_what_and_where(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.jsonl"
    with log_lines(str(path)), log_fields(run="r1", model="m"):
        LOG.warning("shard-retried", extra={"facts": {"shard": 3, "error": "Über\nzwei Zeilen"}})
    [line] = lines(path)
    age = datetime.now(UTC) - datetime.fromisoformat(str(line.pop("time")))
    assert timedelta(0) <= age < timedelta(seconds=60)
    assert line == {
        "level": "warning",
        "event": "shard-retried",
        "run": "r1",
        "model": "m",
        "shard": 3,
        "error": "Über\nzwei Zeilen",
    }


def test_fields_hold_for_their_block_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with log_lines(str(path)), log_fields(run="r1"):
        with log_fields(shard=1):
            LOG.info("inside")
        LOG.info("outside")
    assert [line.get("shard") for line in lines(path)] == [1, None]
    assert [line["run"] for line in lines(path)] == ["r1", "r1"]


def test_a_second_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for name in ("first", "second"):
        with log_lines(str(path)):
            LOG.info(name)
        LOG.info("after the end")
    assert [line["event"] for line in lines(path)] == ["first", "second"]


def test_errors_come_with_their_trace_and_without_credentials(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with log_lines(str(path)):
        try:
            raise ConnectionError("https://me:hunter2@host/x refused")
        except ConnectionError:
            LOG.exception("shard-raised")
        LOG.error("failed", extra={"facts": {"error": "s3://key:hunter2@bucket?token=hunter2"}})
        LOG.error("s3://key:hunter2@bucket")
    assert "hunter2" not in path.read_text()
    assert "ConnectionError: https://***@host/x refused" in str(lines(path)[0]["error"])
    assert "test_logs.py" in str(lines(path)[0]["error"])


def test_what_is_no_json_is_written_as_text() -> None:
    record = LOG.makeRecord("raybench", logging.INFO, "", 0, "event", (), None)
    record.facts = {"path": Path("/x"), "text": 'a "quote"'}
    assert json.loads(JsonLines().format(record))["path"] == "/x"


def test_dash_is_stderr_and_none_is_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with log_lines("-"):
        LOG.info("heard")
    with log_lines(None):
        LOG.info("not heard")
        LOG.warning("nor this")
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "heard"


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "run.jsonl"):
        with (
            pytest.raises(InputError, match=r"cannot be written .* name a file, or - for stderr"),
            log_lines(str(target)),
        ):
            raise AssertionError("entered")


WORKER = """
import logging
from raybench.sinks.logs import log_fields, log_process
log_process(run="r1")
log_process(run="r2")
with log_fields(shard=7):
    logging.getLogger("raybench.worker").info("shard-computed")
    logging.getLogger("someone.else").info("not of interest")
    logging.getLogger("someone.else").warning("trouble in %s", "paradise")
"""


def test_a_workers_process_logs_to_stderr_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""
    mine, other = map(json.loads, done.stderr.splitlines())
    assert (mine["event"], mine["run"], mine["shard"]) == ("shard-computed", "r1", 7)
    assert (other["event"], other["logger"]) == ("trouble in paradise", "someone.else")
    assert (other["run"], other["shard"]) == ("r1", 7)
