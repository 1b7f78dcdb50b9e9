"""Classes of models beyond the usual ones: each is tried at load, and handled or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    LlamaForCausalLM,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
)

from benchmarks import architectures
from retain.backbone import Backbone, BackboneConfig, load_backbone
from retain.backbone.probe import linear_calls, try_out
from retain.backbone.window import window_of
from retain.errors import RetainError
from retain.export import export
from retain.layers.lora_pool import LoraPool
from retain.layers.targets import target_linears
from retain.learner.learner import Learner
from retain.methods import find
from retain.testing.tiny import (
    EVALUATION,
    TRAINING,
    make_backbone,
    make_task,
    make_tokenizer,
    save_backbone,
)

TASK = make_task("copy")
WRITERS = ("bart", "fsmt", "led", "m2m_100", "blenderbot", "t5")
CLASSES = (
    *("bamba", "ctrl", "deepseek_v3", "gemma3", "mpt", "opt", "qwen3_moe", "recurrent_gemma"),
    *("roberta", "rwkv", "zamba2", *WRITERS),
)
"""State spaces and recurrences, several projections, experts, a vision tower, learned positions."""

Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Saves a tiny model of an architecture, once."""

    @cache
    def save(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        writes = kind in (*WRITERS, "prophetnet")
        auto = AutoModelForSeq2SeqLM if writes else AutoModelForCausalLM
        architectures.build(kind, auto, folder)
        return folder

    return save


def load(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(name=str(folder)))


def filled(pool: LoraPool, blocks: int) -> None:
    """Gives a pool blocks that change what the model writes."""
    generator = torch.Generator().manual_seed(0)
    for number in range(blocks):
        pool.grow(str(number), number)
        for layer in pool.layers.values():
            assert layer.B is not None
            layer.B.data.normal_(generator=generator)
    pool.freeze()


@pytest.mark.parametrize("kind", CLASSES)
def test_rows_of_a_batch_have_their_logits_alone(kind: str, saved: Saved) -> None:
    """With a block of its own for each: no row gets another's, or sees its padding."""
    backbone = load(saved(kind))
    pool = LoraPool(backbone.model, None, rank=2, alpha=8.0)
    rows = [backbone.encode(TASK.test[i]) for i in range(3)]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    with torch.no_grad():
        plain = backbone.answer_logits(backbone.collate(rows))[0]
        filled(pool, 3)
        pool.use(torch.eye(3))
        together = backbone.answer_logits(backbone.collate(rows))[0]
        assert not torch.allclose(plain, together, atol=1e-2)
        for number, row in enumerate(rows):
            pool.use(torch.eye(3)[number : number + 1])
            alone = backbone.answer_logits(backbone.collate([row]))[0][0]
            count = len(alone)
            same = together[number, :count]
            if not backbone.is_encoder_decoder:
                same = together[number, -count:]
            torch.testing.assert_close(same, alone, atol=2e-4 * float(alone.std()), rtol=1e-4)


@pytest.mark.parametrize("kind", ["mpt", "gemma3", "bart"])
def test_a_layer_that_attends_over_blocks(kind: str, saved: Saved) -> None:
    backbone = load(saved(kind))
    amlora = find("amlora")
    assert amlora is not None
    method: Any = amlora(backbone, amlora.Config(rank=2))
    filled(method.pool, 2)
    generator = torch.Generator().manual_seed(0)
    for layer in method.layers.values():
        for _ in range(2):
            layer.grow_selector(generator)
            layer.freeze_selector()
    rows = [backbone.encode(TASK.test[i]) for i in range(3)]
    with torch.no_grad():
        batch = backbone.collate(rows)
        method.route(batch)
        together = backbone.answer_logits(batch)[0]
        single = backbone.collate(rows[:1])
        method.route(single)
        alone = backbone.answer_logits(single)[0][0]
    count = len(alone)
    same = together[0, :count] if backbone.is_encoder_decoder else together[0, -count:]
    torch.testing.assert_close(same, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["rwkv"])
def test_a_model_that_sees_padding_gets_none(kind: str, saved: Saved, tmp_path: Path) -> None:
    options = {"training": TRAINING, "evaluation": EVALUATION}
    learner = Learner(saved(kind), "seqft", tmp_path / "run", **options)
    assert learner.backbone.sees_padding
    learner.learn(TASK)
    prompts = ["a", "copy this word: ant", "copy it", "b", "copy this word: owl"]
    assert learner.generate(prompts) == [learner.generate([prompt])[0] for prompt in prompts]
    for name in ("amlora", "seekr"):
        with pytest.raises(RetainError, match=r"take another method|attention"):
            Learner(saved(kind), name, tmp_path / name, **options)


def test_batches_have_rows_of_similar_length(saved: Saved) -> None:
    backbone = load(saved("mpt"))
    rows = [{"input_ids": [0] * n} for n in (3, 1, 2, 3, 2, 3)]
    assert backbone.batches(rows, 2) == [[0, 3], [5, 2], [4, 1]]
    backbone.sees_padding = True
    assert backbone.batches(rows, 2) == [[0, 3], [5], [2, 4], [1]]


def test_layers_that_are_read_are_refused_by_name(saved: Saved) -> None:
    """Mamba 2 hands its projection's weight to a kernel where there is one."""
    model = load(saved("mamba2")).model
    with pytest.raises(RetainError, match=r"layer 'backbone.*out_proj' .* choose from in_proj$"):
        target_linears(model, ["in_proj", "out_proj"])
    with pytest.raises(RetainError, match=r"no linear layer 'q_proj' .* choose from in_proj$"):
        target_linears(model, ["q_proj"])
    assert {name.rpartition(".")[2] for name in target_linears(model, None)[0]} == {"in_proj"}


class Idle(nn.Module):
    """Has a layer that it calls, one that it does not, and one that reads flattened rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.unused = nn.Linear(width, width), nn.Linear(width, width)
        self.flat = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x) + self.flat(x.flatten(0, 1)).view_as(x)


def test_layers_that_are_not_called_are_refused() -> None:
    model = make_backbone("llama").model
    model.model.layers[0].mlp = Idle(32)
    model.model.tower = Idle(32)  # never called: no text reaches it
    assert "model.tower.q_proj" not in linear_calls(model)
    with pytest.raises(RetainError, match=r"layer 'model.layers.0.mlp.unused' is not only called"):
        target_linears(model, ["unused"])
    with pytest.raises(RetainError, match=r"mlp.flat' gets input of shape \(15, 32\)"):
        target_linears(model, ["flat"])
    chosen, endings = target_linears(model, None)
    assert endings == ["q_proj", "v_proj"]
    assert "model.layers.0.mlp.q_proj" in chosen
    assert not any("tower" in name for name in chosen)


@pytest.mark.parametrize(
    ("kind", "endings"),
    [
        ("gemma4", ["q_proj", "v_proj"]),  # peft's default is a regular expression
        ("deepseek_v3", ["q_a_proj", "q_b_proj"]),
        ("phi3", ["qkv_proj"]),
    ],
)
def test_default_targets(kind: str, endings: list[str], saved: Saved) -> None:
    chosen, found = target_linears(load(saved(kind)).model, None)
    assert found == endings
    assert not any("vision" in name or "audio" in name for name in chosen)


def test_a_model_that_reads_what_it_predicts_is_refused(saved: Saved, tmp_path: Path) -> None:
    folder = changed(saved("roberta"), tmp_path / "model", is_decoder=False)
    with pytest.raises(RetainError, match=r"RobertaForCausalLM reads the tokens .* is_decoder: tr"):
        load(folder)


def test_a_model_whose_answers_depend_on_their_lengths_is_refused(saved: Saved) -> None:
    """ProphetNet's decoder gives other logits where a longer answer stands beside."""
    with pytest.raises(RetainError, match=r"ProphetNet.* depends on the other prompts in its bat"):
        load(saved("prophetnet"))


def changed(source: Path, target: Path, **fields: Any) -> Path:
    """Copies a model with other fields in its config."""
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


# -- windows

WINDOWS = {
    **dict.fromkeys(("bart", "led", "ctrl", "gemma3", "mpt", "opt"), (256, 256)),
    "roberta": (255, 255),  # positions begin after the padding token's
    "blenderbot": (128, 128),
    "prophetnet": (255, 254),
    **dict.fromkeys(("xlnet", "recurrent_gemma"), (None, None)),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_under_any_name(kind: str, saved: Saved) -> None:
    auto = AutoModelForSeq2SeqLM if kind in (*WRITERS, "prophetnet") else AutoModelForCausalLM
    assert window_of(auto.from_pretrained(saved(kind))) == WINDOWS[kind]


def test_encoder_and_decoder_have_windows_of_their_own(saved: Saved) -> None:
    backbone = load(saved("bart"))
    backbone.window, backbone.answer_window = 100, 10
    assert backbone.fits(100, 10)
    with pytest.raises(RetainError, match=r"the 100 positions .*max_prompt_tokens to 100$"):
        backbone.refuse_longer(101, 10, "x")
    with pytest.raises(RetainError, match=r"in the 10 positions .*; lower max_new_tokens$"):
        backbone.refuse_longer(100, 11, "x", "max_new_tokens")


@pytest.mark.parametrize("kind", ["mpt", "opt", "blenderbot"])
def test_a_prompt_over_the_window_is_refused(kind: str, saved: Saved) -> None:
    backbone = load(saved(kind))
    backbone.prompt.max_prompt_tokens = 1000
    long = make_task("copy").train[0].__class__("a" * 300, ("b",))
    with pytest.raises(RetainError, match=r"positions of the backbone; lower prompt.max_prompt_to"):
        backbone.encode(long)


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": 64,
}


def test_the_window_ends_where_longrope_changes(saved: Saved, tmp_path: Path) -> None:
    """A row beyond it would change the frequencies of its neighbours."""
    fields = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64}
    folder = changed(saved("phi3"), tmp_path / "m", max_position_embeddings=512, **fields)
    backbone = load(folder)
    assert backbone.window == 64
    with pytest.raises(RetainError, match=r"the 64 positions of the backbone \(beyond them its lo"):
        backbone.refuse_longer(60, 5, "x")
    layers = {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}
    backbone.model.config.rope_parameters = layers
    assert window_of(backbone.model) == (64, 64)


