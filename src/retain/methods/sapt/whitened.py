"""A router in closed form: whitened cosine of a prompt with each task's mean prompt.

    ē = mean of the prompt's frozen token embeddings, or hidden states       (d,)
    z = (ē − c) / σ
    S = (ν Σ_generic + Σ_t scatter_t) / (ν + N − T)                          (d, d)
    m = Σ_t μ_t / (T + 1), B = (m mᵀ + Σ_t (μ_t − m)(μ_t − m)ᵀ) / (T + 1)    (d,), (d, d)
    a = softmax(s · cos(V (z − m), V (μ_t − m)) over tasks t)                (T,)

VᵀV is the inverse of S + β B, shrunk towards its mean diagonal. c, σ and Σ_generic are of the
packaged generic text, which counts as ν prompts, and in m and B as one task more, whose mean is 0;
N prompts of T tasks have means μ_t. m is what all tasks have in common, such as a language that is
not English: it would bring all cosines near 1. β B does the same for what some tasks have in common
and sets them apart from the others, such as one of several languages.

A prompt is like task t by its cosine divided by what that is for the task's own prompts,

    ρ_t = √(k / (k + tr(V Σ_t Vᵀ))),  k = ‖V (μ_t − m)‖²,

where Σ_t is the covariance of the task's prompts with one prompt of covariance S added.

It is SAPT's attention (arXiv 2401.08295, eq. 3-5) with linear discriminant analysis in place of the
trained query: the within-task covariance says which directions vary between prompts of one task,
and so say nothing about the task. Nothing is trained, and a task's part never changes, so old tasks
need neither pseudo-samples nor reflection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.backbone.hidden import HiddenStates
from retain.methods.base import Options, TaskContext
from retain.methods.sapt.softmax_router import SoftmaxRouter, embedded
from retain.methods.shared.pseudo_samples import BATCH
from retain.methods.shared.whitening import (
    GENERIC,
    TINY,
    Standard,
    generic_scatter,
    generic_windows,
    whitening,
)
from retain.tasks import Task

THRESHOLD = 0.4
"""Likeness below which a prompt counts as of no learned task: `threshold` that
benchmarks/routing.py prints of the first five tasks of its stream `whole`."""
BETWEEN = 0.1
"""β, the share of the covariance between the tasks' means."""
RANK = 8
"""Principal parts that are kept of a task's scatter."""
EXACT = 1024
"""Size of a scatter, or a Gram matrix, up to which its principal parts are computed exactly."""
SPARE, ROUNDS = 8, 12
"""Further directions, and rounds, of the subspace iteration that finds them for larger ones."""


class WhitenedOptions(Options):
    """Options of `router.kind: whitened`.

    `layer` 0 reads token embeddings; k reads hidden states after layer k of the backbone without
    blocks, which is better where prompts carry no instruction and costs these layers once more.
    `scale` is s, by which cosines are multiplied before the softmax. `unknown: base` leaves a
    prompt to the backbone alone if its likeness to every task is below `threshold`; `nearest` never
    does. A usual prompt of a task has likeness 1, one that has nothing to do with it 0.
    """

    layer: Annotated[int, Field(ge=0)] = 0
    scale: PositiveFloat = 64.0
    unknown: Literal["base", "nearest"] = "nearest"
    threshold: NonNegativeFloat = THRESHOLD


