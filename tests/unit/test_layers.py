"""The import table of the house, read off the files: imports point down only."""

import ast
import subprocess
import sys
from pathlib import Path

import raybench

ROOT = Path(raybench.__file__).parent

# Entry -> the entries of raybench it may import. Entries of one layer do not import each other.
MAY_IMPORT = {
    "core": set(),
    "kernels": set(),
    "metrics": {"core"},
    "models": {"core", "kernels"},
    "data": {"core"},
    "sinks": {"core"},
    "evaluations": {"core", "kernels", "metrics"},
    "reports": {"core", "kernels", "metrics", "sinks"},
    "runners": {"core", "sinks"},
    "config": {"core"},
    "refresh": {
        *("core", "kernels", "metrics", "models", "data", "sinks", "evaluations", "reports"),
        *("config", "fit", "job", "driver", "publish", "publish_attacks", "display", "signals"),
    },
    "sequential": {"config", "core", "metrics", "reports", "sinks"},
}

# Packages that these files alone may import.
ONLY_IN = {
    "ray": ("runners/ray.py", "runners/ray_metrics.py", "runners/ray_session.py"),
    "mlflow": ("sinks/mlflow.py",),
    "robustbench": ("models/robustbench.py",),
}

# What kernels may not know: engines, stores and files.
NOT_IN_KERNELS = {"ray", "mlflow", "pyarrow", "pathlib", "os", "io"}


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return found


def files() -> list[tuple[str, Path]]:
    return [(path.relative_to(ROOT).as_posix(), path) for path in sorted(ROOT.rglob("*.py"))]


def test_imports_point_down() -> None:
    wrong = []
    for name, path in files():
        entry = name.split("/")[0].removesuffix(".py")
        if entry not in MAY_IMPORT:
            continue
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] == "raybench" and len(parts) > 1:
                other = parts[1]
                if other != entry and other not in MAY_IMPORT[entry]:
                    wrong.append(f"{name}:{line} imports {module}")
    assert not wrong


def test_engines_and_stores_stay_in_their_one_file() -> None:
    wrong = [
        f"{name}:{line} imports {module}"
        for name, path in files()
        for line, module in imports(path)
        if name not in ONLY_IN.get(module.split(".")[0], (name,))
    ]
    assert not wrong


def test_kernels_know_no_files_and_no_engine() -> None:
    wrong = [
        f"{name}:{line} imports {module}"
        for name, path in files()
        if name.startswith("kernels/")
        for line, module in imports(path)
        if module.split(".")[0] in NOT_IN_KERNELS
    ]
    assert not wrong


def test_every_entry_is_in_the_table() -> None:
    folders = {name.split("/")[0] for name, _ in files() if "/" in name}
    assert folders == set(MAY_IMPORT) - {"config", "sequential"}


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, raybench, raybench.core.catalog;"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    import importlib

    for name, _ in files():
        if name.startswith(("kernels/", "metrics/", "core/", "sinks/", "evaluations/", "data/")):
            module = importlib.import_module("raybench." + name[:-3].replace("/", "."))
            for public in getattr(module, "__all__", []):
                assert hasattr(module, public), f"{name} names {public}"
