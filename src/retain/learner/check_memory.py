"""Check that a run fits in memory, before its model is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from retain.backbone.precision import SMALLER, device_of
from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig
from retain.learner.check_resources import size
from retain.learner.memory import Memory, foretell
from retain.system import processes
from retain.tasks import Task
from retain.training.config import Shard


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
    on_gpu = device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        return
    count, shard = processes.count(), experiment.training.shard
    need = memory.per_process(count, shard)
    own = processes.connect(not on_gpu) or device  # of several GPUs this process's
    if on_gpu:
        free, where = torch.cuda.mem_get_info(own)[0], f"memory of {own}"
    else:
        free, where = psutil.virtual_memory().available, "RAM"
        need *= count  # all on one machine, as far as can be told
    least = min(processes.gather([free]))  # all begin to load after this, or none
    if need > least:
        remedies = _remedies(memory, count, shard, least if on_gpu else least // count)
        raise RetainError(
            f"this run needs about {size(need)} of {where}, but {size(least)} are free ("
            f"weights {size(memory.weights)}, {memory.largest}); "
            f"{remedies}; --dry-run prints the table"
        )


def _remedies(memory: Memory, count: int, shard: Shard, free: int) -> str:
    """Names what takes less memory, of what the other settings allow; `free` is for one process."""
    peak = memory.per_process(count, shard)
    shared_out = shard == "full" and count > 1
    held = memory.weights // count + memory.whole_under_full if shared_out else memory.weights
    remedies = []
    if held < free:  # else no smaller batch would help
        remedies += _smaller_peak(memory, peak)
    if peak != memory.answering and shard != "full" and "full" in memory.shards:
        sharded = memory.per_process(count, "full")
        remedies += ["set training.shard=full"] if sharded < peak else []
    return ", ".join([*remedies, f"{'or ' if remedies else ''}take {SMALLER}"])


def _smaller_peak(memory: Memory, peak: int) -> list[str]:
    """Names settings of what is at its peak: answers, activations, or what the method keeps."""
    shorter = "lower prompt.max_prompt_tokens"
    if peak == memory.answering:
        return ["lower evaluation.batch_size" if memory.largest.asked > 1 else shorter]
    if memory.step <= memory.trained + memory.moments:
        return [memory.lowers]
    fewer = "lower training.per_device_train_batch_size" if memory.largest.rows > 1 else shorter
    return ["set training.gradient_checkpointing=true", fewer] if memory.recomputable else [fewer]
