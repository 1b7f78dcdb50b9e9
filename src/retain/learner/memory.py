"""How much memory a run takes at its peak, told before anything of the model is loaded.

A second model without weights, on torch's meta device, has the method's layers and goes through one
step: see `retain.backbone.activations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from retain.backbone import Backbone
from retain.backbone.activations import peak_of_answers, peak_of_step, without_values
from retain.backbone.loading import load_skeleton, refuse_damaged
from retain.backbone.precision import device_of, refuse_full_fine_tuning
from retain.backbone.quantization import bytes_per_weight
from retain.errors import RetainError, first_line
from retain.experiment.config import ExperimentConfig, check_method, resolved, training_of
from retain.experiment.read_tasks import load_stream
from retain.layers.lora_pool import LoraPool
from retain.layers.soft_prompt import PromptedEmbedding
from retain.learner.check_resources import size
from retain.learner.check_shard import check_shard
from retain.methods import Method
from retain.tasks import Task
from retain.training.config import Shard, TrainingConfig, effective
from retain.training.optimizer import STATE
from retain.training.sharded_trainer import layers_of

PROCESSES = (1, 2, 4, 8)
"""Numbers of processes in the table."""
SHARDS: tuple[Shard, ...] = get_args(Shard)


@dataclass(frozen=True)
class Largest:
    """The largest batches of all tasks; all rows count as long as the longest.

    Attributes:
        rows: of a micro-batch in training.
        positions: of each of its rows.
        answer: the last of these, whose logits are computed.
        asked: rows of test examples that are answered together.
        asked_positions: of each of them, with those that are generated.
    """

    rows: int
    positions: int
    answer: int
    asked: int
    asked_positions: int

    def __str__(self) -> str:
        return (
            f"in steps of {self.rows} rows of {self.positions} positions, {self.answer} of them "
            f"answers; in evaluation of {self.asked} rows of {self.asked_positions}"
        )


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds, where it is alone.

    Attributes:
        weights: of the backbone.
        whole_under_full: what of them `shard: full` has whole at once: two layers, and what is in
            none.
        trained: of the trained parameters, in float32; gradients are as large.
        moments: of the optimizer.
        method_bytes: what else the method keeps while a task is learned.
        step: activations and gradients at the peak of a step.
        step_with_gradients: the same where gradients are there from the beginning, as between
            processes.
        answers: the peak of answering test examples.
        trains_all: whether the backbone's own weights are trained.
        accumulates: whether a step has several micro-batches.
        shards: the kinds of `training.shard` that go with the other settings.
        recomputable: whether `training.gradient_checkpointing` is not set and could be.
        lowers: the method's advice on what takes less.
        largest: the batches that this is for.
    """

    weights: int
    whole_under_full: int
    trained: int
    moments: int
    method_bytes: int
    step: int
    step_with_gradients: int
    answers: int
    trains_all: bool
    accumulates: bool
    shards: tuple[Shard, ...]
    recomputable: bool
    lowers: str
    largest: Largest

    @property
    def answering(self) -> int:
        """The peak outside of training, in bytes, of each process."""
        return self.weights + self.method_bytes + self.answers

    def per_process(self, count: int, shard: str) -> int:
        """Returns the peak of each of several processes, in bytes; see `training.shard`."""
        return max(self._training(count, shard), self.answering)

    def _training(self, count: int, shard: str) -> int:
        if count == 1:
            return self.weights + self.method_bytes + self.moments + self.step
        step = self.step_with_gradients
        if shard != "full":
            moments = self.moments // count if shard == "optimizer" else self.moments
            return self.weights + self.method_bytes + moments + step
        # The backbone's weights are shared out; what a method adds is whole in every process.
        weights = self.weights // count + self.whole_under_full
        if not self.trains_all:
            return weights + self.method_bytes + self.moments + step
        activations = step - self.trained
        gradients = self.trained // count + self.whole_under_full
        # Without micro-batches gradients come as activations go.
        step = activations + gradients if self.accumulates else max(activations, gradients)
        return weights + self.method_bytes + self.moments // count + step

    def lines(self) -> Iterator[str]:
        """Yields the parts, and a table by number of processes and what they share out."""
        yield f"memory of one process: {size(self.per_process(1, 'none'))} at its peak"
        yield (
            f"weights {size(self.weights)}, moments {size(self.moments)}, the method's own "
            f"{size(self.method_bytes)}, activations and gradients {size(self.step)}, or answering "
            f"{size(self.answers)}"
        )
        yield str(self.largest)
        yield "processes          " + "".join(f"{count:>10}" for count in PROCESSES)
        for shard in SHARDS:
            known = shard in self.shards
            cells = (size(self.per_process(n, shard)) if known else "–" for n in PROCESSES)
            yield f"shard: {shard:<12}" + "".join(f"{cell:>10}" for cell in cells)
        if len(self.shards) < len(SHARDS):
            yield "–: does not go with the other settings"


