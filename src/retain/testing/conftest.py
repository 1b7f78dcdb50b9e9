"""Fixtures of all contract tests."""

from __future__ import annotations

import gc

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _quick() -> None:
    torch.set_num_threads(1)  # tiny tensors
    gc.freeze()  # Trainer collects garbage at every end: a quarter second over all the imports
