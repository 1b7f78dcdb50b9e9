"""Batched answers to prompts, and scores of a task's test examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from transformers import StoppingCriteriaList

from retain.backbone import Backbone, Features, memory_advice
from retain.backbone.precision import SMALLER
from retain.errors import StoppedError
from retain.evaluation.old import ALL, OldScores
from retain.evaluation.streaming import Listener, Reply
from retain.methods.base import Method
from retain.metrics import text
from retain.system import processes
from retain.system.progress import Progress
from retain.tasks import Example, Task


class EvaluationConfig(BaseModel):
    """How test examples are answered.

    `max_new_tokens` applies to tasks without a `max_new_tokens` of their own. `limit` is the number
    of examples used from the start of each test split. `zero_shot` also scores each task just
    before it is learned. `old` says how older tasks are scored in the rows of the score matrix
    before a stream's last one: `all` scores each of them on every test example, `limit N` scores
    each on N test examples that are drawn once, and `sampled N` scores N of these tasks, drawn anew
    for each row, on every test example. The last row, and each row's newest task, are always scored
    in full.
    """

    model_config = ConfigDict(extra="forbid")

    max_new_tokens: PositiveInt = 32
    batch_size: PositiveInt = 32
    limit: PositiveInt | None = None
    zero_shot: bool = False
    old: OldScores = ALL

    def for_task(self, task: Task) -> EvaluationConfig:
        """Returns these settings with the task's `max_new_tokens`, if it has one."""
        limit = task.max_new_tokens
        return self if limit is None else self.model_copy(update={"max_new_tokens": limit})


@dataclass(frozen=True)
class Evaluation:
    """One cell of the score matrix.

    Attributes:
        score: mean of the task's metric, 0 to 100.
        rows: one mapping per example, with its prompt, references, prediction, score and routing.
        routing: mean weights over the T blocks; None if the method does not route.
    """

    score: float
    rows: list[dict[str, Any]]
    routing: list[float] | None

    @classmethod
    def from_rows(cls, task: Task, rows: list[dict[str, Any]]) -> Evaluation:
        """Builds a task's evaluation from its rows; those stored in a run give the same again."""
        predictions, references, prompts = (
            [row[key] for row in rows] for key in ("prediction", "references", "prompt")
        )
        weights = [row["routing"] for row in rows if "routing" in row]  # (N, T)
        return cls(
            text.score(task.metric, predictions, references, prompts, task.extract),
            rows,
            torch.tensor(weights).mean(0).tolist() if weights else None,
        )


def answer(
    backbone: Backbone,
    method: Method,
    task: str | None,
    features: Sequence[Features],
    config: EvaluationConfig,
    progress: Progress,
    replies: Sequence[Reply] | None = None,
) -> tuple[list[str], torch.Tensor | None]:
    """Generates greedy answers to prompts.

    Batches have prompts of similar length, so that there is little padding. Several processes share
    the batches.

    Args:
        backbone: with the method's layers installed.
        method: routes each batch.
        task: the task's name, for methods that need it.
        features: N encoded prompts.
        config: batch size and length of answers.
        progress: receives the number of answered prompts.
        replies: one per prompt; each receives its answer while it is generated.

    Returns:
        The answers in the order of the prompts, and their weights over blocks (N, T), or None if
        the method does not route.

    Raises:
        RetainError: if memory does not suffice or a prompt does not fit in the model's window.
        StoppedError: if the user asked to stop.
    """
    # Smaller batches if one process would otherwise have nothing to do.
    size = min(config.batch_size, -(-len(features) // processes.count()) or 1)
    batches = backbone.batches(features, size)
    answered: list[tuple[int, str, list[float] | None]] = []  # index, answer, weights (T,)
    for chosen in batches[processes.rank() :: processes.count()]:
        # With several processes, the others would wait for this one for ever.
        if progress.stopping and processes.count() == 1:
            raise StoppedError("while it answered test examples")
        batch = backbone.collate([features[i] for i in chosen])
        options = {}
        if replies is not None:
            listener = Listener(backbone, [replies[i] for i in chosen], config.max_new_tokens)
            options["stopping_criteria"] = StoppingCriteriaList([listener])
        where = f"evaluation with batch size {len(chosen)}"
        with memory_advice(where, _advice(len(chosen))), torch.no_grad(), backbone.precision():
            method.route(batch, task)
            answers = backbone.generate(batch, config.max_new_tokens, **options)
        routing = method.routing()  # (B, T)
        # As lists: a pickled row of a tensor carries the storage of the full tensor.
        weights = [None] * len(chosen) if routing is None else routing.tolist()
        answered += zip(chosen, answers, weights, strict=True)
        progress.update(min(len(features), len(answered) * processes.count()))
    answered = sorted(processes.gather(answered), key=lambda row: row[0])
    table = [weights for _, _, weights in answered if weights is not None]
    return [answer for _, answer, _ in answered], torch.tensor(table) if table else None


def _advice(batch_size: int) -> str:
    """Returns how to answer with less memory."""
    if batch_size == 1:
        return f"lower max_new_tokens, or take {SMALLER}"
    return f"lower evaluation.batch_size to {batch_size // 2} (retain run … --resume --set)"


def evaluate(
    backbone: Backbone, method: Method, task: Task, config: EvaluationConfig, progress: Progress
) -> Evaluation:
    """Answers a task's test examples and scores them with its metric."""
    config = config.for_task(task)
    examples = task.test[: config.limit]
    progress.start(f"evaluates {task.name}", len(examples), "examples")
    try:
        features = [backbone.encode(example, with_answer=False) for example in examples]
        predictions, weights = answer(backbone, method, task.name, features, config, progress)
        rows = [
            _row(task, example, prediction)
            for example, prediction in zip(examples, predictions, strict=True)
        ]
        if weights is not None:
            for row, row_weights in zip(rows, weights.tolist(), strict=True):
                row["routing"] = [round(weight, 6) for weight in row_weights]
        evaluation = Evaluation.from_rows(task, rows)
        progress.update(len(examples), {"score": evaluation.score})
    finally:
        progress.finish()
    return evaluation


def _row(task: Task, example: Example, prediction: str) -> dict[str, Any]:
    """Returns what a run stores of one answered test example: the answer is whole."""
    prompt, references = example.prompt, list(example.references)
    score = text.score(task.metric, [prediction], [references], [prompt], task.extract)
    return {"prompt": prompt, "references": references, "prediction": prediction, "score": score}
