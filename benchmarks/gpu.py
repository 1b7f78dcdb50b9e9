"""Times, peak memory and tokens per second on a GPU: `make bench-gpu`.

    python -m benchmarks.gpu [--size 1b 7b] [--only ROW …] [--rounds N] [--json FILE]

On LLaMAs with random weights, which are made on the GPU: 1.1 billion parameters in the shape of
TinyLlama, 6.7 billion in that of LLaMA-2-7B. LoRA of rank 8 on q and v. Weights are in bfloat16,
blocks and adapters in float32; where all weights are trained (SEEKR, sharding) they are in float32
under bfloat16 autocast. Every row makes its own model, takes one round that is not counted, and
reports the median; peak memory is that of what the row allocates on the GPU, model included. A row
that runs out of memory says so, and the next one begins. `--size toy` runs every row in seconds, on
a CPU too, where times say nothing; its peak is of the process, and so of all rows before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from peft import LoraConfig
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import seekr_step
from benchmarks.bench.model import ALPHA, RANK, TARGETS, bench_tokenizer, words
from benchmarks.bench.pool import pool_of, with_lora
from benchmarks.bench.tasks import padded
from benchmarks.timing import synchronize, times_of
from retain import Learner, Task
from retain.backbone import Backbone
from retain.backbone.out_of_memory import NO_MEMORY
from retain.backbone.quantization import prepare
from retain.errors import first_line
from retain.learner.learned_model import Answer
from retain.serve.batcher import Batcher, Job
from retain.system import processes
from retain.system.files import read_json, write_json
from retain.tasks import Example
from retain.training.config import Shard

WARM = 2
"""Steps of Trainer that are not counted."""


@dataclass(frozen=True)
class Size:
    """A LLaMA and what it reads: `rows` × `length` in training, and `asked` × `prompt` in decoding.

    `new` tokens are decoded for each; SEEKR's batch is 2 × `long`.
    """

    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    rows: int = 8
    length: int = 512
    asked: int = 16
    prompt: int = 64
    new: int = 48
    long: int = 1024


SIZES = {
    "toy": Size(64, 128, 2, 4, 2, 512, rows=2, length=12, asked=3, prompt=6, new=4, long=120),
    "1b": Size(2048, 5632, 22, 32, 4, 32000),
    "7b": Size(4096, 11008, 32, 32, 32, 32000),
}


@dataclass(frozen=True)
class Found:
    """What a row measured: seconds of each round, tokens of one, and peak memory in GiB."""

    seconds: list[float]
    tokens: int
    peak: float


@dataclass(frozen=True)
class Bench:
    """What a row needs: its size, where it runs, and how often."""

    size: Size
    device: torch.device
    rounds: int

    def model(self, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
        """Makes the model on the device, in one format from the beginning."""
        size = self.size
        config = LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.width,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=2048,
            eos_token_id=1,
            bos_token_id=None,
            pad_token_id=0,
        )
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with self.device:
                model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(usual)
        return model.requires_grad_(False).eval()

    def ids(self, *shape: int) -> Tensor:
        """Random tokens."""
        return torch.randint(2, self.size.vocabulary, shape, device=self.device)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per word."""
        return bench_tokenizer(self.size.vocabulary)

    def task(self) -> Task:
        """A task with enough rows for one epoch of `rounds` steps."""
        size = self.size
        count = size.rows * (self.rounds + WARM)
        rows = [
            Example(words(2, size.vocabulary), (words(size.length - 3, size.vocabulary),))
            for _ in range(count + 2)
        ]
        return Task("task", rows[2:], rows[1:2], rows[:1], metric="rouge_l")

    def reset(self) -> None:
        """Begins to measure peak memory."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Peak memory in GiB since `reset`; on a CPU that of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        status = Path("/proc/self/status").read_text().split()
        return int(status[status.index("VmHWM:") + 1]) / 2**20

    def timed(self, side: Callable[[], object], tokens: int) -> Found:
        """Measures a function that handles so many tokens."""
        self.reset()
        return Found(times_of({"": side}, self.rounds)[""], tokens, self.peak())


# -- one step


def lora_step(bench: Bench, model: nn.Module, before: Callable[[], object]) -> Found:
    """A step of what is trainable: forward, backward, AdamW."""
    size = bench.size
    ids = bench.ids(size.rows, size.length)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        before()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return bench.timed(step, ids.numel())


def peft(bench: Bench, make: Callable[[Bench], LlamaForCausalLM]) -> Found:
    """One PEFT LoRA."""
    model = with_lora(make(bench), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    return lora_step(bench, model, lambda: None)


def pool(bench: Bench, make: Callable[[Bench], LlamaForCausalLM], blocks: int) -> Found:
    """retain's pool, of which the newest block is trained."""
    model = make(bench)
    made = pool_of(model, blocks)
    mixed = torch.randn(bench.size.rows, blocks, device=bench.device).softmax(1)
    weights = mixed.requires_grad_(True)
    return lora_step(bench, model, lambda: made.use(weights))


