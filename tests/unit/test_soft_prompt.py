"""Soft prompts: the mixture against the paper's formula, the saved block against peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import nn

from retain.layers.soft_prompt import PromptPool
from retain.testing.tiny import KINDS, make_backbone, make_task

TASK = make_task("copy")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 6),
    length=st.integers(1, 4),
    beams=st.integers(1, 2),
    words=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_virtual_tokens_are_the_mixture(
    count: int, length: int, beams: int, words: int, seed: int
) -> None:
    """Σ_i a_i P_i before the words, forward and backward; the word's own embeddings otherwise."""
    backbone = make_backbone("llama")
    table, width = backbone.embedding, backbone.width
    pool = PromptPool(backbone, length)
    torch.manual_seed(seed)
    prompts = torch.randn(count, length, width)
    for prompt in prompts[:-1]:
        pool.prompts.push(prompt)
    pool.prompts.new = nn.Parameter(prompts[-1].clone())
    weights = torch.rand(2, count, requires_grad=True)
    pool.use(weights)
    ids = torch.cat(
        [-1 - torch.arange(length).expand(2, -1), torch.randint(len(table.weight), (2, words))], 1
    )
    y = backbone.embedding(ids.repeat_interleave(beams, 0))
    newest = prompts[-1].clone().requires_grad_(True)
    again = weights.detach().clone().requires_grad_(True)
    every = [*prompts[:-1], newest]
    expected = torch.stack(
        [
            torch.cat([sum(a * p for a, p in zip(row, every, strict=True)), table(own[length:])])
            for row, own in zip(again, ids, strict=True)
        ]
    ).repeat_interleave(beams, 0)
    torch.testing.assert_close(y, expected)
    slope = torch.randn_like(y)
    found = torch.autograd.grad((y * slope).sum(), [pool.prompts.new, weights])
    wanted = torch.autograd.grad((expected * slope).sum(), [newest, again])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_prompt_loads_with_plain_peft(kind: str, tmp_path: Path) -> None:
    backbone, fresh = make_backbone(kind), make_backbone(kind)
    pool = PromptPool(backbone, 3)
    pool.grow("block", seed=0)
    pool.prompts.new.data.normal_(std=0.5)
    pool.save_block(tmp_path, backbone.name)
    plain = PeftModel.from_pretrained(fresh.model, tmp_path)
    for example in TASK.test:
        row, bare = backbone.encode(example), fresh.encode(example)
        assert row["input_ids"] == [-1, -2, -3, *bare["input_ids"]]
        pool.use_block(1, 0)
        with torch.no_grad():
            actual, targets = backbone.answer_logits(backbone.collate([row]))
            batch = fresh.collate([bare])
            inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
            expected = plain(**inputs, labels=batch["labels"]).logits
        if not backbone.is_encoder_decoder:
            expected = expected[:, -targets.shape[1] - 1 : -1]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("concatenated", [False, True])
def test_sequences_carry_one_prompt_or_all(concatenated: bool, tmp_path: Path) -> None:
    """A mixture is as long as one prompt; without a block there are no virtual tokens."""
    backbone = make_backbone("llama")
    before = backbone.encode(TASK.test[0])
    pool = PromptPool(backbone, 4, concatenated)
    lengths = []

    def look() -> None:
        own = backbone.encode(TASK.test[0])["input_ids"]
        lengths.append(len(own) - len(before["input_ids"]))

    look()
    pool.grow("first", seed=0)
    look()
    pool.save_block(tmp_path, backbone.name)
    pool.grow("second", seed=0)
    look()
    pool.load_block(tmp_path, "third")
    look()
    assert lengths == ([0, 4, 8, 12] if concatenated else [0, 4, 4, 4])
