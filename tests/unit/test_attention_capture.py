"""Captured attention against eager attention's, and the Gram identity against the matrix itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertModel,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from retain.errors import RetainError
from retain.layers.attention_capture import AttentionCapture, Wanted, squared_gradient
from retain.testing.tiny import KINDS, make_backbone


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    return BertModel(
        BertConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            initializer_range=0.2,
        )
    ).eval()


def inputs_of(model: PreTrainedModel, side: str) -> dict[str, torch.Tensor]:
    """Two sequences of 7 tokens, the second with three of padding (or none)."""
    torch.manual_seed(1)
    ids = torch.randint(3, 90, (2, 7))
    mask = torch.ones_like(ids)
    if side == "left":
        mask[1, :3] = 0
    elif side == "right":
        mask[1, 4:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 90, (2, 5))
    return inputs


def eager(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every attention matrix by eager attention, by module name, in the order of the model."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True)
    model.set_attn_implementation(before)
    if not model.config.is_encoder_decoder:
        return dict(enumerate(output.attentions))
    groups = ("encoder_attentions", "decoder_attentions", "cross_attentions")
    return {f"{group}{i}": a for group in groups for i, a in enumerate(output[group])}


def modules_called(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[str]:
    """Names of the attention modules, sorted as `eager` sorts their matrices."""
    capture = AttentionCapture(model)
    capture.keep_outputs = True
    capture.on()
    model(**inputs)
    names = list(capture.outputs)
    capture.off()

    def kind(name: str) -> int:
        return 2 * ("EncDec" in name) + name.startswith("decoder")

    return sorted(names, key=lambda name: (kind(name), names.index(name)))


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("kind", [*KINDS, "bert"])
def test_equals_eager_attention(kind: str, side: str) -> None:
    model = bert() if kind == "bert" else make_backbone(kind).model
    inputs = inputs_of(model, side)
    if side == "none":
        del inputs["attention_mask"]  # the mask then arrives as None
    expected = eager(model, inputs)
    names = modules_called(model, inputs)
    assert len(names) == len(expected) > 1
    plain = model(**inputs)[0]
    capture = AttentionCapture(model)
    length = 5 if model.config.is_encoder_decoder else 7
    positions = torch.randint(0, length, (2, 3))
    capture.wanted = dict.fromkeys(names, Wanted(torch.tensor([3, 1]), positions))
    capture.on()
    captured_output = model(**inputs)[0]
    torch.testing.assert_close(captured_output, plain, rtol=0, atol=0)
    for name, matrix in zip(names, expected.values(), strict=True):
        rows = torch.stack([matrix[b, [3, 1]][:, positions[b]] for b in range(2)])
        real = inputs.get("attention_mask", torch.ones(2, 7))
        if not model.config.is_encoder_decoder:  # a padding query attends to nothing that counts
            counts = real.gather(1, positions).bool()[:, None, :, None]
            rows = rows.where(counts, 0)
            capture.weights[name] = capture.weights[name].where(counts, 0)
        torch.testing.assert_close(capture.weights[name], rows, rtol=1e-4, atol=1e-6)
    capture.off()


def test_sliding_windows() -> None:
    """Mistral's queries see the last three tokens only."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        sliding_window=3,
    )
    model = MistralForCausalLM(config).eval()
    inputs = inputs_of(model, "left")
    expected = eager(model, inputs)
    assert (expected[0][0, 0, 6] > 0).sum() == 3
    capture = AttentionCapture(model)
    capture.wanted = dict.fromkeys(capture.modules(), Wanted(torch.tensor([3, 1])))
    capture.on()
    model(**inputs, use_cache=False)
    real = inputs["attention_mask"].bool()[:, None, :, None]
    for weights, matrix in zip(capture.weights.values(), expected.values(), strict=True):
        rows = matrix[:, [3, 1]].where(real, 0)
        torch.testing.assert_close(weights.where(real, 0), rows, rtol=1e-4, atol=1e-6)
    capture.off()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str) -> None:
    """In bfloat16 the weights are those of float32 to its three digits, and still sum to 1."""
    model = make_backbone(kind).model
    inputs = inputs_of(model, "left")
    capture = AttentionCapture(model)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        capture.wanted = dict.fromkeys(capture.modules(), Wanted(torch.tensor([3, 1])))
        capture.on()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), torch.no_grad():
            model(**inputs, use_cache=False)
        found.append(torch.cat([w[0, :, :5, :5].flatten() for w in capture.weights.values()]))
        for weights in capture.weights.values():
            assert weights.dtype == torch.float32
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        capture.off()
    assert 0 < (found[0] - found[1]).abs().max() < 0.1


def test_modules_of_an_encoder_decoder() -> None:
    modules = AttentionCapture(make_backbone("t5").model).modules()
    sides = [(module.queries, module.keys) for module in modules.values()]
    encoder, decoder, cross = (
        ("input_ids", "input_ids"),
        ("labels", "labels"),
        ("labels", "input_ids"),
    )
    assert sides == [encoder, encoder, decoder, cross, decoder, cross]
    assert {module.heads for module in modules.values()} == {4}


def test_consumed_weights_are_not_kept() -> None:
    model = make_backbone("llama").model
    capture, seen = AttentionCapture(model), []
    modules = capture.modules()
    capture.wanted = dict.fromkeys(modules, Wanted(torch.tensor([0])))
    capture.consume = lambda name, weights: seen.append((name, weights.shape[1]))
    capture.on()
    model(**inputs_of(model, "left"), use_cache=False)
    assert capture.weights == {}
    assert seen == [(name, 1) for name in modules]
    capture.off()


def test_leaves_the_model_as_it_was() -> None:
    model = make_backbone("llama").model
    before = model.config._attn_implementation
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    capture = AttentionCapture(model)
    capture.on()
    assert model.config._attn_implementation != before
    capture.off()
    assert model.config._attn_implementation == before
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


def test_gradients_through_checkpointing() -> None:
    found = []
    for checkpointing in (False, True):
        model = make_backbone("llama").model.requires_grad_(True)
        model.train()
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        capture = AttentionCapture(model)
        name = "model.layers.1.self_attn"
        capture.wanted = {name: Wanted(torch.tensor([0, 2]))}
        capture.on()
        model(**inputs_of(model, "left"), use_cache=False)
        capture.weights[name].square().sum().backward()
        capture.off()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    kv=st.integers(1, 2),
    groups=st.integers(1, 3),
    width=st.integers(1, 5),
)
def test_gram_identity(
    batch: int, queries: int, keys: int, kv: int, groups: int, width: int
) -> None:
    torch.manual_seed(0)
    gradient = torch.randn(batch, queries, kv * groups, width)
    value = torch.randn(batch, kv, keys, width)
    full = torch.einsum("bshd,bhkd->bhsk", gradient, value.repeat_interleave(groups, 1))
    torch.testing.assert_close(
        squared_gradient(gradient, value), full.square().sum((2, 3)), rtol=1e-4, atol=1e-4
    )


def test_an_architecture_outside_the_interface_is_refused() -> None:
    model = make_backbone("llama").model
    model._can_set_attn_implementation = lambda: False  # as for BLOOM or Falcon
    with pytest.raises(RetainError, match="LlamaForCausalLM does not use"):
        AttentionCapture(model)