def nf4(bench: Bench) -> LlamaForCausalLM:
    """The model with its layers in 4 bits, as `backbone.quantization: nf4` loads one."""
    import bitsandbytes

    model = bench.model()
    kind: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    for name, layer in list(model.model.named_modules()):
        if isinstance(layer, nn.Linear):
            shape = layer.in_features, layer.out_features
            made = bitsandbytes.nn.Linear4bit(*shape, bias=False, device="meta", **kind)
            weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, **kind)
            made.weight = weight.to(bench.device)
            made.source_cls = nn.Linear
            model.model.set_submodule(name, made)
    model.is_loaded_in_4bit = True  # PEFT asks
    prepare(model)
    gc.collect()
    return model


def seekr(bench: Bench, kind: str) -> Found:
    """A replay step of SEEKR or a plain one, on all weights."""
    with tempfile.TemporaryDirectory() as folder:
        model = bench.model(torch.float32)
        made = seekr_step.Bench(Path(folder), length=bench.size.long, model=model)
        with torch.autocast(bench.device.type, torch.bfloat16):
            return bench.timed(lambda: made.step(kind), seekr_step.ROWS * bench.size.long)


# -- a whole task


class Clock(TrainerCallback):
    """Measures the seconds of each optimizer step, and the peak memory of all of them."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._times: list[float] = []
        self._began = 0.0
        self._peak = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._bench.reset()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = synchronize()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._times.append(synchronize() - self._began)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._peak = self._bench.peak()

    def found(self) -> Found:
        """The steps after the first `WARM`."""
        size = self._bench.size
        return Found(self._times[WARM:], size.rows * size.length, self._peak)


def settings(bench: Bench) -> dict[str, Any]:
    """Training settings that retain and Trainer share."""
    steps = bench.rounds + WARM
    return {"max_steps": steps, "per_device_train_batch_size": bench.size.rows}


def retain_task(bench: Bench) -> Found:
    """`seqlora` over a whole task."""
    clock = Clock(bench)
    method = {"name": "seqlora", "rank": RANK, "alpha": ALPHA, "target_modules": TARGETS}
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            Backbone(bench.model(), bench.tokenizer(), "bench"),
            method,
            Path(folder) / "run",
            training=settings(bench),
            evaluation={"max_new_tokens": 1},
            callbacks=[clock],
        )
        learner.learn(bench.task())
    return clock.found()


def trainer_task(bench: Bench) -> Found:
    """Plain Trainer with PEFT on the same rows."""
    clock, tokenizer = Clock(bench), bench.tokenizer()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    texts = [f"{e.prompt} {e.references[0]}" for e in bench.task().train]
    coded = [[*tokenizer(text)["input_ids"], 1] for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            use_cpu=bench.device.type == "cpu",
            **settings(bench),
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process would use all GPUs
        trainer = Trainer(
            with_lora(bench.model(), config),
            arguments,
            train_dataset=[{"input_ids": ids, "labels": ids} for ids in coded],
            data_collator=padded,
            callbacks=[clock],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock.found()


# -- decoding and serving


def decode(bench: Bench, blocks: int) -> Found:
    """Greedy decoding with a pool of blocks; 0 is the model alone, as with a merged LoRA."""
    model, size = bench.model(), bench.size
    ids = bench.ids(size.asked, size.prompt)
    model.generation_config.eos_token_id = None
    if blocks:
        made = pool_of(model, blocks)
        made.freeze()
        weights = torch.randn(size.asked, blocks, device=bench.device).softmax(1)

    def side() -> None:
        if blocks:
            made.use(weights)
        model.generate(ids, attention_mask=torch.ones_like(ids), **_greedy(size))

    return bench.timed(side, size.asked * size.new)


def peft_decode(bench: Bench) -> Found:
    """Greedy decoding with one PEFT LoRA beside the weights."""
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    model, size = with_lora(bench.model(), config).eval(), bench.size
    ids = bench.ids(size.asked, size.prompt)
    model.generation_config.eos_token_id = None

    def side() -> None:
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **_greedy(size))

    return bench.timed(side, size.asked * size.new)


def _greedy(size: Size) -> dict[str, Any]:
    return {"max_new_tokens": size.new, "do_sample": False}


def serve(bench: Bench) -> Found:
    """Requests that come at once to the batches of `retain serve`, without HTTP."""
    size = bench.size
    with tempfile.TemporaryDirectory() as folder:
        learner = Learner(
            Backbone(bench.model(), bench.tokenizer(), "bench"),
            {"name": "seqlora", "rank": RANK, "alpha": ALPHA, "target_modules": TARGETS},
            Path(folder) / "run",
            training={"max_steps": 1, "per_device_train_batch_size": 1},
            evaluation={"max_new_tokens": size.new, "batch_size": size.asked},
        )
        learner.learn(bench.task())
        learner.backbone.model.generation_config.eos_token_id = [size.vocabulary]  # of no token
        asked = [Example(words(size.prompt, size.vocabulary), ("",)) for _ in range(2 * size.asked)]
        batcher = Batcher(learner, len(asked))
        batcher.start()

        async def answered(job: Job) -> bool:
            return any([isinstance(event, Answer) async for event in job.events()])

        async def load() -> None:
            jobs = [Job(e, learner.encode(e), None, size.new, stream=False) for e in asked]
            for job in jobs:
                batcher.submit(job)
            assert all(await asyncio.gather(*map(answered, jobs)))

        try:
            return bench.timed(lambda: asyncio.run(load()), len(asked) * size.new)
        finally:
            batcher.close()


# -- several GPUs


def shard(bench: Bench, kind: Shard) -> Found:
    """Full fine-tuning on all GPUs (two processes on a CPU); tokens are those of all of them."""
    count = torch.cuda.device_count() if bench.device.type == "cuda" else 2
    name = next(name for name, size in SIZES.items() if size == bench.size)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node", str(count), "-m", "benchmarks.gpu", "--size", name]
        command += ["--rounds", str(bench.rounds), "--shard", kind, "--json", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not target.exists():
            lines = [line for line in done.stderr.splitlines() if "out of memory" in line.lower()]
            if lines:
                raise MemoryError(lines[-1])
            raise RuntimeError(f"torchrun failed: {done.stderr[-2000:]}")
        return Found(**read_json(target))


def shard_worker(bench: Bench, kind: str, target: Path) -> None:
    """What one process of the launch does; the first one writes what it has measured."""
    clock = Clock(bench)
    torch.manual_seed(0)  # all processes make the same weights
    learner = Learner(
        Backbone(bench.model(torch.float32), bench.tokenizer(), "bench"),
        "seqft",
        target.parent / "run",
        training={**settings(bench), "learning_rate": 1e-5, "bf16": True, "shard": kind},
        evaluation={"max_new_tokens": 1},
        callbacks=[clock],
    )
    learner.learn(bench.task())
    found = clock.found()
    # All processes call it, and the first one writes.
    write_json(target, asdict(replace(found, tokens=found.tokens * processes.count())))


@dataclass(frozen=True)
class Row:
    """A row of the table: what makes it, and the row that it stands beside."""

    make: Callable[[Bench], Found]
    beside: str | None = None


ROWS = {
    "peft": Row(lambda bench: peft(bench, Bench.model)),
    "pool 1": Row(lambda bench: pool(bench, Bench.model, 1), "peft"),
    "pool 15": Row(lambda bench: pool(bench, Bench.model, 15), "peft"),
    "pool 100": Row(lambda bench: pool(bench, Bench.model, 100), "peft"),
    "nf4 peft": Row(lambda bench: peft(bench, nf4), "peft"),
    "nf4 pool 15": Row(lambda bench: pool(bench, nf4, 15), "nf4 peft"),
    "trainer peft": Row(trainer_task),
    "retain seqlora": Row(retain_task, "trainer peft"),
    "replay step, all weights": Row(lambda bench: seekr(bench, "plain")),
    "seekr step, all weights": Row(lambda bench: seekr(bench, "seekr"), "replay step, all weights"),
    "decode merged": Row(lambda bench: decode(bench, 0)),
    "decode peft": Row(peft_decode, "decode merged"),
    "decode pool 15": Row(lambda bench: decode(bench, 15), "decode merged"),
    "serve": Row(serve, "decode merged"),
    **{
        f"shard {kind}": Row(partial(shard, kind=kind), None if kind == "none" else "shard none")
        for kind in get_args(Shard)
    },
}
SHARD = [name for name in ROWS if name.startswith("shard ")]


def measure(row: Row, bench: Bench) -> dict[str, Any]:
    """What a row measured, or why it did not."""
    try:
        found = row.make(bench)
    except Exception as error:
        reason = "out of memory" if _ran_out(error) else f"failed: {first_line(error)}"
        return {"error": reason}
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    low, middle, high = statistics.quantiles(found.seconds, n=4, method="inclusive")
    return {
        "milliseconds": 1000 * middle,
        "quartiles": [1000 * low, 1000 * high],
        "tokens_per_second": found.tokens / middle,
        "peak_gib": found.peak,
    }


def _ran_out(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in (NO_MEMORY, "out of memory")
    )


def line(name: str, found: dict[str, Any], others: dict[str, dict[str, Any]]) -> str:
    """A row of the Markdown table."""
    if "error" in found:
        return f"| {name} | {found['error']} | | | | |"
    low, high = found["quartiles"]
    beside = ROWS[name].beside
    base = others.get(beside or "", {}).get("tokens_per_second")
    ratio = f"{base / found['tokens_per_second']:.3f} × {beside}" if base else ""
    return (
        f"| {name} | {found['milliseconds']:.1f} | {low:.1f} to {high:.1f} | "
        f"{found['tokens_per_second']:,.0f} | {found['peak_gib']:.2f} | {ratio} |"
    )


def machine(device: torch.device) -> str:
    """What was measured on, in words."""
    kind = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return f"{count} × {kind}, torch {torch.__version__}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status: 2 without a GPU, 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["1b", "7b"])
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="these rows")
    parser.add_argument("--rounds", type=int, choices=range(2, 1000), default=10, metavar="N")
    parser.add_argument("--json", type=Path, help="also write the numbers here, after each row")
    parser.add_argument("--shard", choices=get_args(Shard), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    if not gpu and options.size != ["toy"]:
        print("bench-gpu: this machine has no GPU; run it where there is one, or --size toy")
        return 2
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device(f"cuda:{local}" if gpu else "cpu")
    if gpu:
        torch.cuda.set_device(device)
    if options.shard:
        shard_worker(
            Bench(SIZES[options.size[0]], device, options.rounds), options.shard, options.json
        )
        return 0
    sizes: dict[str, dict[str, dict[str, Any]]] = {}
    result = {"machine": machine(device), "sizes": sizes}
    print(f"{machine(device)}; median of {options.rounds} rounds")
    for name in options.size:
        bench = Bench(SIZES[name], device, options.rounds)
        found = sizes.setdefault(name, {})
        print(f"\n| {name} | ms | quartiles | tokens/s | peak GiB | time a token |")
        print("|---|---|---|---|---|---|")
        for row in options.only or ROWS:
            if row in SHARD and gpu and torch.cuda.device_count() < 2:
                found[row] = {"error": "not measured: one GPU"}
            else:
                torch.manual_seed(0)
                found[row] = measure(ROWS[row], bench)
            print(line(row, found[row], found), flush=True)
            if options.json:
                write_json(options.json, result)
    failed = (row.get("error", "") for rows in sizes.values() for row in rows.values())
    return int(any(error.startswith("failed") for error in failed))


if __name__ == "__main__":
    sys.exit(main())
