"""Whole tasks: beside Trainer with PEFT, SAPT beside a LoRA per task, and how much is padding."""

from __future__ import annotations

import random
import shutil
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig
from torch import Tensor
from transformers import Trainer, TrainingArguments

from benchmarks.bench import model as bench
from benchmarks.bench.pool import with_lora
from benchmarks.timing import Side
from retain import Learner, Task
from retain.backbone import Backbone
from retain.tasks import Example
from retain.testing.tiny import make_tokenizer
from retain.training.batches import Batches
from retain.training.phase import Phase

MICRO, SIZE = 4, 8
"""Steps of 32 rows, as 4 micro-batches of 8."""
STEPS = 2
ANSWER = 4
"""Tokens of an answer, without its end."""


def rows(count: int) -> list[Example]:
    """Makes examples of SuperNI's lengths."""
    return [
        Example(bench.words(max(1, n - ANSWER - 1)), (bench.words(ANSWER),))
        for n in bench.lengths(count)
    ]


@contextmanager
def train_sides() -> Iterator[dict[str, Side]]:
    """seqlora's task, and the same rows by Trainer and PEFT, which groups them by length."""
    torch.manual_seed(1)
    train, held_out = rows(STEPS * MICRO * SIZE), rows(2)
    task = Task("task", train, held_out[:1], held_out[1:], metric="rouge_l")
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": SIZE,
        "gradient_accumulation_steps": MICRO,
        "learning_rate": 1e-3,
    }
    tokenizer, plain = bench.bench_tokenizer(), bench.bench_model()

    def retain_side() -> None:
        with tempfile.TemporaryDirectory() as folder:
            lora = {"rank": bench.RANK, "alpha": bench.ALPHA, "target_modules": bench.TARGETS}
            learner = Learner(
                Backbone(deepcopy(plain), tokenizer, "bench"),
                {"name": "seqlora", **lora},
                Path(folder) / "run",
                training=settings,
                evaluation={"max_new_tokens": 1},
            )
            learner.learn(task)

    def trainer_side() -> None:
        config = LoraConfig(r=bench.RANK, lora_alpha=bench.ALPHA, target_modules=bench.TARGETS)
        model = with_lora(deepcopy(plain), config)
        data = [coded(example) for example in task.train]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_steps=1,
                lr_scheduler_type="linear",
                train_sampling_strategy="group_by_length",
                use_cpu=True,
                **settings,
            )
            trainer = Trainer(model, arguments, train_dataset=data, data_collator=padded)
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
            model.save_pretrained(folder)

    def coded(example: Example) -> dict[str, list[int]]:
        prompt = tokenizer(example.prompt)["input_ids"]
        answer = [*tokenizer(example.references[0])["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}

    yield {"seqlora": retain_side, "trainer": trainer_side}


def padded(batch: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pads examples to a batch."""
    width = max(len(row["input_ids"]) for row in batch)

    def stacked(key: str, filler: int) -> Tensor:
        return torch.tensor([[filler] * (width - len(row[key])) + row[key] for row in batch])

    ids = stacked("input_ids", 0)
    return {"input_ids": ids, "labels": stacked("labels", -100), "attention_mask": (ids > 0).long()}


def padding(rounds: int) -> dict[str, list[float]]:
    """Counts the tokens of each round's steps on SuperNI's fifteen tasks: computed, and real ones.

    Both as steps are cut, and in random order.
    """
    torch.manual_seed(2)
    found: dict[str, list[float]] = {"computed": [], "unsorted": [], "real": []}
    for seed in range(rounds):
        sums = dict.fromkeys(found, 0.0)
        for number in bench.DECILES:
            counts = bench.lengths(10 * MICRO * SIZE, number)
            data = [{"input_ids": [1] * n} for n in counts]
            phase = Phase("learn", data, [], lambda batch: {})
            sums["real"] += sum(counts)
            for name, accumulation in (("computed", MICRO), ("unsorted", 1)):
                for batch in Batches(phase, SIZE, accumulation, 1.0, -1, seed):
                    sums[name] += max(counts[i] for i in batch) * len(batch)
        for name, total in sums.items():
            found[name].append(total)
    return found


# -- SAPT beside a LoRA per task


def variants() -> dict[str, dict[str, Any]]:
    """The methods by the names of their sides; the trained router's generator takes 3 steps for 10
    of the task."""
    generator = {"max_steps": max(1, round(0.3 * SAPT_STEPS))}
    lora = {"rank": bench.RANK, "alpha": bench.ALPHA, "target_modules": bench.TARGETS}
    sapt = {"name": "sapt", **lora}
    return {
        "pertask": {"name": "pertask", **lora},
        "sapt": sapt,
        "sapt attention": {**sapt, "router": {"kind": "attention"}, "generator": generator},
    }


SAPT_STEPS, TESTS, BEFORE = 10, 12, 2
"""Steps of 8 rows and test examples of a task, and the tasks before it."""


def characters(seed: int, tests: int) -> Task:
    """Makes a task of SuperNI's lengths, in characters, whose prompts share an instruction."""
    random_of = random.Random(seed)

    def text(length: int) -> str:
        return "".join(random_of.choices(string.ascii_lowercase + "  ", k=max(1, length))).strip()

    instruction = text(30)
    count = SAPT_STEPS * SIZE
    examples = [
        Example(f"{instruction}: {text(n - 40)}", (text(3) or "a",))
        for n in bench.lengths(count + 8 + tests)
    ]
    train, dev, test = examples[:count], examples[count : count + 8], examples[count + 8 :]
    return Task(f"task{seed}", train, dev, test, metric="rouge_l")


@contextmanager
def sapt_sides() -> Iterator[tuple[dict[str, Side], dict[str, Side]]]:
    """The third task of a stream: all that `learn` does. Earlier tasks have one test example each,
    so that answering these again, which a LoRA per task need not, weighs little.

    The second mapping prepares each side: it opens a run that has learned the earlier tasks.
    """
    torch.manual_seed(3)
    plain, tokenizer = bench.bench_model(bench.WIDTH // 2), make_tokenizer()
    task = characters(BEFORE, TESTS)
    learners: dict[str, Learner] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, method in variants().items():
            learner = Learner(
                Backbone(deepcopy(plain), tokenizer, "bench"),
                method,
                folder / side,
                training={"max_steps": SAPT_STEPS, "per_device_train_batch_size": SIZE},
                evaluation={"max_new_tokens": 4},
            )
            for number in range(BEFORE):
                learner.learn(characters(number, 1))

        def prepare(side: str) -> None:
            shutil.rmtree(folder / "now", ignore_errors=True)
            shutil.copytree(folder / side, folder / "now")
            backbone = Backbone(deepcopy(plain), tokenizer, "bench")
            learners[side] = Learner.load(folder / "now", backbone=backbone)

        def learn(side: str) -> None:
            learners[side].learn(task)

        yield (
            {side: partial(learn, side) for side in variants()},
            {side: partial(prepare, side) for side in variants()},
        )
