"""Fixtures of all contract tests."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

with warnings.catch_warnings():
    # peft imports bitsandbytes where it is installed, and that a deprecated part of torch.
    warnings.filterwarnings("ignore", ".*torch.jit.script_method", DeprecationWarning)
    from retain.testing.tiny import save_backbone


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker where retain's own pyproject.toml is not read."""
    config.addinivalue_line("markers", "slow: more of what a fast test shows")


@pytest.fixture(scope="session", autouse=True)
def _quick() -> None:
    torch.set_num_threads(1)  # tiny tensors
    gc.freeze()  # Trainer collects garbage at every end: a quarter second over all the imports


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The saved folder of a tiny backbone, by its kind."""
    return cache(lambda kind: save_backbone(kind, tmp_path_factory.mktemp(kind)))
