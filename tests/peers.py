"""Other libraries that ours is held against."""

import importlib
import os
from typing import Any

import pytest


def import_peer(name: str) -> Any:
    """A module of the extra `peers`. Without it the test is skipped, or fails under GENSSL_REQUIRE_PEERS."""
    if os.environ.get("GENSSL_REQUIRE_PEERS"):
        return importlib.import_module(name)
    return pytest.importorskip(name)


def import_service(name: str) -> Any:
    """A module of the extras `wandb` and `mlflow`, which no installation for tests brings: else a skip."""
    return pytest.importorskip(name)
