"""A pool with one block per task and a router that weighs the blocks for each prompt.

A method that changes only the routing passes another `Router` to `RoutedPool`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.layers.lora_pool import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.methods.base import Footprint, Method, ParamGroup, Phase, TaskContext, trainable
from retain.methods.shared.routing_diagnostics import WEIGHTS, routing_diagnostics
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task
from retain.training.phase import Unit

ROUTER = "router.safetensors"
"""File of the router's tensors in a task's folder."""


class Router(Protocol):
    """Interface of a router, which weighs the blocks for each prompt.

    A trainable router is an `nn.Module` that its method adds to the model, so that checkpoints and
    data parallelism see its parameters. The blocks are off in `weights` and `add_task`, so that a
    router may read the backbone.
    """

    def weights(self, batch: Batch) -> Tensor:
        """Returns the weights of the T blocks (B, T) for a batch of prompts, newest block last."""

    def add_task(self, task: Task, context: TaskContext) -> None:
        """Adds a task. Called right before its block is trained."""

    def trainable(self) -> list[nn.Parameter]:
        """Returns the parameters trained with the newest block; none for a closed-form router."""

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors to store in the newest task's folder."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the `state` of one more task, to check its file."""

    def load_task(self, state: Mapping[str, Tensor]) -> None:
        """Restores one saved task. Called for every task, oldest first."""


class RoutedPool(Method):
    """Base class of methods with one block per task and a router over the blocks.

    Attributes:
        pool: the blocks.
        router: computes their weights.
        block_rate: learning rate of the new block, as a multiple of training.learning_rate.
        router_rate: learning rate of the router, likewise.
    """

    pool: LoraPool | PromptPool
    router: Router
    block_rate: float = 1.0
    router_rate: float = 1.0
    units: ClassVar[Mapping[str, Unit]] = {}
    """The `Phase.units` of the method's loss."""

    def __init__(
        self, backbone: Backbone, config: Any, pool: LoraPool | PromptPool, router: Router
    ) -> None:
        self.backbone = backbone
        self.options = config
        self.pool = pool
        self.router = router
        if isinstance(router, nn.Module):
            backbone.model.add_module("retain_router", router)

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase that trains a new block and the router."""
        self.pool.grow(task.name, context.seed)
        yield self.learning_phase(task, context)

    def learning_phase(self, task: Task, context: TaskContext) -> Phase:
        """Adds the task to the router and returns the phase that trains block and router."""
        self.pool.use(None)
        self.router.add_task(task, context)
        groups = [ParamGroup("block", self.pool.parameters(), self.block_rate)]
        if parameters := self.router.trainable():
            groups.append(ParamGroup("router", parameters, self.router_rate))
        return Phase("learn", self.encoded(task), groups, self.loss, units=self.units)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy on the routed batch."""
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the task's block and router state to the estimate."""
        block = self.pool.block_size()
        state = sum(math.prod(shape) for shape in self.router.shapes().values())
        trained = block + (state if self.router.trainable() else 0)
        return super().footprint(task, batch_size) + trainable(trained, block + state)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Sets the router's weights for each prompt; the task's name is not used."""
        self.pool.use(None)
        if self.pool.blocks:
            self.pool.use(self.router.weights(batch))

    def routing(self) -> Tensor | None:
        """Returns the weights (B, T) of the routed batch."""
        return self.pool.weights

    @property
    def exported_pool(self) -> LoraPool | PromptPool:
        """The pool of all blocks."""
        return self.pool

    def save(self, context: TaskContext) -> None:
        """Writes the newest block and the router's state."""
        self.pool.save_block(context.folder, self.backbone.name)
        write_tensors(context.folder / ROUTER, self.state())

    def load(self, context: TaskContext) -> None:
        """Restores the task's block and its part of the router."""
        state = read_weights(context.folder / ROUTER, self.shapes())
        self.pool.load_block(context.folder, context.name)
        self.restore(state, context)

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns the section on the weights over the blocks."""
        return routing_diagnostics(run, WEIGHTS)

    def state(self) -> dict[str, Tensor]:
        """Returns the tensors that `router.safetensors` of the newest task holds."""
        return self.router.state()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the `state` of one more task, to check its file."""
        return self.router.shapes()

    def restore(self, state: Mapping[str, Tensor], context: TaskContext) -> None:
        """Restores the router of a task whose block is loaded."""
        self.router.load_task(state)
