"""A pool of blocks and a router: what methods share that weigh one block per task for each prompt.

A method that changes only the routing gives `RoutedPool` another `Router`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.layers.pooled_linear import LoraPool
from retain.layers.soft_prompt import PromptPool
from retain.methods.base import Footprint, Method, ParamGroup, Phase, TaskContext, trainable
from retain.methods.shared.routing_diagnostics import WEIGHTS, routing_diagnostics
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task
from retain.training.phase import Unit

ROUTER = "router.safetensors"


class Router(Protocol):
    """Weighs the blocks for each prompt.

    A trainable router is an `nn.Module` that its method adds to the model, so that checkpoints and
    data parallelism see its parameters.
    """

    def weights(self, batch: Batch) -> Tensor:
        """The blocks' weights (B, T) for a batch of prompts, the newest block last."""

    def add_task(self, task: Task, context: TaskContext) -> None:
        """Adds a task, right before its block is trained."""

    def trainable(self) -> list[nn.Parameter]:
        """What is trained with the newest block; empty for a router in closed form."""

    def state(self) -> dict[str, Tensor]:
        """What the newest task's folder keeps of the router."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the `state` that one more task would have."""

    def load_task(self, state: Mapping[str, Tensor]) -> None:
        """Adds a task that was saved; called for each, oldest first."""


class RoutedPool(Method):
    """One block per task; a router weighs all of them for each prompt.

    Attributes:
        pool: the blocks.
        router: sets their weights.
        block_rate: of the trainable block, times training.learning_rate.
        router_rate: of what is trainable in the router, likewise.
    """

    pool: LoraPool | PromptPool
    router: Router
    block_rate: float = 1.0
    router_rate: float = 1.0
    units: ClassVar[Mapping[str, Unit]] = {}
    """As `Phase.units`."""

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
        """One phase: the new block, and what is trainable in the router."""
        self.pool.grow(task.name, context.seed)
        yield self.learning_phase(task, context)

    def learning_phase(self, task: Task, context: TaskContext) -> Phase:
        """Adds the task to the router, and describes the phase that learns it."""
        self.router.add_task(task, context)
        groups = [ParamGroup("block", self.pool.parameters(), self.block_rate)]
        if parameters := self.router.trainable():
            groups.append(ParamGroup("router", parameters, self.router_rate))
        return Phase("learn", self.encoded(task), groups, self.loss, units=self.units)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, routed."""
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The task's block and what the router keeps of it."""
        size = self.pool.block_size()
        size += sum(math.prod(shape) for shape in self.router.shapes().values())
        return super().footprint(task, batch_size) + trainable(size, size)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Weighs the blocks for each prompt; no task id is needed."""
        self.pool.use(self.router.weights(batch) if self.pool.blocks else None)

    def routing(self) -> Tensor | None:
        """The weights (B, T)."""
        return self.pool.weights

    @property
    def exported_pool(self) -> LoraPool | PromptPool:
        """The blocks."""
        return self.pool

    def save(self, context: TaskContext) -> None:
        """Writes the block, and what the router keeps of the task."""
        self.pool.save_block(context.folder, self.backbone.name)
        write_tensors(context.folder / ROUTER, self.state())

    def load(self, context: TaskContext) -> None:
        """Adds the task's block, and the task to the router."""
        state = read_weights(context.folder / ROUTER, self.shapes())
        self.pool.load_block(context.folder, context.name)
        self.restore(state, context)

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """The weights over the blocks."""
        return routing_diagnostics(run, WEIGHTS)

    def state(self) -> dict[str, Tensor]:
        """What `router.safetensors` of the newest task holds."""
        return self.router.state()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the `state` that one more task would have."""
        return self.router.shapes()

    def restore(self, state: Mapping[str, Tensor], context: TaskContext) -> None:
        """Adds a task whose block is loaded, from its `state`."""
        self.router.load_task(state)
