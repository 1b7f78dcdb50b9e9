"""How much memory a run takes at its peak, told before anything of the model is loaded.

A second model without weights, on torch's meta device, has the method's layers and goes through one
step: see `retain.backbone.activations`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import psutil
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from retain.backbone import Backbone
from retain.backbone.activations import peak_of_answers, peak_of_step, without_values
from retain.backbone.loading import load_skeleton
from retain.backbone.precision import SMALLER, device_of, refuse_full_fine_tuning
from retain.backbone.quantization import bytes_per_weight
from retain.errors import RetainError, first_line
from retain.experiment.config import ExperimentConfig, check_method, resolved, training_of
from retain.experiment.read_tasks import load_stream
from retain.layers.lora_pool import LoraPool
from retain.layers.soft_prompt import PromptedEmbedding
from retain.learner.check_resources import size
from retain.learner.check_shard import check_shard
from retain.methods import Method
from retain.system import processes
from retain.tasks import Task
from retain.training.config import Shard, TrainingConfig
from retain.training.optimizer import STATE
from retain.training.sharded_trainer import layers_of

PROCESSES = (1, 2, 4, 8)
"""Numbers of processes in the table."""
SHARDS: tuple[Shard, ...] = get_args(Shard)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds, where it is alone.

    Attributes:
        weights: of the backbone.
        gathered: of what `shard: full` has whole at once: two layers, and what is in none.
        trained: of the trained parameters, in float32; gradients are as large.
        moments: of the optimizer.
        own: what else the method keeps while a task is learned.
        step: activations and gradients at the peak of a step.
        beside: the same where gradients are there from the beginning, as between processes.
        answers: the peak of answering test examples.
        trains_all: whether the backbone's own weights are trained.
        accumulates: whether a step has several micro-batches.
        shards: the kinds of `training.shard` that go with the other settings.
        batch: the step's and the answers' batches in words.
    """

    weights: int
    gathered: int
    trained: int
    moments: int
    own: int
    step: int
    beside: int
    answers: int
    trains_all: bool
    accumulates: bool
    shards: tuple[Shard, ...]
    batch: str

    def per_process(self, count: int, shard: str) -> int:
        """Returns the peak of each of several processes, in bytes; see `training.shard`."""
        whole = self.weights + self.own
        if count == 1:
            return whole + max(self.moments + self.step, self.answers)
        if shard == "none":
            return whole + max(self.moments + self.beside, self.answers)
        if shard == "optimizer":
            return whole + max(self.moments // count + self.beside, self.answers)
        # The backbone's weights are shared out while a task is trained; before and after they are
        # whole, and so is always what a method adds.
        training = self.weights // count + self.gathered
        if self.trains_all:
            activations, gradients = (
                self.beside - self.trained,
                self.trained // count + self.gathered,
            )
            # Without micro-batches gradients come as activations go.
            both = sum if self.accumulates else max
            training += self.moments // count + both((activations, gradients))
        else:
            training += self.moments + self.beside
        return self.own + max(training, self.weights + self.answers)

    def lines(self) -> Iterator[str]:
        """Yields the parts, and a table by number of processes and what they share out."""
        yield f"memory of one process: {size(self.per_process(1, 'none'))} at its peak"
        yield (
            f"weights {size(self.weights)}, moments {size(self.moments)}, the method's own "
            f"{size(self.own)}, activations and gradients {size(self.step)}, or answering "
            f"{size(self.answers)}"
        )
        yield self.batch
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
        RetainError: if there is no such backbone, or its class does not go through a step without
            its weights.
    """
    experiment = resolved(experiment)
    _refuse_settings(experiment)
    kind, options = check_method(experiment.method, "method")
    trains_all = kind.trains_backbone(options)
    backbone = load_skeleton(experiment.backbone, experiment.prompt)
    weights = _bytes_of(backbone, experiment)
    try:
        with without_values():
            return _counted(kind(backbone, options), trains_all, experiment, tasks, weights)
    except RetainError:
        raise
    except Exception as error:  # classes need values in many places
        raise RetainError(
            f"backbone '{backbone.name}': what it needs cannot be counted without its weights "
            f"({first_line(error)})"
        ) from error


def _refuse_settings(experiment: ExperimentConfig) -> None:
    """Raises RetainError for what a run refuses before it loads a backbone."""
    method, options = check_method(experiment.method, "method")
    source, training = experiment.backbone, experiment.training
    if method.trains_backbone(options):
        refuse_full_fine_tuning(source.dtype, source.quantization is not None)
    check_shard(method, options, source, training, training.shard)


def _counted(
    method: Method,
    trains_all: bool,
    experiment: ExperimentConfig,
    tasks: Sequence[Task],
    weights: int,
) -> Memory:
    backbone, model = method.backbone, method.backbone.model
    settings = [training_of(experiment, task) for task in tasks]
    needs = [
        method.footprint(task, config.per_device_train_batch_size)
        for task, config in zip(tasks, settings, strict=True)
    ]
    encoded = [method.encoded(task) for task in tasks]
    read = [max(len(row["input_ids"]) for row in rows) for rows in encoded]
    written = [1 + max(_answer(row["labels"]) for row in rows) for rows in encoded]
    asked = [
        max(len(backbone.encode(example, with_answer=False)["input_ids"]) for example in task.test)
        + experiment.evaluation.for_task(task).max_new_tokens
        for task in tasks
    ]
    _learn(method, trains_all)
    trained = max(need.trainable for need in needs)
    # One step of the longest rows stands for all tasks; it takes a second or so.
    counts = [len(examples) for examples in encoded]
    there = sum(counts) if method.traits.waits else max(counts)  # no batch has more
    rows = min(there, max(config.per_device_train_batch_size for config in settings))
    count = partial(
        peak_of_step,
        backbone,
        rows,
        max(read),
        max(written),
        any(config.autocasts for config in settings),
        all(config.gradient_checkpointing for config in settings),
    )
    micro_batches = max(config.gradient_accumulation_steps for config in settings)
    step = count(micro_batches)
    beside = count(2) if trains_all else step + trained
    model.requires_grad_(False)
    on_gpu = device_of(experiment.backbone.device).startswith("cuda")
    if on_gpu and any(config.optim == "adamw_torch" for config in settings):
        step = max(step, 2 * trained)  # there its step takes as much again as gradients
    tests = max(len(task.test[: experiment.evaluation.limit]) for task in tasks)
    answered = min(tests, experiment.evaluation.batch_size)
    answers = peak_of_answers(backbone, answered, max(asked))
    per_parameter = max(STATE[config.optim] for config in settings)
    return Memory(
        weights=weights,
        gathered=_gathered(model),
        trained=trained,
        moments=int(per_parameter * trained),
        own=max(need.ram for need in needs),
        step=step,
        beside=beside,
        answers=answers,
        trains_all=trains_all,
        accumulates=micro_batches > 1,
        shards=tuple(shard for shard in SHARDS if _goes(shard, experiment, settings)),
        batch=f"in steps of {rows} rows of {max(read)} positions, {max(written)} of them answers; "
        f"in evaluation of {answered} rows of {max(asked)}",
    )


def _goes(shard: Shard, experiment: ExperimentConfig, settings: Sequence[TrainingConfig]) -> bool:
    kind, options = check_method(experiment.method, "method")
    try:
        for config in settings:
            check_shard(kind, options, experiment.backbone, config, shard)
    except RetainError:
        return False
    return True


def _answer(labels: Sequence[int]) -> int:
    return sum(label >= 0 for label in labels)


def _learn(method: Method, trains_all: bool) -> None:
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


def _gathered(model: nn.Module) -> int:
    """Counts what `shard: full` has whole at once: a layer, the one after it, and the rest."""
    sizes = [_size_of(layer) for layer in layers_of(model)]
    return _size_of(model) - sum(sizes) + 2 * max(sizes, default=0)


def _size_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.parameters())


def memory_table(experiment: ExperimentConfig) -> list[str]:
    """Returns lines on the memory that an experiment takes, or the one reason why that is open.

    Raises:
        RetainError: for settings that a run would refuse whatever its machine.
    """
    _refuse_settings(resolved(experiment))
    try:
        if not experiment.tasks:
            raise RetainError("there are no tasks")
        return [*foretell(experiment, load_stream(experiment.tasks)).lines()]
    except RetainError as error:
        return [f"memory: not told, since {error}"]


def refuse_what_cannot_fit(experiment: ExperimentConfig, tasks: Sequence[Task]) -> None:
    """Compares the memory that an experiment takes with what is free, before its model is loaded.

    Raises:
        RetainError: when less is free.
    """
    try:
        memory = foretell(experiment, [task for task in tasks if task.train and task.test])
    except (RetainError, ValueError):
        return  # whoever loads the model tells what is wrong with it; some classes cannot be told
    device = device_of(experiment.backbone.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        return
    count, shard = processes.count(), experiment.training.shard
    need, on_gpu = memory.per_process(count, shard), device.startswith("cuda")
    own = processes.connect(not on_gpu) or device  # of several GPUs this process's
    if on_gpu:
        free, where = torch.cuda.mem_get_info(own)[0], f"memory of {own}"
    else:
        free, where = psutil.virtual_memory().available, "RAM"
        need *= count  # all on one machine, as far as can be told
    there = min(processes.gather([free]))  # all begin to load after this, or none
    if need > there:
        lower = _remedies(experiment.training, memory, count)
        raise RetainError(
            f"this run needs about {size(need)} of {where}, but {size(there)} are free ("
            f"weights {size(memory.weights)}, {memory.batch}); {lower}, or take {SMALLER}; "
            "--dry-run prints the table"
        )


def _remedies(training: TrainingConfig, memory: Memory, count: int) -> str:
    if memory.answers > memory.moments + memory.step:
        return "lower evaluation.batch_size"
    if not training.gradient_checkpointing and memory.step > memory.trained + memory.moments:
        return (
            "set training.gradient_checkpointing=true, or lower "
            "training.per_device_train_batch_size"
        )
    if memory.trains_all:
        return "take method.tune=lora" + ("" if count == 1 else " or training.shard=full")
    return "lower training.per_device_train_batch_size"
