"""Cost of retain compared with what a user would run instead: `make bench`.

    python -m benchmarks.bench [--json FILE] [--only GROUP …] [--rounds N]

The bench model is a LLaMA of width 1024 (MLP 2816, 4 layers, 8 heads, vocabulary 8192) with random
weights, LoRA of rank 8 on q and v, all positions labelled, batch 8 x 128 unless a row says
otherwise. The sides of a row take turns in one process; the first round is not counted; a ratio is
the median over rounds. After the ratios with targets come those of each side to the plain one of
its group. Peak memory is that of fresh processes. Frozen blocks of retain's pool pass
no gradient to their input, as in SAPT's published code; PEFT's adapters do (as does the side "with
input gradient"), and have no weights to mix with. Routers and reflection are not in these rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from benchmarks import seekr_step
from benchmarks.timing import Side, times_of
from retain import Learner, Task
from retain.backbone import Backbone
from retain.evaluation.answers import EvaluationConfig, answer
from retain.layers.lora_pool import LoraPool
from retain.methods.seqft import SeqFt
from retain.system.files import write_json
from retain.system.progress import Progress
from retain.tasks import Example

WIDTH = 1024
RANK, ALPHA = 8, 16
BATCH, LENGTH = 8, 128
VOCABULARY = 8192
TARGETS = ["q_proj", "v_proj"]
Sides = dict[str, Side]


@dataclass(frozen=True)
class Row:
    """A ratio of two sides' times: `above` over `below`.

    Attributes:
        key: its name in the JSON file.
        group: the sides that take turns.
        target: as the ratio should be; `at_most` says on which side.
        floor: by counting operations, where there is one.
    """

    key: str
    group: str
    above: str
    below: str
    target: float
    at_most: bool
    floor: str = ""


ROWS = [
    Row("pool_15_vs_single", "pool", "pool 15", "single", 1.10, True, "1.02"),
    Row("pool_100_vs_single", "pool", "pool 100", "single", 1.35, True, "1.16"),
    Row("pool_50_naive_vs_fused", "pool", "naive 50", "pool 50", 3, False),
    Row("pool_15_peft_vs_fused", "pool", "peft 15", "pool 15", 1.2, False),
    Row("pool_50_peft_vs_fused", "pool", "peft 50", "pool 50", 2, False),
    Row("seekr_step_vs_plain", "seekr", "seekr", "plain", 1.10, True, "1.02"),
    Row("eager_vs_seekr", "seekr", "eager", "seekr", 1.2, False),
    Row("decode_15_vs_merged", "decode", "merged", "pool 15", 0.9, False),
    Row("seqlora_vs_trainer_peft", "train", "seqlora", "trainer", 1.05, True, "1"),
    Row("eval_pipeline_vs_retain", "evaluate", "pipeline", "retain", 1.5, False),
]
MEMORY = Row("seekr_memory_vs_plain", "memory", "seekr", "plain", 1.15, True, "1.02")


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


# -- the pool


class NaiveLinear(nn.Module):
    """Pooled layer of SAPT's published code for LLaMA: mixes the full outputs of the blocks.

    Frozen blocks pass no gradient to their input, as in that code and in retain's pool.
    """

    def __init__(self, base: nn.Linear, blocks: int) -> None:
        super().__init__()
        self.base = base
        self.A = nn.ParameterList([torch.randn(RANK, base.in_features) / 32 for _ in range(blocks)])
        self.B = nn.ParameterList(
            [torch.randn(base.out_features, RANK) / 32 for _ in range(blocks)]
        )
        self.A[:-1].requires_grad_(False)
        self.B[:-1].requires_grad_(False)
        self.weights = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d) to (B, S, d)."""
        *old, new = zip(self.A, self.B, strict=True)
        with torch.no_grad():
            outputs = torch.stack([x @ A.T @ B.T for A, B in old])  # (T − 1, B, S, d)
        newest = (x @ new[0].T @ new[1].T)[None]
        outputs = torch.cat([outputs, newest]).transpose(0, 1).flatten(2)  # (B, T, S·d)
        y: Tensor = self.base(x)
        mixed = (self.weights[:, None] @ outputs).view_as(y)
        return y + ALPHA / RANK * mixed


def step_of(
    model: nn.Module, before: Callable[[], object] = lambda: None, length: int | None = None
) -> Callable[[], None]:
    """Returns a function that runs forward and backward on one batch."""
    ids = torch.randint(2, VOCABULARY, (BATCH, length or LENGTH))

    def step() -> None:
        before()
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