def test_an_expert_leaves_out_no_row_of_a_batch() -> None:
    """NLLB-MoE's experts take so many tokens of a batch and no more, other numbers in training."""
    torch.manual_seed(0)
    config = NllbMoeConfig(
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_experts"), 2),
        **dict.fromkeys(("encoder_sparse_step", "decoder_sparse_step"), 1),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 32),
        **dict.fromkeys(("dropout", "attention_dropout", "moe_token_dropout"), 0.0),
        vocab_size=100,
        expert_capacity=8,
        moe_eval_capacity_token_fraction=0.2,
        decoder_start_token_id=1,
        init_std=0.5,
    )
    backbone = Backbone(NllbMoeForConditionalGeneration(config), make_tokenizer(), "nllb-moe")
    rows = [backbone.encode(example) for example in TASK.train[:8]]
    for training in (False, True):
        backbone.model.train(training)
        together = backbone.answer_logits(backbone.collate(rows))[0]
        for i, row in enumerate(rows):
            alone = backbone.answer_logits(backbone.collate([row]))[0][0]
            torch.testing.assert_close(together[i, : len(alone)], alone, rtol=1e-3, atol=1e-3)


# -- what the files hold


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model's folder, and its tensors, which are written again before it is loaded."""
    folder = save_backbone("llama", tmp_path / "model")
    return folder, load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias", "extra"]
)
def test_weights_without_a_place_are_refused(name: str, llama: Any) -> None:
    folder, tensors = llama
    save_file({**tensors, name: torch.zeros(4)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetainError, match=f"has no place for these weights of its files: {name};"):
        load(folder)


def test_what_the_class_ignores_is_ignored(llama: Any) -> None:
    folder, tensors = llama
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({**tensors, name: torch.zeros(4)}, folder / "model.safetensors", {"format": "pt"})
    load(folder)


def test_a_tied_head_is_not_missing(llama: Any) -> None:
    folder, tensors = llama
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetainError, match=r"has no weights for lm_head.weight"):
        load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    load(folder)


