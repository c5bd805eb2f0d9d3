"""Whatever models, data and experiments are called, a run writes to its output folder alone."""

import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from score_material import REPOSITORY, make_material
from shortcuts import make_database, shared_folder

# Each would name, or run, something else if it were ever taken for a path or a command.
HOSTILE = (
    "..%2f..%2fescaped",
    "$(touch escaped)",
    "`touch escaped`;touch escaped",
    "-rf",
    "two\nlines",
    "C:\\escaped",
    "<script>escaped<",
    "%s%n{0.__class__}",
    "..\N{DIVISION SLASH}..\N{FULLWIDTH SOLIDUS}escaped",
)

# The names of figures count here, not what is drawn.
PREAMBLE = """
import pytest
from shortcuts import draw_nothing
from raybench.cli import main
draw_nothing(pytest.MonkeyPatch())
"""
BOARD = """
benchmark_version: ".."
out: {out}
datasets:
  - {{name: "..", spec: '{data}&n=4&resize=8', threat: linf 0.1}}
evaluations: ["grid?samples=32&cells=3"]
models:
  - {{spec: '{model}', name: "../../escaped/$(touch escaped)"}}
tracking_uri: "sqlite:///{out}/mlflow.db"
resources: {{runner: local}}
"""


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return all below `folder`: files with their content, folders and links with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in folder.rglob("*")
    }


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    cells = []
    for number, name in enumerate(HOSTILE):
        path = folder / "..images" / f"class {number % 2}" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
        cells.append({"bytes": path.read_bytes(), "path": f"../../../escaped/{name}"})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), "../label": list(range(len(cells)))})
    pq.write_table(table, folder / "..escaped;.parquet")


def run(work: Path, environment: dict[str, str], *commands: list[str]) -> None:
    """Run commands of raybench one after the other in one fresh process."""
    script = f"{PREAMBLE}\nfor one in {commands!r}:\n    assert main(one) == 0, one"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def write_archives(folder: Path, network: Path) -> None:
    """Write archives with names that lead out of wherever they might be unpacked."""
    shutil.copyfile(network, folder / "net.pt")
    with zipfile.ZipFile(folder / "net.pt", "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        # torch refuses a record outside the root itself.
        archive.writestr(f"{root}/../../../escaped", b"x")
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(folder / "images.npz", "w") as archive:
        for name, array in (
            ("../../../escaped", rng.integers(0, 256, (4, 8, 8), dtype=np.uint8)),
            ("/escaped", rng.integers(0, 3, 4)),
        ):
            stream = io.BytesIO()
            np.save(stream, array)
            archive.writestr(f"{name}.npy", stream.getvalue())


def test_hostile_names_write_nowhere_else(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home, temporary, work, out = (tmp_path / name for name in ("home", "tmp", "work", "out"))
    for folder in (home, temporary, work / "a" / "b"):
        folder.mkdir(parents=True)
    write_images(work)
    material = make_material(work / "models")
    models = [
        f"{model}&name={'../' * (index + 2)}escaped/$(touch escaped)"
        for index, model in enumerate(material.models)
    ]
    write_archives(work, material.folder / "first.pt")
    packed = "torchscript:../../net.pt?shape=1x8x8&classes=3&name=.."
    board = BOARD.format(
        out=out / "board", data=f"folder:{work}/..images?channels=1", model=material.models[0]
    )
    (work / "board.yaml").write_text(board)
    more = [
        *("--n", str(len(HOSTILE)), "--samples", "32", "--reading", "grid?cells=3"),
        *("--experiment", "../../escaped", "--tracking-uri", f"sqlite:///{out}/mlflow.db"),
        *("--out", str(out), "--runner", "local"),
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "OMP_NUM_THREADS": "1",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
        # Caches of bytecode and fonts, which take long to make and know nothing of a run.
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }
    database, _ = make_database(shared_folder(tmp_path_factory, "mlflow"))
    out.mkdir()
    shutil.copyfile(database, out / "mlflow.db")
    before = {name: held for name, held in tree(tmp_path).items() if name.split("/")[0] != "out"}
    run(
        work / "a" / "b",
        environment,
        ["score", *models, "--data", "folder:../../..images?channels=1", *more],
        [
            *("score", models[0], "--data"),
            *("parquet:../../..escaped;.parquet?channels=1&label=../label", *more),
        ],
        # Without an experiment or a place for MLflow of their own.
        [
            *("attack", packed, "--data"),
            "npz:../../images.npz?images=../../../escaped&labels=/escaped&n=4",
            *("--attack", "square?queries=4", "--eps", "0.1", "--out", str(out / "attacks")),
            *("--runner", "local"),
        ],
        ["report", str(out)],
        ["refresh", str(work / "board.yaml")],
    )
    after = tree(tmp_path)
    # torch makes this folder, empty, as soon as it is imported.
    ours = {name for name in after if name.split("/")[0] == "out"} | {
        name for name in after if re.fullmatch(r"tmp/torchinductor_\w+", name)
    }
    assert {name: content for name, content in after.items() if name not in ours} == before
    # And there, under names of letters, digits, dots and dashes.
    parts = [name for name in ours if name.endswith(".parquet")]
    assert len(parts) >= 3
    for name in parts:
        assert re.fullmatch(r"[\w./=-]+", name, re.ASCII), name
        assert ".." not in name
    assert "escaped" not in {Path(name).name for name in ours}