def with_lora(model: LlamaForCausalLM, config: LoraConfig, name: str = "default") -> PeftModel:
    """Adds one PEFT adapter to the model, without PEFT's own deprecation warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        found: PeftModel = get_peft_model(model, config, adapter_name=name)
    return found


def single(width: int | None = None, length: int | None = None) -> Callable[[], None]:
    """One PEFT LoRA."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    return step_of(with_lora(bench_model(width), config), length=length)


def peft_pool(blocks: int) -> Callable[[], None]:
    """Active PEFT adapters, all but the last frozen."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    model = with_lora(bench_model(), config, "b0")
    names = [f"b{i}" for i in range(blocks)]
    for name in names[1:]:
        model.add_adapter(name, config)
    model.base_model.set_adapter(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{names[-1]}." in name)
    return step_of(model)


def mixing(blocks: int) -> Tensor:
    """Returns a router's weights (B, T), which require a gradient."""
    return torch.softmax(torch.randn(BATCH, blocks), 1).requires_grad_(True)


def pool_of(model: LlamaForCausalLM, blocks: int, input_gradient: bool = False) -> LoraPool:
    """Makes a pool of blocks, of which the last is trainable."""
    pool = LoraPool(model, TARGETS, RANK, ALPHA, old_block_gradient=input_gradient)
    for i in range(blocks):
        pool.grow(f"b{i}", seed=i)
    return pool


def fused_pool(
    blocks: int,
    width: int | None = None,
    length: int | None = None,
    input_gradient: bool = False,
) -> Callable[[], None]:
    """retain's pool."""
    model = bench_model(width)
    pool, weights = pool_of(model, blocks, input_gradient), mixing(blocks)
    return step_of(model, lambda: pool.use(weights), length)


def naive_pool(blocks: int) -> Callable[[], None]:
    """The pool of the papers' published code."""
    model, weights = bench_model(), mixing(blocks)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in TARGETS and isinstance(module, nn.Linear):
            layer = NaiveLinear(module, blocks)
            layer.weights = weights
            model.set_submodule(name, layer)
    return step_of(model)


@contextmanager
def pool_sides() -> Iterator[Sides]:
    yield {
        "single": single(),
        "pool 15": fused_pool(15),
        "pool 50": fused_pool(50),
        "pool 100": fused_pool(100),
        "pool 50 with input gradient": fused_pool(50, input_gradient=True),
        "naive 50": naive_pool(50),
        "peft 15": peft_pool(15),
        "peft 50": peft_pool(50),
    }


# -- SEEKR


@contextmanager
def seekr_sides() -> Iterator[Sides]:
    with tempfile.TemporaryDirectory() as folder:
        bench = seekr_step.Bench(Path(folder))
        yield {kind: partial(bench.step, kind) for kind in seekr_step.KINDS}


# -- decoding


@contextmanager
def decode_sides() -> Iterator[Sides]:
    ids = torch.randint(2, VOCABULARY, (16, 64))
    options = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False}
    merged, model = bench_model(), bench_model()
    pool = pool_of(model, 15)
    pool.freeze()
    weights = torch.softmax(torch.randn(16, 15), 1)

    def decode() -> None:
        pool.use(weights)
        model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    yield {
        "merged": lambda: merged.generate(ids, attention_mask=torch.ones_like(ids), **options),
        "pool 15": decode,
    }


# -- a whole task


@contextmanager
def train_sides() -> Iterator[Sides]:
    steps, rows = 10, 42
    torch.manual_seed(1)
    examples = [Example(words(2), (words(LENGTH - 3),)) for _ in range(rows)]
    task = Task("task", examples[2:], examples[1:2], examples[:1], metric="rouge_l")
    settings = {"max_steps": steps, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3}
    tokenizer, plain = bench_tokenizer(), bench_model()

    def retain_side() -> None:
        with tempfile.TemporaryDirectory() as folder:
            learner = Learner(
                Backbone(deepcopy(plain), tokenizer, "bench"),
                {"name": "seqlora", "rank": RANK, "alpha": ALPHA, "target_modules": TARGETS},
                Path(folder) / "run",
                training=settings,
                evaluation={"max_new_tokens": 1},
            )
            learner.learn(task)

    def trainer_side() -> None:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
        model = with_lora(deepcopy(plain), config)
        coded = [tokenizer(f"{e.prompt} {e.references[0]}")["input_ids"] + [1] for e in task.train]
        data = [{"input_ids": ids, "labels": ids} for ids in coded]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_steps=1,
                lr_scheduler_type="linear",
                use_cpu=True,
                **settings,
            )
            trainer = Trainer(model, arguments, train_dataset=data, data_collator=stack)
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
            model.save_pretrained(folder)

    yield {"seqlora": retain_side, "trainer": trainer_side}