def foretell(experiment: ExperimentConfig, tasks: Sequence[Task]) -> Memory:
    """Returns the memory that an experiment takes at its peak, over its tasks.

    Pseudo-samples and replayed examples count as no longer than the tasks' own.

    Raises:
        RetainError: if a run would refuse the settings, there is no such backbone, or its class
            does not go through a step without its weights.
    """
    experiment = resolved(experiment)
    return _foretold(experiment, tasks, *_method_of(experiment))


def _method_of(experiment: ExperimentConfig) -> tuple[type[Method], Any]:
    """Returns the method's class and its options.

    Raises:
        RetainError: for what a run refuses before it loads a backbone.
    """
    kind, options = check_method(experiment.method, "method")
    source, training = experiment.backbone, experiment.training
    if kind.trains_backbone(options):
        refuse_full_fine_tuning(source.dtype, source.quantization is not None)
    check_shard(kind, options, source, training, effective(training.shard))
    return kind, options


def _foretold(
    experiment: ExperimentConfig, tasks: Sequence[Task], kind: type[Method], options: Any
) -> Memory:
    backbone = load_skeleton(experiment.backbone, experiment.prompt)
    weights = _bytes_of(backbone, experiment)
    shards = tuple(shard for shard in SHARDS if _goes(shard, experiment, tasks, kind, options))
    try:
        with without_values():
            method, trains_all = kind(backbone, options), kind.trains_backbone(options)
            return _counted(method, trains_all, experiment, tasks, weights, shards)
    except RetainError:
        raise
    except Exception as error:  # classes need values in many places
        raise RetainError(
            f"backbone '{backbone.name}': what it needs cannot be counted without its weights "
            f"({first_line(error)})"
        ) from error


def _goes(
    shard: Shard,
    experiment: ExperimentConfig,
    tasks: Sequence[Task],
    kind: type[Method],
    options: Any,
) -> bool:
    """Tells whether a kind of `training.shard` goes with the settings of all tasks."""
    try:
        for task in tasks:
            training = training_of(experiment, task)
            check_shard(kind, options, experiment.backbone, training, shard)
    except RetainError:
        return False
    return True


def _counted(
    method: Method,
    trains_all: bool,
    experiment: ExperimentConfig,
    tasks: Sequence[Task],
    weights: int,
    shards: tuple[Shard, ...],
) -> Memory:
    backbone, model = method.backbone, method.backbone.model
    settings = [training_of(experiment, task) for task in tasks]
    needs = [
        method.footprint(task, config.per_device_train_batch_size)
        for task, config in zip(tasks, settings, strict=True)
    ]
    largest = _largest(method, experiment, tasks, settings)
    trained = max(need.trainable for need in needs)
    micro_batches = max(config.gradient_accumulation_steps for config in settings)
    _make_trainable(method, trains_all)
    # One step of the longest rows stands for all tasks; it takes a second or so.
    peak = partial(
        peak_of_step,
        backbone,
        largest.rows,
        largest.positions,
        largest.answer,
        any(config.autocasts for config in settings),
        all(config.gradient_checkpointing for config in settings),
    )
    step = peak(micro_batches)
    step_with_gradients = peak(2) if trains_all else step + trained
    model.requires_grad_(False)
    on_gpu = device_of(experiment.backbone.device).startswith("cuda")
    if on_gpu and any(config.optim == "adamw_torch" for config in settings):
        step = max(step, 2 * trained)  # there its step takes as much again as gradients
    recomputes = experiment.training.gradient_checkpointing
    return Memory(
        weights=weights,
        whole_under_full=_whole_under_full(model),
        trained=trained,
        moments=int(max(STATE[config.optim] for config in settings) * trained),
        method_bytes=max(need.ram for need in needs),
        step=step,
        step_with_gradients=step_with_gradients,
        answers=peak_of_answers(backbone, largest.asked, largest.asked_positions),
        trains_all=trains_all,
        accumulates=micro_batches > 1,
        shards=shards if layers_of(model) else tuple(s for s in shards if s != "full"),
        recomputable=model.supports_gradient_checkpointing and not recomputes,
        lowers=method.lowers("ram"),
        largest=largest,
    )


