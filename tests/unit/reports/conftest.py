"""Stored results that several tests of the report look at, and none changes."""

from pathlib import Path

import pytest
from report_material import store_results
from shortcuts import draw_nothing


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no figures with matplotlib: what stands around them is tested."""
    draw_nothing(monkeypatch)


@pytest.fixture(scope="session")
def stored_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of `report_material.store_results`; copy it to change it."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        return store_results(tmp_path_factory.mktemp("report"))
