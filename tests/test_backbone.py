"""How a backbone is loaded, and that its head is one product for a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retain.backbone import BackboneConfig, load_backbone
from retain.errors import RetainError
from tests.tiny import KINDS, make_backbone, make_task, save_backbone

TASK = make_task("copy")


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_reads_one_piece_of_memory(kind: str) -> None:
    backbone = make_backbone(kind)
    seen: list[bool] = []

    def look(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].is_contiguous())

    backbone.model.get_output_embeddings().register_forward_pre_hook(look)
    prompts = [backbone.encode(example, with_answer=False) for example in TASK.test[:3]]
    backbone.generate(backbone.collate(prompts), max_new_tokens=3)
    backbone.answer_loss(backbone.collate([backbone.encode(example) for example in TASK.train[:3]]))
    assert len(seen) > 2
    assert all(seen)


def test_the_attention_that_the_experiment_names(tmp_path: Path) -> None:
    save_backbone("llama", tmp_path)
    loaded = [
        load_backbone(BackboneConfig(name=str(tmp_path), attention=name))
        for name in (None, "eager")
    ]
    assert [b.model.config._attn_implementation for b in loaded] == ["sdpa", "eager"]
    batch = loaded[0].collate([loaded[0].encode(example) for example in TASK.train[:3]])
    torch.testing.assert_close(*(backbone.answer_loss(batch) for backbone in loaded))


def test_an_unknown_attention_is_refused(tmp_path: Path) -> None:
    save_backbone("llama", tmp_path)
    with pytest.raises(RetainError, match="quick"):
        load_backbone(BackboneConfig(name=str(tmp_path), attention="quick"))