def _largest(
    method: Method,
    experiment: ExperimentConfig,
    tasks: Sequence[Task],
    settings: Sequence[TrainingConfig],
) -> Largest:
    """Encodes all examples, for the lengths of the longest and the sizes of batches."""
    backbone, evaluation = method.backbone, experiment.evaluation
    encoded = [method.encoded(task) for task in tasks]
    examples = [len(rows) for rows in encoded]
    # No batch has more rows than there are.
    most = sum(examples) if method.traits.waits else max(examples)
    return Largest(
        rows=min(most, max(config.per_device_train_batch_size for config in settings)),
        positions=max(len(row["input_ids"]) for rows in encoded for row in rows),
        answer=1 + max(_answer(row["labels"]) for rows in encoded for row in rows),
        asked=min(max(len(task.test[: evaluation.limit]) for task in tasks), evaluation.batch_size),
        asked_positions=max(
            max(
                len(backbone.encode(example, with_answer=False)["input_ids"])
                for example in task.test[: evaluation.limit]
            )
            + evaluation.for_task(task).max_new_tokens
            for task in tasks
        ),
    )


def _answer(labels: Sequence[int]) -> int:
    return sum(label >= 0 for label in labels)


def _make_trainable(method: Method, trains_all: bool) -> None:
    """Makes the parameters trainable that a task trains, or others whose inputs are as large."""
    model = method.backbone.model
    if trains_all:
        model.requires_grad_(True)
    elif isinstance(pool := method.exported_pool, LoraPool):
        pool.grow("task", seed=0)
        pool.use(torch.ones(1, 1, device="meta"))
    embedding, count = method.backbone.embedding, method.backbone.virtual_tokens
    if isinstance(embedding, PromptedEmbedding):
        shape = (1, max(1, count), method.backbone.width)
        embedding.rows = torch.zeros(shape, device="meta", requires_grad=True)


def _bytes_of(backbone: Backbone, experiment: ExperimentConfig) -> int:
    """Counts the bytes of the weights as they will be loaded: some of them in 4 or 8 bits."""
    kind, head = experiment.backbone.quantization, backbone.model.get_output_embeddings()
    packed = {
        part.weight
        for part in backbone.model.modules()
        if isinstance(part, nn.Linear | Conv1D) and part is not head
    }
    return int(
        sum(
            tensor.numel()
            * (bytes_per_weight(kind) if kind and tensor in packed else tensor.itemsize)
            for tensor in (*backbone.model.parameters(), *backbone.model.buffers())
        )
    )


def _whole_under_full(model: nn.Module) -> int:
    """Counts what `shard: full` has whole at once: a layer, the one after it, and the rest."""
    sizes = [_size_of(layer) for layer in layers_of(model)]
    return _size_of(model) - sum(sizes) + 2 * max(sizes, default=0)


def _size_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


def memory_table(experiment: ExperimentConfig) -> list[str]:
    """Returns lines on the memory that an experiment takes, or the one reason why that is open.

    Raises:
        RetainError: for settings that a run with as many processes refuses before it loads, and
            for files of the backbone that it refuses.
    """
    experiment = resolved(experiment)
    kind, options = _method_of(experiment)
    refuse_damaged(experiment.backbone, needs_weights=False)
    try:
        if not experiment.tasks:
            raise RetainError("there are no tasks")
        tasks = load_stream(experiment.tasks)
        return [*_foretold(experiment, tasks, kind, options).lines()]
    except RetainError as error:
        return [f"memory: cannot be estimated: {error}"]
