"""The bench model, its tokenizer and its texts."""

from __future__ import annotations

from copy import deepcopy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WIDTH = 1024
RANK, ALPHA = 8, 16
BATCH, LENGTH = 8, 128
VOCABULARY = 8192
TARGETS = ["q_proj", "v_proj"]
DECILES = {
    2: (272, 390, 430, 460, 480, 510, 550, 576, 576, 576, 576),
    73: (125, 130, 132, 133, 135, 136, 137, 139, 141, 145, 161),
    181: (179, 186, 190, 193, 197, 200, 204, 210, 218, 232, 325),
    363: (49, 57, 60, 62, 65, 69, 72, 74, 78, 83, 103),
    511: (138, 258, 308, 363, 421, 491, 576, 576, 576, 576, 576),
    591: (18, 22, 24, 25, 26, 28, 29, 30, 33, 35, 58),
    639: (36, 45, 51, 53, 55, 58, 61, 67, 74, 79, 104),
    748: (145, 157, 163, 168, 172, 176, 179, 184, 187, 194, 206),
    875: (48, 53, 55, 58, 60, 63, 65, 70, 74, 80, 105),
    1290: (63, 173, 266, 324, 386, 459, 541, 576, 576, 576, 576),
    1510: (87, 87, 88, 88, 88, 88, 89, 91, 91, 92, 96),
    1572: (85, 115, 131, 149, 175, 189, 219, 244, 289, 386, 576),
    1590: (122, 169, 193, 210, 222, 237, 263, 287, 319, 406, 576),
    1687: (43, 49, 52, 55, 57, 60, 63, 67, 70, 74, 94),
    1729: (128, 152, 174, 196, 212, 226, 242, 266, 287, 312, 368),
}
"""Tokens of a row (prompt and answer) of SuperNI's fifteen tasks, by number: least, deciles, most,
of 320 training rows cut to 576 tokens, by SmolLM2's tokenizer."""
MIDDLE = 1729
"""A task whose rows differ in length as those of all tasks do on the mean."""


def bench_model(width: int | None = None) -> LlamaForCausalLM:
    """Makes the bench model, or one of another width."""
    torch.manual_seed(0)
    width = width or WIDTH
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).requires_grad_(False).eval()


def two_layers_of_7b() -> LlamaForCausalLM:
    """Makes two layers of LLaMA-2-7B (width 4096, MLP 11008, 32 heads) in bfloat16."""
    torch.manual_seed(0)
    width = 4 * WIDTH
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=11008 * width // 4096,
        num_hidden_layers=2,
        num_attention_heads=32,
        pad_token_id=0,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    return model.requires_grad_(False).eval()


def sharing_weights(model: nn.Module) -> nn.Module:
    """Copies a model's modules, for other blocks beside the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy(model, shared)


def bench_tokenizer(count: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Makes a tokenizer with one token per word: w2, w3, …"""
    words = {"<pad>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, count)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )


def words(count: int, vocabulary: int = VOCABULARY) -> str:
    """Returns a text of `count` random tokens."""
    return " ".join(f"w{i}" for i in torch.randint(2, vocabulary, (count,)).tolist())


def lengths(count: int, task: int = MIDDLE) -> list[int]:
    """Draws lengths of a SuperNI task's rows, in tokens, shorter where LENGTH is."""
    deciles = torch.tensor(DECILES[task], dtype=torch.float32)
    place = 10 * torch.rand(count)
    below = place.floor().int()
    drawn = deciles[below] + (place - below) * (deciles[below + 1] - deciles[below])
    return (drawn * LENGTH / 128).round().clamp(min=1).int().tolist()
