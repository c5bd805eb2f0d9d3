"""Run the benchmarks, all or those named: ``python tests/bench lime attacks sinks``.

Each group runs in a process of its own. Prints a Markdown table and writes it to
``results/bench.md``, writes ``results/bench.json`` (name -> median, low, high of this run) and
appends one line to ``results/bench.jsonl`` with the date, the commit, the versions and the machine.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

# Before torch and NumPy are imported: they read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from goals import goal_of
from paired import Spread, spread

from raybench.core.errors import near_miss
from raybench.job import library_versions

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "results"
BENCHES = (
    "lime",
    "designs",
    "precision",
    "attacks",
    "sinks",
    "dispatch",
    "scaling",
    "memory",
    "coverage",
)
ONE = "--one"  # measures one group in this process, and writes its figures to a file


def main(names: list[str]) -> int:
    """Run the benchmarks `names` (all, where there are none) and return the exit code."""
    if names[:1] == [ONE]:
        return measure_here(names[1], Path(names[2]))
    for name in names:
        if name not in BENCHES:
            print(f"no benchmark is named {name!r}{near_miss(name, BENCHES)}", file=sys.stderr)
            return 2
    measured: dict[str, Spread] = {}
    for name in names or BENCHES:
        begun = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        found = measure_apart(name)
        if found is None:
            return 1
        measured |= found
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(as_markdown(measured))
    record(measured)
    return 0


def measure_apart(name: str) -> dict[str, Spread] | None:
    """Return the figures of a group from a process of its own; None, which it said, if it failed.

    What one group leaves behind (Ray, a grown heap, threads) is then no part of another's figures.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        answer = Path(folder) / "figures.json"
        done = subprocess.run([sys.executable, __file__, ONE, name, str(answer)], check=False)
        if done.returncode:
            print(f"the benchmark {name} failed", file=sys.stderr)
            return None
        figures: dict[str, Spread] = json.loads(answer.read_text(encoding="utf-8"))
        return figures


def measure_here(name: str, answer: Path) -> int:
    found: Mapping[str, object] = import_module(f"bench_{name}").run()
    figures = {key: as_spread(value) for key, value in found.items()}
    answer.write_text(json.dumps(figures), encoding="utf-8")
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
    lines = ["| measure | median | low | high | goal | met |", "|---|---:|---:|---:|---|---|"]
    for key, value in measured.items():
        numbers = " | ".join(f"{value[each]:.3g}" for each in ("median", "low", "high"))
        goal = goal_of(key)
        met = "" if goal is None else "yes" if goal.met(value["median"]) else "**no**"
        lines.append(f"| {key} | {numbers} | {goal or ''} | {met} |")
    return "\n".join(lines)


def record(measured: Mapping[str, Spread]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    machine = f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores"
    (RESULTS / "bench.md").write_text(f"{machine}\n\n{as_markdown(measured)}\n", encoding="utf-8")
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
