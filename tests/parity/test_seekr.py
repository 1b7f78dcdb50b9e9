"""SEEKR against the numbers of its published implementation (folder: RETAIN_FIXTURES)."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from retain.backbone import Backbone
from retain.backbone.backbone import IGNORED
from retain.layers.attention_capture import AttentionCapture
from retain.methods.seekr.distillation import attention_loss, logit_loss
from retain.methods.seekr.heads import forgettability, normalised, select, sensitivity

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
        layers = self.expected["importance"].shape[0]
        self.names = [f"model.layers.{i}.self_attn" for i in range(layers)]
        self.every_head = torch.arange(self.expected["importance"].shape[1])

    def model(self, which: str) -> tuple[Backbone, AttentionCapture]:
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.folder))
        model.load_state_dict(load_file(self.folder / f"{which}.safetensors"))
        tokenizer = SimpleNamespace(eos_token_id=2, pad_token_id=0, chat_template=None)
        backbone = Backbone(model, tokenizer, which)
        model.requires_grad_(True)
        capture = AttentionCapture(model)
        positions = self.expected["query_positions"]
        capture.positions = positions if self.settings["query_budget"] else None
        capture.on()
        return backbone, capture

    def weights(self, which: str) -> dict[str, Tensor]:
        backbone, capture = self.model(which)
        capture.heads = dict.fromkeys(self.names, self.every_head)
        with torch.no_grad():
            backbone.answer_logits(self.batch)
        return capture.weights


@pytest.fixture(params=["seekr-all-queries", "seekr-query-budget"], scope="module")
def reference(request: pytest.FixtureRequest) -> Reference:
    return Reference(request.param)


def importance(reference: Reference) -> tuple[Tensor, Tensor]:
    before, after = reference.weights("before"), reference.weights("after")
    counts = reference.batch["attention_mask"]
    moved = torch.stack([forgettability(before[n], after[n], counts) for n in reference.names])
    backbone, capture = reference.model("after")
    return normalised(sensitivity(backbone, capture, reference.batch)), moved


def test_importance_and_selection(reference: Reference) -> None:
    sensitive, moved = importance(reference)
    close(sensitive, reference.expected["sensitivity"])
    close(moved, reference.expected["forgettability"])
    close(sensitive * moved, reference.expected["importance"])
    budgets = reference.settings["layer_budget"], reference.settings["head_budget"]
    chosen = select(sensitive * moved, *budgets)
    assert torch.equal(chosen, reference.expected["selected_heads"])


def test_losses_and_gradients(reference: Reference) -> None:
    expected, settings = reference.expected, reference.settings
    selected = expected["selected_heads"]
    heads = {
        name: row.nonzero()[:, 0]
        for name, row in zip(reference.names, selected, strict=True)
        if row.any()
    }
    after = reference.weights("after")
    teacher = {name: after[name][:, indices] for name, indices in heads.items()}
    backbone, capture = reference.model("student")
    capture.heads = heads
    logits, targets = backbone.answer_logits(reference.batch)
    replay = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    attention = attention_loss(capture.weights, teacher, reference.batch["attention_mask"])
    # The published code compares logits where the label stands, without the next-token shift.
    unshifted = backbone.model(input_ids=reference.batch["input_ids"]).logits
    distilled = logit_loss(unshifted, expected["teacher_logits"], reference.batch["labels"])
    share = settings["logits_weight"]
    loss = (1 - share) * replay + share * distilled + settings["attention_weight"] * attention
    close(replay, expected["replay_loss"])
    close(distilled, expected["logits_distill_loss"])
    close(attention, expected["attention_distill_loss"])
    close(loss, expected["loss"])
    loss.backward()
    gradients = {f"grad.{name}": p.grad for name, p in backbone.model.named_parameters()}
    checked = [key for key in expected if key.startswith("grad.")]
    assert len(checked) == 4 * len(reference.names)
    for key in checked:
        close(gradients[key], expected[key])
