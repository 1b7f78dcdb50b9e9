"""SEEKR against the numbers of its published implementation (folder: RETAIN_FIXTURES)."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from retain.backbone import Backbone
from retain.backbone.losses import IGNORED
from retain.layers.attention_capture import AttentionCapture, AttentionModule, Wanted
from retain.methods.seekr.config import SeekrConfig
from retain.methods.seekr.distillation import Attention
from retain.methods.seekr.heads import (
    forgettability,
    importance,
    normalised,
    select,
    sensitivity,
)
from retain.methods.seekr.method import replay_losses
from retain.methods.shared.teacher import compressed, stacked

FIXTURES = Path(os.environ.get("RETAIN_FIXTURES", Path(__file__).parent.parent / "fixtures"))


def close(actual: Tensor, expected: Tensor) -> None:
    """Relative 1e-4, absolute 1e-5 of the tensor's scale: the attention loss counts a thousandfold,
    so that small entries of a gradient are differences of large float32 ones."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * scale)


class Reference:
    def __init__(self, name: str) -> None:
        self.folder = FIXTURES / name
        self.settings = json.loads((self.folder / "settings.json").read_text())
        self.expected = load_file(self.folder / "expected.safetensors")
        self.batch = {k: self.expected[k] for k in ("input_ids", "attention_mask", "labels")}
        layers, heads = self.expected["importance"].shape
        module = AttentionModule(heads, "input_ids", "input_ids")
        self.modules = {f"model.layers.{i}.self_attn": module for i in range(layers)}
        length = self.batch["input_ids"].shape[1]
        every = torch.arange(length).expand(len(self.batch["input_ids"]), -1)
        budget = self.settings["query_budget"]
        self.positions = self.expected["query_positions"] if budget else every

    def model(self, which: str) -> tuple[Backbone, AttentionCapture]:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.folder))
        model.load_state_dict(load_file(self.folder / f"{which}.safetensors"))
        tokenizer = SimpleNamespace(
            eos_token_id=2, pad_token_id=0, chat_template=None, get_vocab=lambda: {"<pad>": 0}
        )
        backbone = Backbone(model, tokenizer, which)
        capture = AttentionCapture(model)
        assert capture.modules() == self.modules
        capture.on()
        return backbone, capture

    def weights(self, which: str) -> dict[str, Tensor]:
        backbone, capture = self.model(which)
        for name, module in self.modules.items():
            capture.wanted[name] = Wanted(torch.arange(module.heads), self.positions)
        with torch.no_grad():
            backbone.answer_logits(self.batch)
        return capture.weights


@pytest.fixture(params=["seekr-all-queries", "seekr-query-budget"], scope="module")
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def test_importance_and_selection(reference: Reference) -> None:
    options = SeekrConfig(preset="paper")
    before, after = reference.weights("before"), reference.weights("after")
    real = reference.batch["attention_mask"]
    moved = torch.stack(
        [forgettability(before[n], after[n], real, options.change) for n in reference.modules]
    )
    backbone, capture = reference.model("after")
    measured = sensitivity(backbone, capture, reference.modules, reference.batch, options.gradient)
    sensitive = normalised(measured)
    total = importance([sensitive], [moved], options.accumulate)
    close(sensitive, reference.expected["sensitivity"])
    close(moved, reference.expected["forgettability"])
    close(total, reference.expected["importance"])
    budgets = reference.settings["layer_budget"], reference.settings["head_budget"]
    assert torch.equal(select(total, *budgets), reference.expected["selected_heads"])


def test_losses_and_gradients(reference: Reference) -> None:
    """The whole loss as the method computes it on a replay batch."""
    expected, settings = reference.expected, reference.settings
    after, rows = reference.weights("after"), expected["selected_heads"]
    samples = [
        {
            name: Attention(row.nonzero()[:, 0], positions, after[name][i][row])
            for (name, row) in zip(reference.modules, rows, strict=True)
            if row.any()
        }
        for i, positions in enumerate(reference.positions)
    ]
    backbone, capture = reference.model("student")
    backbone.model.requires_grad_(True)
    labelled = reference.batch["labels"] != IGNORED
    options = SeekrConfig(
        preset="paper",
        logit_weight=settings["logits_weight"],
    )
    teacher = stacked([compressed(expected["teacher_logits"][labelled], options.teacher)])
    parts = replay_losses(
        backbone,
        capture,
        reference.modules,
        reference.batch,
        teacher,
        samples,
        [1.0] * len(samples),
        options,
    )
    share = settings["logits_weight"]
    close(parts["replay"] / (1 - share), expected["replay_loss"])
    close(parts["logits"] / share, expected["logits_distill_loss"])
    close(parts["attention"], expected["attention_distill_loss"])
    parts["attention"] = settings["attention_weight"] * parts["attention"]
    loss = torch.stack(list(parts.values())).sum()
    close(loss, expected["loss"])
    loss.backward()
    gradients = {f"grad.{name}": p.grad for name, p in backbone.model.named_parameters()}
    checked = [key for key in expected if key.startswith("grad.")]
    assert len(checked) == 4 * len(reference.modules)
    for key in checked:
        close(gradients[key], expected[key])
