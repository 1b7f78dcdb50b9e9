"""What several processes share out among them, instead of each having all of it.

`optimizer`: each process keeps the optimizer's state of its share of the trained parameters,
updates these, and sends them to the others. Parameters and gradients are whole everywhere, so the
weights are bitwise those that processes without shares compute.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from retain.system import processes

Shard = Literal["none", "optimizer"]


def effective(shard: Shard) -> Shard:
    """Returns what is shared out here: nothing by a single process."""
    return shard if processes.count() > 1 else "none"


def shared_out(
    kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]], options: dict[str, Any]
) -> torch.optim.Optimizer:
    """Returns an optimizer of a class that keeps this process's share of the state.

    Its `state_dict` is that share, in the numbering of its own parameters.
    """
    with warnings.catch_warnings():
        # The package also holds optimizers in TorchScript, which nobody uses here.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        from torch.distributed.optim import ZeroRedundancyOptimizer

    class Share(ZeroRedundancyOptimizer):
        """Gives and takes its own share only, where the base class gathers all on one process."""

        def state_dict(self) -> dict[str, Any]:
            # The schedule sets the rates of the whole, which the share takes over in a step only.
            _copy_settings(self.param_groups, self.optim.param_groups)
            share: dict[str, Any] = self.optim.state_dict()
            return share

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.optim.load_state_dict(state_dict)
            _copy_settings(self.optim.param_groups, self.param_groups)

    return Share(groups, optimizer_class=kind, **options)


def _copy_settings(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
    for given, taken in zip(source, target, strict=True):
        taken.update({name: value for name, value in given.items() if name != "params"})


def share_of(checkpoint: str | Path) -> Path:
    """Returns the file of this process's share of the optimizer's state in a checkpoint.

    The first process's is what Trainer itself writes; the others' are named as its random states.
    """
    number = f"_{processes.rank()}" if processes.rank() else ""
    return Path(checkpoint) / f"optimizer{number}.pt"
