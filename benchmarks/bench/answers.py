"""Answering: decoding with a pool, evaluation beside a pipeline, and routing beside a prefill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import pipeline

from benchmarks.bench import model as bench
from benchmarks.bench.pool import pool_of
from benchmarks.timing import Side
from retain.backbone import Backbone
from retain.evaluation.answers import EvaluationConfig, answer
from retain.methods.sapt import Sapt
from retain.methods.seqft import SeqFt
from retain.system.progress import Progress
from retain.tasks import Example
from retain.testing.tiny import make_tokenizer

TASKS = 400


@contextmanager
def decode_sides() -> Iterator[dict[str, Side]]:
    ids = torch.randint(2, bench.VOCABULARY, (16, 64))
    options = {"max_new_tokens": 48, "min_new_tokens": 48, "do_sample": False}
    merged, model = bench.bench_model(), bench.bench_model()
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


@contextmanager
def evaluate_sides() -> Iterator[dict[str, Side]]:
    torch.manual_seed(2)
    prompts = [bench.words(n) for n in torch.randint(16, 257, (128,)).tolist()]
    examples = [Example(prompt, ("",)) for prompt in prompts]
    backbone = Backbone(bench.bench_model(), bench.bench_tokenizer(), "bench")
    backbone.model.generation_config.eos_token_id = None  # both write all 16 tokens
    method = SeqFt(backbone, SeqFt.Config())
    config = EvaluationConfig(max_new_tokens=16, batch_size=16)
    write: Any = pipeline(
        "text-generation",
        model=bench.bench_model(),
        tokenizer=bench.bench_tokenizer(),
        device="cpu",
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


@contextmanager
def route_sides() -> Iterator[dict[str, Side]]:
    """SAPT's default router among 400 tasks with random state, and the backbone on the prompt."""
    backbone = Backbone(bench.bench_model(), make_tokenizer(), "bench")
    method = Sapt(backbone, Sapt.Config())
    for _ in range(TASKS):
        state = {name: torch.rand(shape) for name, shape in method.router.shapes().items()}
        if "count" in state:  # of the task's prompts
            state["count"].fill_(100.0)
        method.router.load_task(state)
    prompt = Example("a " * (bench.LENGTH // 2), ("",))
    batch = backbone.collate([backbone.encode(prompt, with_answer=False)])
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def route() -> None:
        assert method.router.weights(batch).shape == (1, TASKS)

    @torch.no_grad()
    def prefill() -> None:
        backbone.model(**inputs, use_cache=True, logits_to_keep=1)

    yield {"route": route, "prefill": prefill}