def stack(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Stacks examples of equal length to a batch."""
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


# -- evaluation


@contextmanager
def evaluate_sides() -> Iterator[Sides]:
    torch.manual_seed(2)
    prompts = [words(n) for n in torch.randint(16, 257, (200,)).tolist()]
    examples = [Example(prompt, ("",)) for prompt in prompts]
    backbone = Backbone(bench_model(), bench_tokenizer(), "bench")
    backbone.model.generation_config.eos_token_id = None  # both write all 16 tokens
    method = SeqFt(backbone, SeqFt.Config())
    config = EvaluationConfig(max_new_tokens=16, batch_size=16)
    write: Any = pipeline(
        "text-generation", model=bench_model(), tokenizer=bench_tokenizer(), device="cpu"
    )
    write.model.generation_config.eos_token_id = None
    options = {"max_new_tokens": 16, "do_sample": False, "return_full_text": False}
    yield {
        "pipeline": lambda: write(prompts, batch_size=16, **options),
        "retain": lambda: answer(
            backbone,
            method,
            None,
            [backbone.encode(example, with_answer=False) for example in examples],
            config,
            Progress(),
        ),
    }


GROUPS = {
    "pool": (pool_sides, 7),
    "seekr": (seekr_sides, 11),
    "decode": (decode_sides, 11),
    "train": (train_sides, 5),
    "evaluate": (evaluate_sides, 3),
}
"""Sides, and rounds: more of the short ones."""

PLAIN = {"pool": "single", "seekr": "plain"}
"""The sides that the others of their group are also compared with."""


def group_times(group: str, rounds: int | None) -> dict[str, list[float]]:
    """Measures the seconds of each side of a group in each round."""
    make, usual = GROUPS[group]
    with make() as sides:
        return times_of(sides, rounds or usual)


def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
    """Returns the median and quartiles of the ratios of at least two rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}


def cells(found: dict[str, Any]) -> str:
    """Formats a ratio as two cells of a table."""
    low, high = found["quartiles"]
    return f"{found['median']:.3f} | {low:.3f} to {high:.3f}"


def line(row: Row, found: dict[str, Any]) -> str:
    """Formats a row of the table."""
    met = found["median"] <= row.target if row.at_most else found["median"] >= row.target
    target = f"{'≤' if row.at_most else '≥'} {row.target:g}{'' if met else ' (missed)'}"
    return f"| `{row.key}` | {cells(found)} | {row.floor} | {target} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the ratios here")
    parser.add_argument("--only", nargs="+", choices=[*GROUPS, "memory"], help="these groups")
    parser.add_argument("--rounds", type=int, choices=range(2, 100), metavar="N")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    wanted = options.only or [*GROUPS, "memory"]
    found: dict[str, dict[str, Any]] = {}
    beside: list[str] = []
    print("| ratio | median | quartiles | floor | target |")
    print("|---|---|---|---|---|")
    for group in wanted:
        if group == "memory":
            rounds = range(options.rounds or 3)
            seekr, plain = (
                [seekr_step.peak_memory(kind) for _ in rounds] for kind in ("seekr", "plain")
            )
            found[MEMORY.key] = ratio(seekr, plain)
            print(line(MEMORY, found[MEMORY.key]), flush=True)
        else:
            times = group_times(group, options.rounds)
            for row in (row for row in ROWS if row.group == group):
                found[row.key] = ratio(times[row.above], times[row.below])
                print(line(row, found[row.key]), flush=True)
            if group in PLAIN:
                base = PLAIN[group]
                rest = (side for side in times if side != base)
                beside += [
                    f"| {s} / {base} | {cells(ratio(times[s], times[base]))} |" for s in rest
                ]
        if options.json:
            write_json(options.json, found)
    if beside:
        print("\n| side / plain one | median | quartiles |\n|---|---|---|", *beside, sep="\n")


if __name__ == "__main__":
    main()
