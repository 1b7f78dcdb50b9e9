"""What the benchmarks compare computes the same thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.seekr_step import Bench


def test_seekr_and_eager_attention_take_the_same_loss(tmp_path: Path) -> None:
    bench = Bench(tmp_path, width=64, length=120)
    bench.optimizer = torch.optim.SGD(bench.backbone.model.parameters(), lr=0.0)
    plain, seekr, eager = (bench.step(kind) for kind in ("plain", "seekr", "eager"))
    assert seekr == pytest.approx(eager, rel=1e-4)
    assert abs(seekr - plain) > 0.01
