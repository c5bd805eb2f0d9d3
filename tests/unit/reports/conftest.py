"""Stored results that several tests of the report look at, and none changes."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from report_material import store_results


def _no_drawing(patch: pytest.MonkeyPatch) -> None:
    def save(figure: Figure, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"a figure")

    patch.setattr(Figure, "savefig", save)
    patch.setattr(Figure, "draw_without_rendering", lambda figure: None)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures with matplotlib: what stands around them is tested."""
    _no_drawing(monkeypatch)


@pytest.fixture(scope="session")
def stored_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `report_material.store_results`; copy it to change it."""
    with pytest.MonkeyPatch.context() as patch:
        _no_drawing(patch)
        return store_results(tmp_path_factory.mktemp("report"))
