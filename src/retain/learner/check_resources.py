"""Check of disk space and memory before training, in addition to what the model needs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import psutil
import torch

from retain.backbone.precision import SMALLER
from retain.errors import RetainError
from retain.methods import Method
from retain.methods.base import Footprint
from retain.runs.directory import RunDirectory
from retain.system import processes
from retain.tasks import Task
from retain.training.config import TrainingConfig, effective
from retain.training.optimizer import STATE


def check_resources(
    method: Method,
    tasks: Sequence[tuple[Task, TrainingConfig]],
    run: RunDirectory,
) -> str:
    """Estimates the disk space and memory for these tasks and compares them with what is free.

    Args:
        method: provides the estimate for each task.
        tasks: the tasks to learn, each with its training settings.
        run: the run's folder. Unfinished work in it counts as free, since it will be replaced.

    Returns:
        A sentence with the estimate; empty without tasks.

    Raises:
        RetainError: when disk space or memory does not suffice.
    """
    needs = [_need(method, task, training) for task, training in tasks if task.train]
    disk = sum(need.kept for need in needs) + max((need.passing for need in needs), default=0)
    ram = max((need.ram for need in needs), default=0)
    if not needs:
        return ""
    folder = run.path.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    usage = shutil.disk_usage(existing)
    # A total of 0 means no real disk (such as /proc); then the first write reports the error.
    free = usage.free + run.unfinished() if usage.total else disk
    memory, memory_of = psutil.virtual_memory().available, "in RAM"
    if (device := method.backbone.device).type == "cuda":
        memory, memory_of = torch.cuda.mem_get_info(device)[0], f"on {device}"
    for need, available, where, advice in (
        (disk, free, f"on the disk of {run.path}", method.lowers("disk")),
        (ram, memory, memory_of, f"{method.lowers('ram')}, or take {SMALLER}"),
    ):
        if need > available:
            raise RetainError(
                f"method: needs about {size(need)} {where}, but {size(available)} are free; "
                + advice
            )
    return f"needs about {size(disk)} on disk, {size(ram)} {memory_of}, in addition to the model"


def _need(method: Method, task: Task, training: TrainingConfig) -> Footprint:
    """Returns a task's footprint, with gradients and optimizer state added."""
    need = method.footprint(task, training.per_device_train_batch_size)
    gradients = need.trainable
    state = int(STATE[training.optim] * need.trainable)
    # A checkpoint has parameters instead of gradients; the previous one exists until it is sealed.
    checkpoints = 2 * (need.trainable + state)
    shard, count = effective(training.shard), processes.count()
    if shard == "full":
        loaded = sum(p.numel() * p.element_size() for p in method.backbone.loaded)
        # What methods add is whole in every process, with its gradients and state.
        parts = count if need.trainable == loaded else 1
        gradients, state = gradients // parts, state // parts
    elif shard == "optimizer":
        state //= count
    return need + Footprint(passing=checkpoints, ram=gradients + state)


def size(count: float) -> str:
    """Formats bytes in the largest unit that gives at least 1."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