def test_weights_of_another_size_are_refused(llama: Any) -> None:
    folder, _ = llama
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(RetainError, match=r"down_proj.weight has the shape \(32, 48\) in its fil"):
        load(folder)


def test_an_adapter_beside_the_model_is_refused(llama: Any) -> None:
    folder, _ = llama
    pool = LoraPool(load(folder).model, None, 2, 4.0)
    pool.grow("x", 0)
    pool.save_block(folder, str(folder))
    with pytest.raises(RetainError, match=r"has a PEFT adapter beside it \(adapter_config.json\)"):
        load(folder)


# -- settings


def test_a_class_without_checkpointing(saved: Saved, tmp_path: Path) -> None:
    training = {**TRAINING, "gradient_checkpointing": True}
    learner = Learner(saved("ctrl"), "seqft", tmp_path / "run", training=training)
    with pytest.raises(RetainError, match="gradient_checkpointing: CTRLLMHeadModel has none; set"):
        learner.learn(TASK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["lwf", "derpp"])
def test_a_teacher_whose_vocabulary_stands_in_its_text_config(
    method: str, saved: Saved, tmp_path: Path
) -> None:
    learner = Learner(saved("gemma3"), method, tmp_path / "run", training=TRAINING)
    learner.check_tasks([TASK])  # foretells what the teacher's logits take


