"""Makes a tiny model and a task of its own, with nothing but transformers and tokenizers."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "ant bear cat dog eel fox goat hare ibis jay kite lion mole newt owl pony quail rat"


def make_model(folder: Path) -> None:
    """Saves a random LLaMA of two layers whose tokens are characters."""
    alphabet = ["<pad>", "</s>", "<unk>", *string.ascii_letters, *string.punctuation, " ", "\n"]
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def make_task(path: Path, template: str) -> None:
    """Writes a JSONL file of prompts and answers."""
    rows = [{"prompt": template.format(word), "answer": word} for word in WORDS.split()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    make_model(place / "model")
    make_task(place / "copy.jsonl", "copy this word: {}")
    make_task(place / "name.jsonl", "which animal is a {}?")
