"""The memory that `--dry-run` foretells, beside the peak of real runs, each in a fresh process.

python -m benchmarks.memory                          # 69 million weights, some minutes
python -m benchmarks.memory --layers 24 --width 1792 --methods seqlora   # a billion

A run learns two tasks of random words on a LLaMA with random weights. What is measured is the
growth of the process's resident memory from its state after a small run, which has loaded all
libraries, to its peak. The C library is told to give freed memory back at once
(MALLOC_MMAP_THRESHOLD_=65536), unless the variable is set; by itself it keeps some of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.bench.model import bench_tokenizer, words
from retain.experiment.config import ExperimentConfig
from retain.experiment.validation import check, set_field
from retain.learner.memory import foretell
from retain.learner.stream import learn_stream
from retain.system import processes
from retain.system.files import write_json
from retain.tasks import Example, Task
from retain.testing.tiny import make_backbone, make_learner, make_task

Found = dict[str, Any]
METHODS = ("seqlora", "sapt", "seqft", "seekr", "ewc")
ROWS, WORDS, ANSWER = 4, 240, 12
"""Rows of a batch, words of a prompt and of its answer; a word is a token."""
VOCABULARY = 8192


def save_model(folder: Path, width: int, layers: int) -> None:
    """Writes a LLaMA with random weights, and its tokenizer."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    bench_tokenizer().save_pretrained(folder)


def random_task(name: str) -> Task:
    """Returns a task of rows that differ in length a little."""
    rows = [Example(words(WORDS - i), (words(ANSWER - i % 3),)) for i in range(2 * ROWS + 3)]
    return Task(name, rows[3:], rows[:1], rows[1:3])


def status(field: str) -> int:
    """Returns a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure(model: Path, method: str, folder: Path, dtype: str, changes: list[str]) -> Found:
    """Returns what is foretold of a run, and the growth of memory to its peak; in bytes.

    Args:
        model: the backbone's folder.
        method: its name.
        folder: for runs; all processes have the same.
        dtype: of the backbone.
        changes: settings of training, as A=B.
    """
    make_learner(method, make_backbone("llama"), folder / "small").learn(make_task("copy"))
    values: dict[str, Any] = {
        "backbone": {"name": str(model), "dtype": dtype},
        "method": {"name": method},
        "training": {
            "max_steps": 3,
            "per_device_train_batch_size": ROWS,
            "learning_rate": 1e-5,
        },
        "evaluation": {"max_new_tokens": 16, "batch_size": 2},
        "output": str(folder / "run"),
    }
    for change in changes:
        set_field(values, f"training.{change}")
    experiment = check(ExperimentConfig, values, "benchmark")
    tasks = [random_task("one"), random_task("two")]
    told = foretell(experiment, tasks)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak so far
    before = status("VmRSS")
    learn_stream(experiment, tasks)
    return {
        "method": method,
        "processes": processes.count(),
        "shard": experiment.training.shard,
        "foretold": told.per_process(processes.count(), experiment.training.shard),
        "measured": max(processes.gather([status("VmHWM") - before])),
        "parts": {
            name: getattr(told, name) for name in ("weights", "moments", "method_bytes", "step")
        },
    }


def main() -> None:
    """Measures each method in processes of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], help="settings of training: shard=full")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # a model, a method and a folder
    options = parser.parse_args()
    if options.one:
        model, method, folder = options.one
        torch.manual_seed(0)  # all processes have the same rows
        found = measure(Path(model), method, Path(folder), options.dtype, options.set)
        if processes.is_first():
            print(json.dumps(found))
        return
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "65536")
    transformers.set_seed(0)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(options.processes)]
    rows = []
    print("| method | foretold | measured | foretold / measured |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        save_model(model, options.width, options.layers)
        for method in options.methods:
            command = [
                sys.executable,
                *(launcher if options.processes > 1 else []),
                *("-m", "benchmarks.memory", "--dtype", options.dtype),
                *("--one", str(model), method, str(Path(place) / method)),
                *(["--set", *options.set] if options.set else []),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            share = row["foretold"] / row["measured"]
            gb = [f"{row[name] / 1e9:.2f} GB" for name in ("foretold", "measured")]
            print(f"| {method} | {gb[0]} | {gb[1]} | {share:.2f} |", flush=True)
    if options.json is not None:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
