"""Tiny random backbones and tasks, built in code: no network, no files."""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from retain.backbone import Backbone
from retain.learner.learner import Learner
from retain.methods import BUILT_IN, METHODS, load_plugins
from retain.methods.base import TaskContext
from retain.system.progress import Progress
from retain.tasks import Example, Task

KINDS = ("llama", "qwen3", "gpt2", "t5")
SPECIAL = ("<pad>", "</s>", "<unk>")
WIDTH = 32

REPLAY = {"share": 0.2, "every": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "sapt": {
        "router": {"kind": "attention", "hidden": 16},
        "generator": {"share": 0.2, "max_new_tokens": 6},
    },
    "sapt-prompt": {
        "router": {"kind": "attention", "hidden": 16},
        "generator": {"share": 0.2, "max_new_tokens": 6},
        "length": 3,
        "rate": 1.0,
    },
    "amlora": {"sparsity": {"weight": 1.0}},  # large enough for tests of gradients to see
    "l2p": {"pool_size": 3, "length": 2, "picked": 2, "rate": 1.0},
    "progprompt": {"length": 2, "rate": 1.0, "hidden": 8},
    "lfpt5": {"length": 3, "rate": 1.0, "replay": REPLAY, "writing": {"max_new_tokens": 6}},
    "replay": {"replay": REPLAY},
    "derpp": {"replay": REPLAY},
    "seekr": {"replay": REPLAY, "budget": {"heads": 0.5, "queries": 4}},
}
"""Options that make a method small; a method without an entry runs with its defaults."""

OWN_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, OPTIONS.get(name, {})) for name in BUILT_IN},
    "sapt-sparse": (
        "sapt",
        {
            **OPTIONS["sapt"],
            "router": {"kind": "attention", "hidden": 16, "top_k": 2},
            "reflection": {"tasks": 1},
        },
    ),
    "sapt-whitened": ("sapt", {"router": {"kind": "whitened"}}),
    "sapt-hidden": ("sapt", {"router": {"kind": "whitened", "layer": 1, "top_k": 2}}),
    "sapt-lowest-loss": ("sapt", {"router": {"kind": "whitened"}, "start": "lowest_loss"}),
    "sapt-prompt-whitened": (
        "sapt-prompt",
        {"router": {"kind": "whitened"}, "length": 3, "rate": 1.0},
    ),
    "sapt-prompt-unknown": (  # of the tiny tasks' test prompts about half are below the threshold
        "sapt-prompt",
        {
            "router": {"kind": "whitened", "unknown": "base", "threshold": 0.85},
            "length": 3,
            "rate": 1.0,
        },
    ),
    "sapt-unreflected": ("sapt", {**OPTIONS["sapt"], "reflection": {"weight": 0}}),
    "sapt-real": ("sapt", {**OPTIONS["sapt"], "reflection": {"samples": "real"}}),
    "amlora-instance": (
        "amlora",
        {
            "selector": {
                "gate": "softmax",
                "granularity": "instance",
                "hidden": 3,
                "activation": "tanh",
            },
            "sparsity": {"weight": 0.1},
        },
    ),
    "amlora-all": (
        "amlora",
        {"selector": {"train": "all", "gate": "sparsemax"}, "sparsity": {"penalty": "entropy"}},
    ),
    "seekr-lora": ("seekr", {**OPTIONS["seekr"], "tune": "lora"}),
    "derpp-lora": ("derpp", {**OPTIONS["derpp"], "tune": "lora"}),
    "replay-lora": ("replay", {**OPTIONS["replay"], "tune": "lora"}),
    "multitask-lora": ("multitask", {"tune": "lora"}),
    "progprompt-bare": ("progprompt", {"length": 2, "rate": 1.0}),
    "olora-published": ("olora", {"weighting": "published", "l2_weight": 0.01}),
    "ewc-relative": ("ewc", {"weighting": "relative"}),
    "ewc-lora-relative": ("ewc", {"weighting": "relative", "tune": "lora"}),
    "lwf-relative": ("lwf", {"weighting": "relative"}),
    "seekr-relative": ("seekr", {**OPTIONS["seekr"], "weighting": "relative"}),
    "l2p-mean-query": ("l2p", {**OPTIONS["l2p"], "keys": "mean_query"}),
    "lwf-lora": ("lwf", {"tune": "lora"}),
    "lwf-trace": ("lwf", {"preset": "trace"}),
    "ewc-lora": ("ewc", {"tune": "lora"}),
    "ewc-trace": ("ewc", {"preset": "trace"}),
    "olora-dropout": ("olora", {"dropout": 0.2}),
    "amlora-dropout": ("amlora", {**OPTIONS["amlora"], "dropout": 0.2}),
}
"""retain's methods, and with options that change what is trained."""


