"""Fixtures that several test files share."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.tiny import save_backbone


@pytest.fixture(scope="session", autouse=True)
def _quick() -> None:
    torch.set_num_threads(1)
    gc.freeze()  # Trainer collects garbage at every end: a quarter second over all the imports


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The saved folder of a tiny backbone, by its kind."""
    return cache(lambda kind: save_backbone(kind, tmp_path_factory.mktemp(kind)))
