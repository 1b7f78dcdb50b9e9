"""Seconds until a command has answered, in fresh processes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench import model as bench
from retain import Learner
from retain.testing.tiny import make_task, make_tokenizer

TOKENS = 8
RETAIN = "from retain.cli import main; main()"
PLAIN = f"""
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer(sys.argv[2], return_tensors="pt")
output = model.generate(**inputs, do_sample=False, max_new_tokens={TOKENS})
print(tokenizer.decode(output[0]))
"""


def seconds_of(code: str, *arguments: str) -> float:
    """Measures a new Python process."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    return time.perf_counter() - began


def start_times(rounds: int) -> dict[str, list[float]]:
    """Measures `retain methods`; `retain generate`, and transformers on the same backbone."""
    found: dict[str, list[float]] = {"methods": [], "generate": [], "transformers": []}
    with tempfile.TemporaryDirectory() as name:
        folder, run = Path(name) / "backbone", Path(name) / "run"
        bench.bench_model().save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        training, evaluation = {"max_steps": 1}, {"max_new_tokens": TOKENS}
        learner = Learner(folder, "seqlora", run, training=training, evaluation=evaluation)
        learner.learn(make_task("copy"))
        for number in range(rounds + 1):
            times = {
                "methods": seconds_of(RETAIN, "methods"),
                "generate": seconds_of(RETAIN, "generate", str(run), "copy this"),
                "transformers": seconds_of(PLAIN, str(folder), "copy this"),
            }
            if number:  # the first fills the disk's cache
                for side, seconds in times.items():
                    found[side].append(seconds)
    return {**found, "one second": [1.0] * rounds}
