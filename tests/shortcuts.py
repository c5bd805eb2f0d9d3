"""What whole runs may skip in tests of something else: drawing figures, and making databases."""

import contextlib
import fcntl
import io
import os
import shutil
from pathlib import Path

import pytest


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let figures be built and their files appear, but nothing be drawn in them.

    Drawing takes two thirds of a small run. Figures have tests of their own, and every run in a
    process of its own draws them.
    """
    from matplotlib.figure import Figure

    def save(figure: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"a figure")

    patch.setattr(Figure, "savefig", save)
    patch.setattr(Figure, "draw_without_rendering", lambda figure: None)


def make_database(folder: Path) -> tuple[Path, str]:
    """Return a database that MLflow has made and migrated in `folder`, and what that printed.

    Processes of one test session share it, and the first to come makes it.
    """
    from raybench.sinks.mlflow import open_tracker

    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "said.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            printed = io.StringIO()
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                open_tracker(None, folder, "template")
            said.write_text(printed.getvalue())
    return folder / "mlflow.db", said.read_text()


def copy_databases(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let runs in this process begin with a copy of `make_database`'s: its migrations take long."""
    from raybench.sinks import mlflow

    probe = mlflow.probe

    def copying(uri: str, out: Path) -> str | None:
        database = Path(uri.removeprefix("sqlite:///"))
        if uri.startswith("sqlite:///") and not database.exists() and out != folder.resolve():
            made, _ = make_database(folder)
            database.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, database)
        return probe(uri, out)

    patch.setattr(mlflow, "probe", copying)


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a folder that all processes of this test session know by `name`."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
