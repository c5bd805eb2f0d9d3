"""The audit of the lock in CI, with a uv that answers as told: what fails and what passes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).resolve().parents[2] / ".ci" / "audit"
LOCK = """\
idna==3.6 ; sys_platform == 'linux' \\
    --hash=sha256:aaaa \\
    --hash=sha256:bbbb
moto[s3]==5.1.0 \\
    --hash=sha256:cccc
plain==1.0
"""


def advisory(number: int, *mends: str) -> dict[str, Any]:
    return {
        "dependency": {"name": "idna", "version": "3.6"},
        "id": f"GHSA-{number}",
        "aliases": [f"CVE-{number}"],
        "summary": f"hole {number}",
        "link": "https://osv.dev/x",
        "fix_versions": list(mends),
    }


def audit(
    tmp_path: Path, *found: dict[str, Any], known: str = "", uv: str | None = None
) -> tuple[int, str]:
    """Run a copy of the script with `known` as its list, and return its exit code and output."""
    folder = tmp_path / "repository" / ".ci"
    folder.mkdir(parents=True)
    (folder / "audit").write_text(AUDIT.read_text())
    (folder / "advisories.txt").write_text(f"# listed\n\n{known}")
    (tmp_path / "lock").write_text(LOCK)
    answer = {"summary": {"audited_packages": 3}, "vulnerabilities": list(found)}
    fake = tmp_path / "uv"
    body = f"import pathlib, sys\npathlib.Path({str(tmp_path / 'asked')!r}).write_text("
    body += "pathlib.Path(sys.argv[-1]).read_text())\n"
    body += uv or f"print({json.dumps(answer)!r})\nsys.exit({bool(found):d})"
    fake.write_text(f"#!{sys.executable}\n{body}\n")
    fake.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-I", folder / "audit", tmp_path / "lock"],
        env=os.environ | {"UV": str(fake)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_pin_is_asked_about_with_its_marker(tmp_path: Path) -> None:
    assert audit(tmp_path) == (0, "audit: 3 packages, 0 advisories, 0 to mend\n")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line for line in asked if "==" in line] == [
        "#   \"idna==3.6; sys_platform == 'linux'\",",
        '#   "moto[s3]==5.1.0",',
        '#   "plain==1.0",',
    ]


def test_only_what_can_be_mended_and_is_not_listed_fails(tmp_path: Path) -> None:
    code, said = audit(
        tmp_path,
        advisory(1, "3.7", "4.0"),
        advisory(2),
        advisory(3, "3.8"),
        known="CVE-3 2026-07-01 robustbench pins it\nGHSA-9 2026-07-01 gone\n",
    )
    assert code == 1
    first, second, third, gone, last = said.splitlines()
    assert first.startswith("idna 3.6: GHSA-1 hole 1")
    assert "FAILS: mended in 3.7, 4.0; make lock, or list it" in first
    assert "no version mends it yet" in second
    assert "borne: robustbench pins it (2026-07-01)" in third
    assert "GHSA-9 is no longer found" in gone
    assert last == "audit: 3 packages, 3 advisories, 1 to mend"


def test_an_advisory_without_a_mend_passes(tmp_path: Path) -> None:
    code, said = audit(tmp_path, advisory(2))
    assert (code, "GHSA-2" in said) == (0, True)


def test_where_no_advisories_can_be_had_it_says_why(tmp_path: Path) -> None:
    uv = "sys.stderr.write('error: Request failed\\n  cause: dns error\\n'); sys.exit(2)"
    assert audit(tmp_path, uv=uv) == (
        0,
        "audit SKIPPED, nothing was checked: error: Request failed cause: dns error\n",
    )


@pytest.mark.parametrize("line", ["GHSA-1", "GHSA-1 soon because", "GHSA-1 2026-07-01"])
def test_a_listed_advisory_needs_a_date_and_a_reason(tmp_path: Path, line: str) -> None:
    code, said = audit(tmp_path, known=line)
    assert code == 1
    assert "expected 'ID YEAR-MONTH-DAY reason'" in said