def test_a_class_without_attention_heads_is_refused_by_seekr(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(RetainError, match=r"method: MambaForCausalLM has no attention heads that"):
        Learner(saved("mamba"), "seekr", tmp_path / "run", training=TRAINING)


def test_checkpointing_of_a_class_that_changes_its_embeddings(saved: Saved, tmp_path: Path) -> None:
    """GIT adds positions in place to what is a leaf under checkpointing."""
    training = {**TRAINING, "gradient_checkpointing": True}
    method = {"name": "seqlora", "rank": 2}
    run = tmp_path / "run"
    learner = Learner(saved("git"), method, run, training=training, evaluation=EVALUATION)
    learner.learn(TASK)


def test_no_layer_is_left_out_at_random(saved: Saved, tmp_path: Path) -> None:
    """A step without any of the layers that carry blocks would have no gradient."""
    folder = changed(saved("m2m_100"), tmp_path / "m", encoder_layerdrop=1.0, decoder_layerdrop=1.0)
    learner = Learner(folder, "seqlora", tmp_path / "run", training=TRAINING, evaluation=EVALUATION)
    learner.learn(TASK)


def test_soft_prompts_beside_a_second_table(saved: Saved, tmp_path: Path) -> None:
    """Gemma 3n looks every token up in a table for each layer, too."""
    method = {"name": "sapt-prompt", "length": 2, "reflection": {"weight": 0}}
    options = {"training": TRAINING, "evaluation": EVALUATION}
    learner = Learner(saved("gemma3n_text"), method, tmp_path / "run", **options)
    learner.method.pool.grow("x", 0)  # type: ignore[attr-defined]
    rows = [learner.backbone.encode(TASK.test[i]) for i in range(2)]
    batch = learner.backbone.collate(rows)
    learner.method.pool.use_block(2, 0)  # type: ignore[attr-defined]
    assert torch.isfinite(learner.backbone.answer_logits(batch)[0]).all()


def test_export_has_the_backbones_generation_settings(llama: Any, tmp_path: Path) -> None:
    folder, _ = llama
    settings = '{"do_sample": true, "temperature": 0.7, "max_length": 400, "eos_token_id": [1]}'
    (folder / "generation_config.json").write_text(settings)
    options = {"training": TRAINING, "evaluation": EVALUATION}
    learner = Learner(folder, {"name": "seqlora", "rank": 2}, tmp_path / "run", **options)
    learner.learn(TASK)
    export(learner, tmp_path / "exported", None)
    assert (tmp_path / "exported" / "generation_config.json").read_text().strip() == settings


def test_roundings_in_bfloat16_are_no_sign_of_unmasked_padding() -> None:
    """The largest of twenty thousand is a seventh of the logits' spread."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20_000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=4,
        initializer_range=0.2,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    backbone = Backbone(model, make_tokenizer(), "bfloat16")
    try_out(backbone)
    assert not backbone.sees_padding
