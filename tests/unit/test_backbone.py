"""How a backbone is loaded, and that its head is one product for a batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retain.backbone import Backbone, BackboneConfig, PromptConfig, load_backbone
from retain.errors import RetainError
from retain.testing.tiny import KINDS, make_backbone, make_task, save_backbone

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


def test_nothing_goes_beyond_the_window() -> None:
    """Where a method's own prompts come before or after those that were looked at."""
    backbone = make_backbone("gpt2")
    backbone.virtual_tokens = 250
    with pytest.raises(RetainError, match=r"^prompt 'copy this word: .* 256 positions .* lower"):
        backbone.encode(TASK.train[0])
    backbone.virtual_tokens = 0
    batch = backbone.collate([backbone.encode(TASK.test[0], with_answer=False)])
    with pytest.raises(RetainError, match=r"^generation: .* 256 positions of the backbone; lower"):
        backbone.generate(batch, 256)


@pytest.mark.parametrize(
    ("kind", "window"), [("gpt2", 256), ("llama", 2048), ("bart", 1024), ("t5", None)]
)
def test_the_window_is_the_one_that_the_model_names(kind: str, window: int | None) -> None:
    assert make_backbone(kind).window == window


def test_an_encoder_and_its_decoder_have_a_window_each() -> None:
    backbone = make_backbone("bart")
    backbone.refuse_longer(1024, 1024, "here")
    with pytest.raises(RetainError, match="here: 1025 prompt tokens"):
        backbone.refuse_longer(1025, 1, "here")
    with pytest.raises(RetainError, match="1025 answer tokens"):
        backbone.refuse_longer(1, 1025, "here")


def test_a_tokenizer_of_another_model_is_refused() -> None:
    backbone = make_backbone("llama")
    backbone.model.resize_token_embeddings(20)
    with pytest.raises(
        RetainError, match=r"'x': its tokenizer has token id \d+, but the model has only 20"
    ):
        Backbone(backbone.model, backbone.tokenizer, "x")


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system') }}", "{% for", "{{ foo.bar.baz }}"]
)
def test_a_chat_template_that_refuses(template: str) -> None:
    backbone = make_backbone("llama")
    backbone.tokenizer.chat_template = template
    backbone.prompt = PromptConfig(chat_template=True)
    says = r"the chat template of backbone 'tiny-llama' rejects the conversation that starts with"
    with pytest.raises(RetainError, match=says):
        backbone.encode(TASK.train[0])
