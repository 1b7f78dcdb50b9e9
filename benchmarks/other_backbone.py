"""Trains a small language model of another family, for what was measured on one backbone only.

    python -m benchmarks.other_backbone gpt2 models/other-gpt2

It is three layers of width 256 with a BPE tokenizer of its own of 4096 tokens, trained from scratch
on the training rows of data/superni and data/long_sequence: a decoder with learned positions
(`gpt2`), or an encoder and a decoder with relative ones (`t5`), which continues texts. Such a
model answers nothing well; what it has is embeddings and hidden states that were learned
elsewhere and otherwise. benchmarks/routing.py asks prompts from the same files.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    get_linear_schedule_with_warmup,
)

from benchmarks import fifty, four_hundred
from retain.tasks.readers import read_long_sequence, read_superni

VOCABULARY, WIDTH, LAYERS, HEADS, WINDOW = 4096, 256, 3, 4, 128
BATCH, RATE, WARMUP, CLIP = 4, 2e-3, 50, 1.0
PAD, END = "<pad>", "</s>"
WHOLE = 0.25
"""Share of rows that keep their instruction, which is the same in all rows of a task."""


def texts() -> list[str]:
    """Returns the training rows of all tasks with an answer each, in a seeded order."""
    draw = random.Random(0)
    found = []
    for folder in sorted([*fifty.DATA.glob("superni/*"), *fifty.DATA.glob("long_sequence/*")]):
        read = read_superni if folder.parent.name == "superni" else read_long_sequence
        for row in read(folder, "train"):
            prompt = row.prompt if draw.random() < WHOLE else four_hundred.text_of(row)
            found.append(f"{prompt} {row.references[0]}")
    draw.shuffle(found)
    return found


def tokenizer_of(found: list[str]) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[PAD, END], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(found, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)


def model_of(kind: str) -> PreTrainedModel:
    """Makes the model with seeded random weights."""
    torch.manual_seed(0)
    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_positions=1024,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=HEADS,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=1,
                eos_token_id=1,
                pad_token_id=0,
            )
        )
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=4 * WIDTH,
            num_layers=LAYERS,
            num_heads=HEADS,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
        )
    )


def windows(ids: Tensor) -> Iterator[Tensor]:
    """Draws windows of the texts without end, (BATCH, WINDOW)."""
    draw = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(ids) - WINDOW, (BATCH,), generator=draw).tolist()
        yield torch.stack([ids[start : start + WINDOW] for start in starts])


def loss_of(model: PreTrainedModel, batch: Tensor) -> Tensor:
    """Computes the loss of a batch: of all next tokens, or (T5) of each window's second half."""
    if model.config.is_encoder_decoder:
        first, second = batch.chunk(2, dim=1)
        loss: Tensor = model(input_ids=first, labels=second.contiguous()).loss
    else:
        loss = model(input_ids=batch, labels=batch).loss
    return loss


def train(model: PreTrainedModel, ids: Tensor, steps: int) -> None:
    """Trains for so many steps of BATCH windows, in bfloat16 with weights in float32."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, steps)
    model.train()
    began, losses = time.monotonic(), []
    for step, batch in zip(range(1, steps + 1), windows(ids), strict=False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps:
            mean, seconds = sum(losses) / len(losses), time.monotonic() - began
            print(f"step {step}: loss {mean:.3f}, {seconds:.0f} s", flush=True)
            losses.clear()


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("kind", choices=["gpt2", "t5"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    found = texts()
    tokenizer = tokenizer_of(found)
    rows = tokenizer([text + END for text in found], verbose=False)["input_ids"]
    ids = torch.tensor([token for row in rows for token in row])
    print(f"{len(found)} texts, {len(ids)} tokens", flush=True)
    model = model_of(options.kind)
    train(model, ids, options.steps)
    model.save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
