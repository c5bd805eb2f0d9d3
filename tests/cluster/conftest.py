"""The values that the files are rendered from, as committed and changed."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

# The folder is no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cluster.values import ROOT, Values, make_values


@pytest.fixture(scope="session")
def tree() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text()))


@pytest.fixture
def change(tree: dict[str, Any]) -> Callable[..., Values]:
    """Make the values with some changed: ``change({"workers.max": 3})``."""

    def changed(changes: dict[str, Any]) -> Values:
        copied = copy.deepcopy(tree)
        for path, value in changes.items():
            *folders, last = path.split(".")
            part = copied
            for folder in folders:
                part = part[folder]
            part[last] = value
        return make_values(copied)

    return changed


@pytest.fixture
def values(change: Callable[..., Values]) -> Values:
    return change({})
