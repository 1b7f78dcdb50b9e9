"""Cost of the checks before training, as a share of the training that follows.

    python -m benchmarks.checks [--json FILE] [--tasks 15] [--rows 1000]

A stream of tasks with prompts of about 100 tokens and 20 different answers each, of which a fifth
are tests. The checks run over all of it (lengths, texts, metric, resources). The seconds of
training are those of one epoch: steps of 8 rows, whose time is measured on a few, on a model with
the sizes of SmolLM2-135M and LoRA of rank 8. Answers to test prompts are not counted, so the share
of a whole run is smaller.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from retain import Learner, Task
from retain.backbone import Backbone
from retain.system.files import write_json
from retain.tasks import Example

BATCH = 8
STEPS = 4
TARGET = 0.02
METRICS = ("exact_match", "rouge_l")


def make_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, as most decoder-only models have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def make_backbone(words: list[str]) -> Backbone:
    """A model with the sizes of SmolLM2-135M, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return Backbone(LlamaForCausalLM(config), make_tokenizer(words), "bench")


def make_tasks(count: int, rows: int, words: list[str]) -> list[Task]:
    """Tasks whose prompts have 60 to 140 words, every other one with free-text answers."""
    rng = random.Random(0)
    tasks = []
    for number in range(count):
        labels = [" ".join(rng.choices(words, k=1 + 10 * (number % 2))) for _ in range(20)]
        examples = [
            Example(" ".join(rng.choices(words, k=rng.randint(60, 140))), (rng.choice(labels),))
            for _ in range(rows)
        ]
        metric = METRICS[number % 2]
        tasks.append(Task.split(f"task {number}", examples, metric=metric))
    return tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tasks", type=int, default=15)
    parser.add_argument("--rows", type=int, default=1000)
    given = parser.parse_args()
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(3000)]
    tasks = make_tasks(given.tasks, given.rows, words)
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(make_backbone(words), {"name": "seqlora", "rank": 8}, Path(folder, "run"))
        began = time.perf_counter()
        learner.check_tasks(tasks)
        checks = time.perf_counter() - began
        seconds = step_seconds(learner.backbone, tasks[0])
    steps = sum(-(-len(task.train) // BATCH) for task in tasks)
    share = checks / (checks + steps * seconds)
    print(f"checks of {len(tasks)} x {given.rows} rows: {checks:.1f} s")
    print(f"one epoch of training: {steps} steps of {seconds:.2f} s = {steps * seconds:.0f} s")
    print(f"share of the checks: {100 * share:.2f} % (target: under {100 * TARGET:.0f} %)")
    if given.json:
        result = {"checks": checks, "step": seconds, "steps": steps, "share": share}
        write_json(given.json, result)


def step_seconds(backbone: Backbone, task: Task) -> float:
    """The median seconds of a forward and backward pass on a batch."""
    for name, parameter in backbone.model.named_parameters():
        parameter.requires_grad_("lora" in name or "norm" in name)
    times = []
    for start in range(0, STEPS * BATCH, BATCH):
        batch = backbone.collate([backbone.encode(e) for e in task.train[start : start + BATCH]])
        began = time.perf_counter()
        backbone.answer_loss(batch).backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
