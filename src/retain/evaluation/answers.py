"""Batched generation → predictions → scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from transformers import StoppingCriteriaList

from retain.backbone import Backbone, memory_advice
from retain.errors import StoppedError
from retain.evaluation.streaming import Listener, Reply
from retain.methods.base import Method
from retain.metrics import text
from retain.system import processes
from retain.system.progress import Progress
from retain.tasks import Example, Task


class EvaluationConfig(BaseModel):
    """How test examples are answered.

    `max_new_tokens` is for the tasks that have none of their own; `limit` takes the first so many
    of each test split; `zero_shot` also scores each task just before it is learned.
    """

    model_config = ConfigDict(extra="forbid")

    max_new_tokens: PositiveInt = 32
    batch_size: PositiveInt = 32
    limit: PositiveInt | None = None
    zero_shot: bool = False

    def of(self, task: Task) -> EvaluationConfig:
        """The same, with the task's own `max_new_tokens` if it has one."""
        own = task.max_new_tokens
        return self if own is None else self.model_copy(update={"max_new_tokens": own})


@dataclass(frozen=True)
class Evaluation:
    """One cell of the score matrix.

    Attributes:
        score: mean of the task's metric, 0 to 100.
        rows: per example its prompt, references, prediction, score and routing.
        routing: mean weights over the blocks, or None for a method that does not route.
    """

    score: float
    rows: list[dict[str, Any]]
    routing: list[float] | None

    @classmethod
    def of(cls, metric: str, rows: list[dict[str, Any]]) -> Evaluation:
        """From its rows alone, so that one which is read again is the same."""
        predictions, references, prompts = (
            [row[key] for row in rows] for key in ("prediction", "references", "prompt")
        )
        weights = [row["routing"] for row in rows if "routing" in row]
        return cls(
            text.score(metric, predictions, references, prompts),
            rows,
            torch.tensor(weights).mean(0).tolist() if weights else None,
        )


def answer(
    backbone: Backbone,
    method: Method,
    task: str | None,
    examples: Sequence[Example],
    config: EvaluationConfig,
    progress: Progress,
    replies: Sequence[Reply] | None = None,
) -> tuple[list[str], torch.Tensor | None]:
    """Greedy answers in the order of the examples, and the weights (N, T) they were routed with.

    Batches are formed by length, so that little is padded; several processes share them. `replies`
    are told of the answers, one each, while they are written; `task` is a name for methods that
    need it.
    """
    features = [backbone.encode(example, with_answer=False) for example in examples]
    order = sorted(range(len(features)), key=lambda i: -len(features[i]["input_ids"]))
    size = min(config.batch_size, -(-len(order) // processes.count()) or 1)  # none stands idle
    starts = range(0, len(order), size)
    found: list[tuple[int, str, list[float] | None]] = []
    for start in starts[processes.rank() :: processes.count()]:
        if progress.stopping and processes.count() == 1:  # others would wait for this one
            raise StoppedError("while it answered test examples")
        chosen = order[start : start + size]
        batch = backbone.collate([features[i] for i in chosen])
        with torch.no_grad():
            method.route(batch, task)
        listening = {}
        if replies is not None:
            heard = [replies[i] for i in chosen]
            listening["stopping_criteria"] = StoppingCriteriaList(
                [Listener(backbone, heard, config.max_new_tokens)]
            )
        with memory_advice(f"evaluation at {len(chosen)} rows a batch", _fewer(len(chosen))):
            answers = backbone.generate(batch, config.max_new_tokens, **listening)
        routing = method.routing()
        # As numbers: each row of a tensor would be sent with the whole of it.
        rows = [None] * len(chosen) if routing is None else routing.tolist()
        found += zip(chosen, answers, rows, strict=True)
        progress.update(min(len(order), len(found) * processes.count()))
    found = sorted(processes.gather(found), key=lambda row: row[0])
    weights = [row for _, _, row in found if row is not None]
    return [answer for _, answer, _ in found], torch.tensor(weights) if weights else None


def _fewer(rows: int) -> str:
    """What makes answering take less memory."""
    if rows == 1:
        return "take a smaller backbone, or lower max_new_tokens"
    return f"go on with --resume --set evaluation.batch_size={rows // 2}"


def evaluate(
    backbone: Backbone, method: Method, task: Task, config: EvaluationConfig, progress: Progress
) -> Evaluation:
    """Answers a task's test examples and scores them with its metric."""
    config = config.of(task)
    examples = task.test[: config.limit]
    progress.start(f"evaluates {task.name}", len(examples), "examples")
    try:
        predictions, weights = answer(backbone, method, task.name, examples, config, progress)
        rows = [_row(task.metric, *one) for one in zip(examples, predictions, strict=True)]
        if weights is not None:
            for row, own in zip(rows, weights.tolist(), strict=True):
                row["routing"] = [round(weight, 6) for weight in own]
        found = Evaluation.of(task.metric, rows)
        progress.update(len(examples), {"score": found.score})
    finally:
        progress.finish()
    return found


def _row(metric: str, example: Example, prediction: str) -> dict[str, Any]:
    prompt, references = example.prompt, list(example.references)
    score = text.score(metric, [prediction], [references], [prompt])
    return {"prompt": prompt, "references": references, "prediction": prediction, "score": score}
