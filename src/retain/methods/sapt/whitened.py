"""A router in closed form: whitened cosine of a prompt with each task's mean prompt.

    ē = mean of the prompt's frozen token embeddings, or hidden states       (d,)
    z = (ē − c) / σ
    S = (ν Σ_generic + Σ_t scatter_t) / (ν + N − T)                          (d, d)
    m = Σ_t μ_t / T, B = Σ_t (μ_t − m)(μ_t − m)ᵀ / T                         (d,), (d, d)
    a = softmax(s · cos(V (z − m), V (μ_t − m)) over tasks t)                (T,)

WᵀW is the inverse of S, shrunk towards its mean diagonal, and VᵀV that of S + β B. c, σ and
Σ_generic are of the packaged generic text, which counts as ν prompts; N prompts of T tasks have
means μ_t. m is what all tasks have in common, such as a language that is not English: it would
bring all cosines near 1.
β B does the same for what some tasks have in common and sets them apart from the others, such as
one of several languages. Whether a prompt is of any task at all is told by cos(W z, W μ_t).

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
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.backbone.hidden import HiddenStates
from retain.methods.base import Options, TaskContext
from retain.methods.sapt.softmax_router import SoftmaxRouter, embedded
from retain.methods.shared.pseudo_samples import BATCH
from retain.methods.shared.whitening import (
    GENERIC,
    Standard,
    generic_scatter,
    generic_windows,
    whitening,
)
from retain.tasks import Task

THRESHOLD = 0.38
"""Cosine below which a prompt counts as of no learned task: `threshold` that benchmarks/routing.py
prints of the first five tasks of its stream `whole`."""
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
    prompt to the backbone alone if its largest cosine is below `threshold`; `nearest` never does.
    """

    layer: Annotated[int, Field(ge=0)] = 0
    scale: PositiveFloat = 64.0
    unknown: Literal["base", "nearest"] = "nearest"
    threshold: Annotated[float, Field(ge=-1, le=1)] = THRESHOLD


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


@torch.no_grad()
def _cosines(z: Tensor, whitener: Tensor, keys: Tensor) -> Tensor:
    """Computes the cosines of z (B, d), whitened by a matrix (d, d), with keys (T, d), (B, T)."""
    with torch.autocast(z.device.type, enabled=False):
        return F.normalize(z @ whitener, dim=1) @ keys.T


class WhitenedRouter(SoftmaxRouter):
    """Weighs the blocks by the whitened cosine of a prompt with each task's mean.

    Args:
        backbone: provides embeddings or hidden states, frozen and without blocks.
        options: `layer` and `scale`.
        top_k: number of blocks with a weight other than 0; None stands for all.

    Attributes:
        centre, spread: c and σ, (d,).
        whitening: Wᵀ, (d, d).
        keys: W μ_t of every task divided by its length, (T, d).
        middle: m, (d,).
        contrast: Vᵀ, (d, d).
        contrast_keys: V (μ_t − m) of every task divided by its length, (T, d).
    """

    spread: Tensor
    whitening: Tensor
    keys: Tensor
    middle: Tensor
    contrast: Tensor
    contrast_keys: Tensor

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
        self._keep("whitening", torch.eye(width))
        self._keep("keys", torch.zeros(0, width))
        self._keep("middle", torch.zeros(width))
        self._keep("contrast", torch.eye(width))
        self._keep("contrast_keys", torch.zeros(0, width))
        self._tasks: list[Moments] = []
        self._scatter = generic_scatter(standard(e))  # Σ times its degrees of freedom
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
        self._derive()
        z = self._standardised(e) - self.middle  # (B, d)
        return self._scale * _cosines(z, self.contrast, self.contrast_keys)

    def cosines(self, e: Tensor) -> Tensor:
        """Computes cos(W z, W μ_t) (B, T), how near a prompt is to each task, in float32."""
        self._derive()
        return _cosines(self._standardised(e), self.whitening, self.keys)

    def _derive(self) -> None:
        """Derives W, V, m and the keys from the tasks' moments, once after tasks were added.

        The cost of `whitening` does not depend on the number of tasks and prompts.
        """
        if self._derived:
            return
        whitener = whitening(self._scatter, self._freedom)  # Wᵀ
        means = torch.stack([task.mean for task in self._tasks]).double()  # (T, d)
        self.whitening = whitener.to(self.whitening)
        self.keys = F.normalize(means @ whitener, dim=1).to(self.keys)
        middle = means.mean(0)  # (d,)
        centred = means - middle
        between = centred.T @ centred / len(means)  # B
        contrast = whitening(self._scatter + BETWEEN * self._freedom * between, self._freedom)
        self.middle = middle.to(self.middle)
        self.contrast = contrast.to(self.contrast)
        self.contrast_keys = F.normalize(centred @ contrast, dim=1).to(self.contrast_keys)
        self._derived = True

    def task_keys(self) -> Tensor:
        """Returns W μ_t of every task divided by its length, (T, d)."""
        self._derive()
        return self.keys

    def nearest(self) -> tuple[int, float] | None:
        """Returns the task nearest to the newest one, and the cosine of W μ of the two.

        It is the number of an older task, from 0; of equally near ones the oldest. None for the
        first task.
        """
        self._derive()
        if len(self.keys) < 2:
            return None
        keys = self.keys.cpu().double()
        cosines = (keys[:-1] @ keys[-1]).tolist()
        index = max(range(len(cosines)), key=cosines.__getitem__)
        return index, cosines[index]

    def _add(self, task: Moments) -> None:
        self._tasks.append(task)
        self._scatter += task.scatter()
        self._freedom += int(task.count) - 1
        self._derived = False

    def forward(self, e: Tensor) -> Tensor:
        """Computes the weights (B, T); all zero for a prompt that is near no learned task.

        In training no prompt is, as all are of the task that is learned.
        """
        weights = super().forward(e)
        if self._threshold is None or self.training:
            return weights
        nearest = self.cosines(e).amax(1, keepdim=True)  # (B, 1)
        return weights.masked_fill(nearest < self._threshold, 0.0)

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
