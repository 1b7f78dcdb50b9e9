"""A SEEKR replay step, a plain replay step, and SEEKR's with eager attention.

    python -m benchmarks.seekr_step KIND     # the peak memory of a process, for benchmarks.bench

A LLaMA of width 1024 (MLP 2816, 4 layers, 8 heads, vocabulary 8192), full fine-tuning with AdamW,
batch 2 x 1024 with all positions labelled, a quarter of the heads at 100 queries, top-64 teacher
logits from disk. `eager` is the same loss as the papers' code takes it: eager attention with every
layer's weights returned.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from retain.backbone import Backbone
from retain.methods.base import TaskContext
from retain.methods.seekr import Seekr
from retain.methods.seekr.config import SeekrConfig
from retain.methods.seekr.distillation import attention_loss, sample_of, wanted
from retain.methods.shared.teacher import soft_cross_entropy, stacked

ROWS = 2
KINDS = ("plain", "seekr", "eager")


class Bench:
    """The bench model, or a given one, with a memory of two examples; smaller in its test."""

    def __init__(
        self,
        folder: Path,
        width: int = 1024,
        length: int = 1024,
        model: LlamaForCausalLM | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.length = length
        config = LlamaConfig(
            vocab_size=8192,
            hidden_size=width,
            intermediate_size=11 * width // 4,
            num_hidden_layers=4,
            num_attention_heads=8,
            max_position_embeddings=length,
            eos_token_id=1,
            bos_token_id=None,
            pad_token_id=0,
        )
        tokenizer: Any = SimpleNamespace(
            eos_token_id=1, pad_token_id=0, chat_template=None, get_vocab=lambda: {"<pad>": 0}
        )
        model = model or LlamaForCausalLM(config)
        self.backbone = Backbone(model, tokenizer, "bench")
        options = SeekrConfig.model_validate({"budget": {"heads": 0.25, "layers": 1.0}})
        self.method = Seekr(self.backbone, options)
        ids = torch.randint(2, model.config.vocab_size, (ROWS, length)).tolist()
        rows = [{"input_ids": r, "labels": [-100, *r[1:]], "route_ids": r} for r in ids]
        self.method.capture.on()
        context = TaskContext("bench", 0, folder, 0)
        self.method.write_before(rows, context)
        for parameter in self.backbone.model.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        self.method.write_teacher_outputs(rows, context)
        self.method.teacher_files = sorted((folder / "teacher").iterdir())
        replayed = [{**r, "example_id": [i], "is_replay": [1]} for i, r in enumerate(rows)]
        self.batch = self.backbone.collate(replayed)
        self.backbone.model.requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(self.backbone.model.parameters(), lr=1e-5)
        self.losses: dict[str, Callable[[], Any]] = {
            "plain": lambda: self.backbone.answer_loss(self.batch),
            "seekr": self._seekr,
            "eager": self._eager,
        }

    def step(self, kind: str) -> float:
        self.backbone.model.set_attn_implementation("eager" if kind == "eager" else "sdpa")
        if kind == "seekr":
            self.method.capture.on()
        loss = self.losses[kind]()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.method.capture.off()
        return float(loss.detach())

    def _seekr(self) -> Tensor:
        return torch.stack(list(self.method.loss(self.batch).values())).sum()

    def _eager(self) -> Tensor:
        """Computes the same loss from full attention matrices."""
        method = self.method
        files = method.read_teacher_outputs(self.batch)
        samples = [sample_of(file, method.modules) for file in files]
        output = self.backbone.model(
            input_ids=self.batch["input_ids"], use_cache=False, output_attentions=True
        )
        captured = wanted(samples, self.batch, method.modules)
        matrices = dict(zip(method.modules, output.attentions, strict=True))
        weights = {}
        for name, want in captured.items():
            assert want.positions is not None
            chosen = matrices[name][:, want.heads]
            index = want.positions[:, None, :, None].expand(-1, chosen.shape[1], -1, self.length)
            weights[name] = chosen.gather(2, index)
        scales = [1.0] * len(samples)
        attention = attention_loss(weights, samples, self.batch, method.modules, captured, scales)
        logits, targets = output.logits[:, :-1].flatten(0, 1), self.batch["labels"][:, 1:].flatten()
        replay = torch.nn.functional.cross_entropy(logits, targets)
        return 0.5 * replay + 0.5 * soft_cross_entropy(logits, stacked(files)) + 1000 * attention


def peak_memory(kind: str) -> float:
    """Measures the peak resident megabytes of a new process that makes three steps."""
    command = [sys.executable, "-m", "benchmarks.seekr_step", kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for _ in range(3):
            bench.step(parser.parse_args().kind)
    # Not getrusage: there a process begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text().split()
    print(int(status[status.index("VmHWM:") + 1]) / 1024)


if __name__ == "__main__":
    main()
