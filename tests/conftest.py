"""Fixtures shared by every test."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and third-party checkpoints beside the checkout, where present."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("RAYBENCH_SHARED", default))
    if not (folder / "checkpoints").is_dir():
        pytest.skip(f"no test material at {folder.name}/ (set RAYBENCH_SHARED to its folder)")
    return folder
