"""Run the benchmarks, all or those named: ``python tests/bench lime attacks sinks``.

Prints a Markdown table, writes ``results/bench.json`` (name -> median, low, high of this run) and
appends one line to ``results/bench.jsonl`` with the date, the commit, the versions and the machine.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

# Before torch and NumPy are imported: they read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from paired import Spread, spread

from raybench.core.errors import near_miss
from raybench.job import library_versions

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
BENCHES = ("lime", "attacks", "sinks", "dispatch", "coverage")


def main(names: list[str]) -> int:
    """Run the benchmarks `names` (all, where there are none) and return the exit code."""
    for name in names:
        if name not in BENCHES:
            print(f"no benchmark is named {name!r}{near_miss(name, BENCHES)}", file=sys.stderr)
            return 2
    measured: dict[str, Spread] = {}
    for name in names or BENCHES:
        begun = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        found: Mapping[str, object] = import_module(f"bench_{name}").run()
        measured |= {key: as_spread(value) for key, value in found.items()}
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(as_markdown(measured))
    record(measured)
    return 0


def as_spread(value: object) -> Spread:
    """Return a value measured once as a range of one point."""
    if isinstance(value, Mapping):
        assert set(value) == {"median", "low", "high"}, value
        return dict(value)
    assert isinstance(value, float), value
    return spread([value])


def as_markdown(measured: Mapping[str, Spread]) -> str:
    """Return the table, numbers to three significant digits."""
    lines = ["| measure | median | low | high |", "|---|---:|---:|---:|"]
    lines += [
        f"| {key} | {value['median']:.3g} | {value['low']:.3g} | {value['high']:.3g} |"
        for key, value in measured.items()
    ]
    return "\n".join(lines)


def record(measured: Mapping[str, Spread]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    line = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": library_versions() | {name: version(name) for name in ("lime", "scikit-image")},
        "machine": {"cpu": cpu_model(), "cores": len(os.sched_getaffinity(0))},
        "results": measured,
    }
    with (RESULTS / "bench.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def git(*arguments: str) -> str:
    """Return what git says of the checkout; empty outside of one."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def cpu_model() -> str:
    """Return the processor's name as Linux tells it, or "unknown"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
