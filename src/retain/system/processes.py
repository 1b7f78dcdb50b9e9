"""Several processes that train one run together: which one writes, and what they exchange.

`accelerate launch` or torchrun starts them. All run the same code with the same seeds. They differ
in the micro-batches that they train on and in the examples that they answer. Rank 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from retain.errors import RetainError

if TYPE_CHECKING:  # an import of torch takes seconds
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long processes wait for each other. The first writes and checks files of 100 GB meanwhile."""
ENGINES = {
    "ACCELERATE_USE_FSDP": ("FSDP", "set training.shard: full instead"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "set training.shard: optimizer or full instead"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", "set training.shard: full instead"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "tensor or context parallelism",
        "set training.shard: full to share the weights out (retain has no such parallelism)",
    ),
}
"""What `accelerate launch` can ask for and retain does not run: its variable, name, and advice."""


def count() -> int:
    """Returns the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Returns this process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Whether this process is rank 0, the one that writes files and prints."""
    return rank() == 0


def refuse_other_engines() -> None:
    """Raises a RetainError where `accelerate launch` asks for what would not be done.

    On a CPU accelerate itself would train with whole copies, without a word.
    """
    for variable, (name, advice) in ENGINES.items():
        if os.environ.get(variable, "").lower() in ("1", "true", "yes", "on"):
            raise RetainError(
                f"accelerate launch: asks for {name}, which retain does not use; launch without it "
                f"(accelerate launch --multi_gpu, or torchrun), {advice}"
            )


def refuse_several(command: str) -> None:
    """Raises a RetainError for a command that several processes would do several times over."""
    if count() > 1:
        raise RetainError(
            f"{command}: is the work of one process; give it without accelerate launch or torchrun"
        )


def connect(on_cpu: bool) -> str | None:
    """Connects to the other processes and returns this one's device; None for a single process."""
    if count() == 1:
        return None
    from accelerate import PartialState

    device = PartialState(cpu=on_cpu, backend=backend(on_cpu), timeout=PATIENCE).device
    # To "cpu:0" transformers would copy weights that "cpu" leaves in the file's mapped pages.
    return device.type if on_cpu else str(device)


def backend(on_cpu: bool) -> str | None:
    """Returns the name of torch.distributed's backend; None leaves the choice to accelerate."""
    return "gloo" if on_cpu and count() > 1 else None


@contextmanager
def first_alone() -> Iterator[bool]:
    """Yields True on rank 0, False elsewhere; all processes wait at the start and at the end.

    So no process sees a change to the disk too early, and all see it afterwards.
    """
    _wait()
    yield is_first()
    _wait()


def _wait() -> None:
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def broadcast(value: T) -> T:
    """Returns rank 0's value on every rank; other ranks may not see the same files yet."""
    return gather([value])[0]


def from_first(compute: Callable[[], T]) -> T:
    """Returns on every rank what rank 0 computes; the others wait.

    For what takes long to read, and for files that other ranks may not see yet. A RetainError
    there is raised on every rank.
    """
    if count() == 1:
        return compute()
    found: list[T] = []
    errors: list[str] = []
    if is_first():
        try:
            found.append(compute())
        except RetainError as error:
            errors.append(str(error))
    for message in gather(errors):
        raise RetainError(message)
    return gather(found)[0]


def add_up(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor, in place, by its sum over all ranks, on every rank."""
    if count() > 1:
        from torch.distributed import all_reduce

        for tensor in tensors:
            all_reduce(tensor)


def gather(values: Sequence[T]) -> list[T]:
    """Returns the values of all ranks, in the order of ranks, on every rank."""
    if count() == 1:
        return list(values)
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object(list(values))
    return gathered
