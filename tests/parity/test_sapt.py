"""SAPT against the numbers of its published implementation.

The fixtures' folder comes from RETAIN_FIXTURES; another set of the same layout checks as well.
"""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from retain.backbone import Backbone
from retain.backbone.losses import IGNORED
from retain.methods.sapt import Sapt
from retain.methods.sapt.reflection import divergence, padded

FIXTURES = Path(os.environ.get("RETAIN_FIXTURES", Path(__file__).parent.parent / "fixtures"))
RANK, ALPHA = 4, 32.0


def close(actual, expected):
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=1e-4, atol=1e-5)


class Reference:
    """One fixture set up as a `Sapt` in the middle of learning its newest task."""

    def __init__(self, name: str, old_block_gradient: bool = False) -> None:
        folder = FIXTURES / name
        config = AutoConfig.from_pretrained(folder)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_config(config)
        missing = model.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
        assert not missing.unexpected_keys
        assert all("embed_tokens" in key or key == "lm_head.weight" for key in missing.missing_keys)
        model.tie_weights()
        tokenizer = SimpleNamespace(
            get_vocab=lambda: {"<pad>": 0},
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            chat_template=None,
        )
        self.backbone = Backbone(model, tokenizer, name)
        pool = load_file(folder / "pool.safetensors")
        self.method = Sapt(
            self.backbone,
            Sapt.Config(
                rank=RANK,
                alpha=ALPHA,
                preset="paper",
                router={"hidden": pool["query.down"].shape[0]},
                old_block_gradient=old_block_gradient,
                target_modules=None,
            ),
        )
        self.last = len(pool["keys"]) - 1
        layers = self.method.pool.layers
        for i in range(self.last + 1):
            self.method.pool.grow(str(i), seed=0)
            for module, layer in layers.items():
                layer.A.data.copy_(pool[f"block.{i}.{module}.A"])
                layer.B.data.copy_(pool[f"block.{i}.{module}.B"])
            self.method.router.grow(pool["keys"][i])
        assert {f"block.0.{m}.A" for m in layers} == {
            k for k in pool if k.startswith("block.0.") and k.endswith(".A")
        }
        with torch.no_grad():
            for key, parameter in self.method.router.projection().items():
                parameter.copy_(pool[key])
        for parameter in (*self.method.pool.parameters(), *self.method.router.parameters()):
            parameter.requires_grad_(True)
        self.expected = load_file(folder / "expected.safetensors")
        ids = self.expected["input_ids"]
        self.prompt_length = int(self.expected.get("prompt_length", torch.tensor(ids.shape[1])))
        self.batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": self.expected["labels"],
            "route_ids": ids[:, : self.prompt_length],
            "route_mask": torch.ones_like(ids[:, : self.prompt_length]),
        }

    def check_gradients(self, prefix: str, router_only: bool = False) -> None:
        router = self.method.router
        found = {f"{key}": p.grad for key, p in router.projection().items()}
        found[f"keys.{self.last}"] = router.key.grad
        if not router_only:
            for module, layer in self.method.pool.layers.items():
                found[f"block.{self.last}.{module}.A"] = layer.A.grad
                found[f"block.{self.last}.{module}.B"] = layer.B.grad
        assert {prefix + key for key in found} == {
            key for key in self.expected if key.startswith(prefix)
        }
        for key, gradient in found.items():
            close(gradient, self.expected[prefix + key])


@pytest.fixture(params=["sapt-t5", "sapt-llama"])
def reference(request):
    return Reference(request.param)


def test_attention(reference):
    with torch.no_grad():
        reference.method.route(reference.batch)
        close(reference.method.routing(), reference.expected["attention"])


def test_loss_and_gradients(reference):
    loss = sum(reference.method.loss(reference.batch).values())
    close(loss, reference.expected["loss"])
    loss.backward()
    reference.check_gradients("grad.")


def test_logits(reference):
    with torch.no_grad():
        reference.method.route(reference.batch)
        logits, targets = reference.backbone.answer_logits(reference.batch)
    expected = reference.expected["logits"]
    if not reference.backbone.is_encoder_decoder:  # ours are cut to the answer
        expected = expected[:, -targets.shape[1] - 1 : -1]
    assert (targets != IGNORED).any(0).all()
    close(logits, expected)


def test_greedy_output(reference):
    expected = reference.expected["generated"]
    prompt = reference.batch["input_ids"][:, : reference.prompt_length]
    batch = {
        **reference.batch,
        "input_ids": prompt,
        "attention_mask": torch.ones_like(prompt),
    }
    with torch.no_grad():
        reference.method.route(batch)
        skip = 1 if reference.backbone.is_encoder_decoder else prompt.shape[1]
        count = expected.shape[1] - skip
        generated = reference.backbone.model.generate(
            input_ids=prompt,
            attention_mask=batch["attention_mask"],
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
        )
    assert generated.tolist() == expected.tolist()


def test_reflection():
    reference = Reference("sapt-t5")
    e = reference.backbone.pooled_embedding(reference.batch)
    target = reference.expected["reflection.target"]
    logits = reference.method.router.logits(e)
    stored = padded(target[: reference.last], logits.shape[1])
    kl = divergence(stored.expand(len(e), -1), logits).mean()
    close(kl, reference.expected["reflection.kl"])
    kl.backward()
    reference.check_gradients("reflection.grad.", router_only=True)


def test_the_other_gradient_mode_differs():
    """The option is not a dead switch: with it, old blocks pass a gradient to their input."""
    gradients = []
    for mode in (False, True):
        reference = Reference("sapt-llama", old_block_gradient=mode)
        sum(reference.method.loss(reference.batch).values()).backward()
        layers = list(reference.method.pool.layers.values())
        gradients.append((layers[0].A.grad, layers[-1].A.grad))
    assert not torch.allclose(gradients[0][0], gradients[1][0], rtol=1e-4)
    torch.testing.assert_close(gradients[0][1], gradients[1][1])  # nothing lies above the last
