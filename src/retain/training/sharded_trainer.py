"""The Trainer of several processes that share out the optimizer's state or the parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from torch import Tensor, nn

from retain.errors import RetainError
from retain.system import processes
from retain.training.config import Shard
from retain.training.shard import (
    average,
    fully_sharded,
    gathered,
    is_share,
    load_own_state,
    own_state,
    share_of,
    shared_out,
)
from retain.training.trainer import PhaseTrainer

PRIVATE = ("_save", "_save_optimizer_and_scheduler", "_load_optimizer_and_scheduler")
"""The names with an underscore that this module overrides in Trainer, as in `trainer.PRIVATE`."""
SCHEDULE = "scheduler.pt"
"""Trainer's file of the learning rate's schedule, in a checkpoint."""


class ShardedTrainer(PhaseTrainer):
    """PhaseTrainer, of whose work each process keeps a share.

    Args:
        shard: what is shared out, `optimizer` or `full`.
        arguments: those of PhaseTrainer.
    """

    def __init__(self, shard: Shard, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._shard = shard
        self._shares: dict[int, nn.Parameter] = {}  # by the id of the parameter they are of

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as Trainer does, with the parameters shared out if wanted."""
        if self._shard != "full":
            return super().train(*args, **kwargs)
        self._refuse_hooks()
        # Else a bfloat16 copy of every layer would be kept until the forward pass ends.
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
        # Prepared for autocast only, and so not for DistributedDataParallel afterwards.
        self.accelerator.prepare_model(self.model, device_placement=False, evaluation_mode=True)
        layers, loaded = layers_of(self._backbone.model), self._backbone.loaded
        with fully_sharded(self.model, layers, loaded) as self._shares:
            result = super().train(*args, **kwargs)
            self.optimizer.state.clear()  # the moments go before the weights are whole again
        return result

    def _refuse_hooks(self) -> None:
        """Raises a RetainError where a phase's hooks would meet shares instead of weights."""
        loaded = {id(parameter) for parameter in self._backbone.loaded}
        trained = (p for group in self.phase.groups for p in group.parameters)
        hooked = self.phase.before_step is not None or self.phase.after_step is not None
        if hooked and any(id(parameter) in loaded for parameter in trained):
            raise RetainError(
                f"training.shard: full: the method acts around each step of phase "
                f"'{self.phase.name}' on weights that would be shared out; set it to optimizer"
            )

    def make_optimizer(
        self,
        kind: type[torch.optim.Optimizer],
        groups: list[dict[str, Any]],
        options: dict[str, Any],
    ) -> torch.optim.Optimizer:
        """Builds the optimizer over this process's shares."""
        if self._shard == "optimizer":
            return shared_out(kind, groups, options)
        for group in groups:
            group["params"] = [self._shares.get(id(p), p) for p in group["params"]]
        return kind(groups, **options)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Also averages the gradients of parameters that are whole in every process."""
        loss = super().training_step(*args, **kwargs)
        if self._shard == "full" and self.accelerator.sync_gradients:
            trained = (p for p in self.model.parameters() if p.requires_grad)
            average([p for p in trained if not is_share(p)])
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, gathered(self.model.state_dict()))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        torch.save(own_state(self.optimizer), share_of(output_dir))
        if processes.is_first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        share = torch.load(share_of(checkpoint), map_location="cpu", weights_only=True)
        load_own_state(self.optimizer, share)
        schedule = torch.load(Path(checkpoint) / SCHEDULE, weights_only=True)
        self.lr_scheduler.load_state_dict(schedule)


def layers_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """Returns the layers of a transformers model, which are gathered one at a time.

    These are the modules that transformers never splits between devices; none for a few classes.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    return tuple(module for module in model.modules() if type(module).__name__ in names)
