"""What a method needs in addition to the model, reported and checked before training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import psutil
import torch

from retain.errors import RetainError
from retain.methods import Method
from retain.methods.base import Footprint
from retain.runs.directory import RunDirectory
from retain.tasks import Task
from retain.training.config import TrainingConfig

KEPT_BY = {"adamw_torch": 2, "adafactor": 0, "sgd": 0}
"""Numbers that an optimizer keeps of a parameter; Adafactor has some of each row and column."""


def check_room(
    method: Method,
    tasks: Sequence[tuple[Task, TrainingConfig]],
    run: RunDirectory,
) -> str:
    """What learning these tasks needs in addition to the model, in a sentence; empty without any.

    Args:
        method: estimates it, task by task.
        tasks: what is to be learned, each under its settings.
        run: where it is kept; unfinished work there makes room for what follows.

    Raises:
        RetainError: when it does not fit on the disk of the run, or in memory.
    """
    needs = [_need(method, *each) for each in tasks if each[0].train]
    disk = sum(need.kept for need in needs) + max((need.passing for need in needs), default=0)
    ram = max((need.ram for need in needs), default=0)
    if not needs:
        return ""
    place = run.path.absolute()
    place = next(path for path in (place, *place.parents) if path.is_dir())
    usage = shutil.disk_usage(place)
    # Where there is no disk (/proc), the first write says so.
    free = usage.free + run.unfinished() if usage.total else disk
    memory, memory_of = psutil.virtual_memory().available, "in RAM"
    if (device := method.backbone.device).type == "cuda":
        memory, memory_of = torch.cuda.mem_get_info(device)[0], f"on {device}"
    for need, there, where, advice in (
        (disk, free, f"on the disk of {run.path}", method.traits.lowers_disk),
        (ram, memory, memory_of, method.traits.lowers_ram),
    ):
        if need > there:
            raise RetainError(
                f"method: it needs about {size(need)} {where}, but {size(there)} are free; "
                f"lower {advice}"
            )
    return f"needs about {size(disk)} on disk, {size(ram)} {memory_of}, in addition to the model"


def _need(method: Method, task: Task, training: TrainingConfig) -> Footprint:
    """A method's need for a task with what the optimizer adds: a gradient and its own numbers."""
    need = method.footprint(task, training.per_device_train_batch_size)
    state = (1 + KEPT_BY[training.optim]) * need.trainable
    # A checkpoint has parameters in the place of gradients; the one before it is there, too.
    return need + Footprint(passing=2 * state, ram=state)


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