@dataclass(frozen=True)
class Moments:
    """Mean and scatter of one task's N standardised prompts z, in float32.

    The scatter Σ (z − μ)(z − μ)ᵀ is kept as FᵀF + diag(rest): its RANK largest principal parts, and
    what they leave of its diagonal. It is exact for up to RANK + 1 prompts.

    Attributes:
        mean: μ, (d,).
        count: N, (1,).
        factor: F, (RANK, d).
        rest: (d,), not negative.
    """

    mean: Tensor
    count: Tensor
    factor: Tensor
    rest: Tensor

    @classmethod
    def of(cls, z: Tensor) -> Moments:
        """Computes the moments of z (N, d).

        This takes about N d min(N, d) multiplications, and 400 N d if N and d are above EXACT.
        """
        z = z.double().cpu()
        mean = z.mean(0)
        x = z - mean  # (N, d)
        parts = _principal(x) if min(x.shape) <= EXACT else _nearly_principal(x)
        factor = F.pad(parts, (0, 0, 0, RANK - len(parts)))  # fewer prompts have fewer parts
        rest = (x.square().sum(0) - factor.square().sum(0)).clamp(min=0)
        return cls(mean.float(), torch.tensor([float(len(z))]), factor.float(), rest.float())

    def scatter(self) -> Tensor:
        """Returns FᵀF + diag(rest), (d, d), in float64."""
        factor = self.factor.double()
        return factor.T @ factor + self.rest.double().diag()

    @staticmethod
    def shapes(width: int) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the four tensors for a d."""
        return {"mean": (width,), "count": (1,), "factor": (RANK, width), "rest": (width,)}


def _principal(x: Tensor) -> Tensor:
    """Computes F (at most RANK, d), FᵀF being the largest principal parts of xᵀx, from x (N, d)."""
    is_wide = x.shape[0] <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if is_wide else x.T @ x)  # ascending
    vectors = vectors[:, -RANK:]
    return vectors.T @ x if is_wide else values[-RANK:, None].clamp(min=0).sqrt() * vectors.T


def _nearly_principal(x: Tensor) -> Tensor:
    """Computes F (RANK, d) as `_principal`, by subspace iteration from a fixed start.

    F = Uᵀx with orthonormal U, so FᵀF never exceeds xᵀx, and what it lacks goes to the diagonal.
    """
    draw = torch.Generator().manual_seed(0)
    basis = torch.randn(x.shape[1], RANK + SPARE, generator=draw, dtype=x.dtype)
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q  # (d, RANK + SPARE)
    left = torch.linalg.svd(x @ basis, full_matrices=False).U[:, :RANK]  # (N, RANK)
    return left.T @ x


class WhitenedRouter(SoftmaxRouter):
    """Weighs the blocks by the whitened cosine of a prompt with each task's mean.

    Args:
        backbone: provides embeddings or hidden states, frozen and without blocks.
        options: `layer`, `scale`, `unknown` and `threshold`.
        top_k: number of blocks with a weight other than 0; None stands for all.

    Attributes:
        centre, spread: c and σ, (d,).
        middle: m, (d,).
        contrast: Vᵀ, (d, d).
        keys: V (μ_t − m) of every task divided by its length, (T, d).
        usual: ρ_t of every task, (T,).
    """

    spread: Tensor
    middle: Tensor
    contrast: Tensor
    keys: Tensor
    usual: Tensor

    def __init__(self, backbone: Backbone, options: WhitenedOptions, top_k: int | None) -> None:
        super().__init__(top_k)
        self._backbone = backbone
        self._scale = options.scale
        self._threshold = options.threshold if options.unknown == "base" else None
        self._states = HiddenStates(backbone, options.layer) if options.layer else None
        windows = generic_windows(backbone)
        batches = [windows[i : i + BATCH] for i in range(0, len(windows), BATCH)]
        e = torch.cat([self.pooled(backbone.collate(batch)) for batch in batches])  # (windows, d)
        standard = Standard.of(e)
        self._keep("centre", standard.centre)
        self._keep("spread", standard.spread)
        width = e.shape[1]
        self._keep("middle", torch.zeros(width))
        self._keep("contrast", torch.eye(width))
        self._keep("keys", torch.zeros(0, width))
        self._keep("usual", torch.zeros(0))
        self._tasks: list[Moments] = []
        self._scatter = generic_scatter(standard(e))  # 60 Σ_generic + Σ_t scatter_t
        self._freedom = GENERIC
        self._derived = True
        self.eval()

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor.to(self._backbone.device), persistent=False)

    def pooled(self, batch: Batch) -> Tensor:
        """Computes ē (B, d), the mean over the user's words, in float32."""
        mask = batch["route_mask"]
        with torch.no_grad(), torch.autocast(mask.device.type, enabled=False):
            if self._states is None:
                states = F.embedding(batch["route_ids"], self._backbone.embedding.weight)
            else:
                states = self._states(batch)  # (B, S, d)
            words = states.float().masked_fill(mask[:, :, None] == 0, 0.0)
            return words.sum(1) / mask.sum(1, keepdim=True)

    def _standardised(self, e: Tensor) -> Tensor:
        return Standard(self.centre, self.spread)(e)

    def logits(self, e: Tensor) -> Tensor:
        """Computes s · cos(V (z − m), V (μ_t − m)) (B, T) from ē (B, d), always in float32.

        A prompt takes d² multiplications for V z and T d for the cosines.
        """
        return self._scale * self._cosines(e)

    @torch.no_grad()
    def _cosines(self, e: Tensor) -> Tensor:
        self._derive()
        z = self._standardised(e) - self.middle  # (B, d)
        with torch.autocast(z.device.type, enabled=False):
            return F.normalize(z @ self.contrast, dim=1) @ self.keys.T

    def likeness(self, e: Tensor) -> Tensor:
        """Computes cos(V (z − m), V (μ_t − m)) / ρ_t (B, T): 1 for a usual prompt of task t."""
        return self._cosines(e) / self.usual

    def _derive(self) -> None:
        """Derives V, m, the keys and ρ from the tasks' moments, once after tasks were added.

        V costs as much as in `whitening`, whatever the number of tasks and prompts, and ρ takes
        T RANK d² multiplications.
        """
        if self._derived:
            return
        means = torch.stack([task.mean for task in self._tasks]).double()  # (T, d)
        middle = means.sum(0) / (len(means) + 1)  # (d,)
        centred = means - middle
        between = (torch.outer(middle, middle) + centred.T @ centred) / (len(means) + 1)  # B
        contrast = whitening(self._scatter + BETWEEN * self._freedom * between, self._freedom)
        keys = centred @ contrast  # (T, d)
        lengths = keys.square().sum(1)
        spreads = self._spreads(contrast)
        self.middle = middle.to(self.middle)
        self.contrast = contrast.to(self.contrast)
        self.keys = F.normalize(keys, dim=1).to(self.keys)
        self.usual = (lengths / (lengths + spreads)).sqrt().clamp(min=TINY).to(self.usual)
        self._derived = True

    def _spreads(self, contrast: Tensor) -> Tensor:
        """Computes tr(V Σ_t Vᵀ) of every task, (T,), from Vᵀ (d, d) in float64."""
        squares = contrast.square().sum(1)  # (d,)
        pooled = (contrast * (self._scatter @ contrast)).sum() / self._freedom
        totals = [
            (task.factor.double() @ contrast).square().sum() + task.rest.double() @ squares
            for task in self._tasks
        ]
        freedoms = torch.stack([task.count[0] for task in self._tasks]).double() - 1
        return (torch.stack(totals) + pooled) / (freedoms + 1)

    def task_keys(self) -> Tensor:
        """Returns W μ_t of every task divided by its length, (T, d); WᵀW is the inverse of S."""
        means = torch.stack([task.mean for task in self._tasks]).double()
        return F.normalize(means @ whitening(self._scatter, self._freedom), dim=1)

    def cosines(self) -> list[float]:
        """Returns the cosine of each older task's key with the newest one's."""
        keys = self.task_keys()
        cosines: list[float] = (keys[:-1] @ keys[-1]).tolist()
        return cosines

    def _add(self, task: Moments) -> None:
        self._tasks.append(task)
        self._scatter += task.scatter()
        self._freedom += int(task.count) - 1
        self._derived = False

    def forward(self, e: Tensor) -> Tensor:
        """Computes the weights (B, T); all zero for a prompt that is like no learned task.

        In training no prompt is, as all are of the task that is learned.
        """
        weights = super().forward(e)
        if self._threshold is None or self.training:
            return weights
        likeness = self.likeness(e).amax(1, keepdim=True)  # (B, 1)
        return weights.masked_fill(likeness < self._threshold, 0.0)

    # -- the protocol of a router

    def weights(self, batch: Batch) -> Tensor:
        """Computes the blocks' weights (B, T) for a batch of prompts."""
        weights: Tensor = self(self.pooled(batch))
        return weights

    def add_task(self, task: Task, context: TaskContext) -> None:
        """Adds the moments of all of the task's training prompts."""
        e = self.embed([example.prompt for example in task.train])
        self._add(Moments.of(self._standardised(e)))

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Computes ē of prompts, (N, d)."""
        return embedded(self._backbone, prompts, self.pooled)

    def trainable(self) -> list[nn.Parameter]:
        """Returns nothing: the router is in closed form."""
        return []

    def state(self) -> dict[str, Tensor]:
        """Returns the newest task's moments; a later task does not change them."""
        return dict(vars(self._tasks[-1]))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of `state`, the same for each task."""
        return Moments.shapes(len(self.centre))

    def load_task(self, state: Mapping[str, Tensor]) -> None:
        """Adds a saved task's moments."""
        self._add(Moments(**{name: state[name] for name in self.shapes()}))