def variants() -> dict[str, tuple[str, dict[str, Any]]]:
    """The methods and options that the contract tests run: of RETAIN_PLUGINS, or retain's own."""
    modules = os.environ.get("RETAIN_PLUGINS", "").split()
    if not modules:
        return OWN_VARIANTS
    load_plugins(modules, Path())
    names = [name for name in METHODS if name not in BUILT_IN]
    presets = {
        f"{name}-{preset}": (name, {"preset": preset})
        for name in names
        for preset in METHODS[name].Config.presets
    }
    return {**{name: (name, {}) for name in names}, **presets}


VARIANTS = variants()

TRAINING = {
    "max_steps": 3,  # two steps an epoch: the third is in the second epoch
    "per_device_train_batch_size": 6,
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant_with_warmup",  # never 0, where a step too many would not show
    "warmup_steps": 2,
    "save_steps": 1,
}
EVALUATION = {"max_new_tokens": 5, "batch_size": 3}
ENCODED = ("input_ids", "labels", "route_ids")
"""Keys that every encoded example has."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer with one token per character; printable ASCII text decodes exactly."""
    alphabet = [*SPECIAL, *string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _make_model(kind: str, size: int) -> PreTrainedModel:
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "vocab_size": size}
    decoder = {
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,  # at 0.02 every prompt has the same answer
        "attention_dropout": 0.1,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**ids, **decoder))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**ids, **decoder, head_dim=8))
    if kind == "gpt2":
        size_of = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 256}
        return GPT2LMHeadModel(GPT2Config(**ids, **size_of, initializer_range=0.2))
    if kind == "bart":  # an encoder-decoder with absolute positions; not in the grids
        layers = {"encoder_layers": 1, "decoder_layers": 1, "d_model": WIDTH}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        ends = {"forced_eos_token_id": None, "decoder_start_token_id": 1, "init_std": 0.2}
        return BartForConditionalGeneration(BartConfig(**ids, **layers, **heads, **ends))
    layers = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 8}
    config = T5Config(**ids, **layers, d_model=WIDTH, d_ff=48, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def make_backbone(kind: str) -> Backbone:
    """Makes a new float32 backbone of a kind, with the same weights every time."""
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(_make_model(kind, len(tokenizer)), tokenizer, f"tiny-{kind}")


def save_backbone(kind: str, folder: Path) -> Path:
    """Writes the model folder that `load_backbone` loads."""
    backbone = make_backbone(kind)
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


WORDS = "ant bear cat dog eel fox goat hare ibis jay kite lion mole newt owl pony quail rat"


@cache
def make_task(name: str) -> Task:
    """Makes a task with 12 train, 2 dev and 4 test examples.

    `copy` answers with the prompt's word, `constant` always with the same word, `letter` with the
    first letter of the prompt's word.
    """
    template, answer = {
        "copy": ("copy this word: {}", "{}"),
        "constant": ("what colour has a {}?", "red"),
        "letter": ("{} begins with", "{:.1}"),
    }[name]
    rows = [Example(template.format(word), (answer.format(word),)) for word in WORDS.split()]
    return Task(name, rows[:12], rows[12:14], rows[14:18])


def make_learner(
    variant: str,
    backbone: Backbone | Path,
    folder: Path,
    progress: Progress | None = None,
    **training: Any,
) -> Learner:
    """Makes a new learner of tiny size for a name in VARIANTS, or one of retain's own."""
    name, options = (OWN_VARIANTS | VARIANTS)[variant]
    return Learner(
        backbone,
        {"name": name, **options},
        folder,
        training={**TRAINING, **training},
        evaluation=EVALUATION,
        progress=progress,
    )


def context_of(task: Task, folder: Path, index: int = 0, seed: int = 0) -> TaskContext:
    """Returns the context that a learner passes to a method's hooks."""
    return TaskContext(task.name, index, folder, seed)


def prompts_of(*tasks: Task) -> Sequence[str]:
    """Returns the tasks' test prompts."""
    return [example.prompt for task in tasks for example in task.test]


def read_files(folder: Path) -> dict[str, bytes]:
    """Reads every file below a folder, by its path relative to the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
