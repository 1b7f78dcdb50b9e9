"""Groups of texts by the whitened cosine of their mean token embeddings.

What varies within a task is unknown at first, so Σ is that of generic text and of the learned
tasks. Tight groups are found with it, and tell how much their texts vary; with their scatter the
looser groups are found. A text that resembles no group stays in the buffer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.backbone import Backbone
from retain.layers.linkage import linked
from retain.methods.shared.whitening import (
    GENERIC,
    Standard,
    generic_scatter,
    generic_windows,
    whitening,
)
from retain.tasks import Example

FEWEST = 8
"""Texts that a group has at least."""
TIGHT = (0.7, 0.5, 0.45)
"""Least mean cosines between two parts of a group, one after another, Σ refined in between."""
LOOSE, ROUNDS = 0.2, 3
"""The same among texts that no group explains; how often these are grouped."""
EXPLAINED = 0.35
"""Least cosine of a text with the mean of its group."""
SAME = 0.7
"""Cosine of two groups' means from which they are one."""
SAMPLE = 3000
"""Texts that groups are formed of at most; the others join them. A square of so many is held."""
BUFFER = -1
"""Stands for the group of a text that has none."""


def text_of(example: Example) -> str:
    """Returns what groups are told by: the prompt and the first answer."""
    return f"{example.prompt}\n{example.references[0]}"


class Space:
    """Where texts are compared: standardised mean token embeddings, and the scatter of Σ.

    Args:
        backbone: provides the tokenizer and the token embeddings.
        known: texts of each learned task.

    Attributes:
        known: standardised texts (N_k, d) of each learned task.
        scatter, freedom: Σ's numerator (d, d) and degrees of freedom.
    """

    def __init__(self, backbone: Backbone, known: Sequence[Sequence[str]] = ()) -> None:
        self._backbone = backbone
        windows = [window["route_ids"] for window in generic_windows(backbone)]
        e = torch.stack([self._mean(ids) for ids in windows])
        self._standard = Standard.of(e)
        self.known = [self.embed(texts) for texts in known]
        self.scatter = generic_scatter(self._standard(e))
        self.freedom = GENERIC
        for z in self.known:
            x = (z - z.mean(0)).double()
            self.scatter = self.scatter + x.T @ x
            self.freedom += len(z) - 1

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Computes z (N, d) on the CPU; a long text is cut as a prompt is."""
        if not texts:
            return torch.zeros(0, self._backbone.width)
        rows = [self._backbone.encode(Example(text, ("",)), with_answer=False) for text in texts]
        return self._standard(torch.stack([self._mean(row["route_ids"]) for row in rows]))

    @torch.no_grad()
    def _mean(self, ids: list[int]) -> Tensor:
        weight = self._backbone.embedding.weight
        return F.embedding(torch.tensor(ids, device=weight.device), weight).float().mean(0).cpu()


@dataclass(frozen=True)
class Grouping:
    """Groups of N texts, largest first.

    Attributes:
        group: of each text, BUFFER or a number from 0, (N,).
        fit: cosine of each text with the mean of its group, or of the nearest one, (N,).
        near: cosines between the groups' means (G, G).
        known: cosines of the groups' means with those of the learned tasks (G, T).
    """

    group: Tensor
    fit: Tensor
    near: Tensor
    known: Tensor


def group_texts(space: Space, texts: Sequence[str]) -> Grouping:
    """Groups texts. Their order changes nothing but the order of equal groups."""
    order = sorted(range(len(texts)), key=lambda i: hashlib.sha256(texts[i].encode()).digest())
    z = space.embed([texts[i] for i in order])  # (N, d)
    part, group = z[:SAMPLE], torch.full((min(len(z), SAMPLE),), BUFFER)
    for least in TIGHT:
        y = F.normalize(part @ _whitening(space, part, group))
        group = _dense(linked(y @ y.T, least))
    for _ in range(ROUNDS):
        group = _grouped_further(space, part, group)
    group = _merged(space, part, group)
    wide = _whitening(space, part, group)
    keys = _keys(part @ wide, group)  # (G, d)
    if len(keys):
        fit, nearest = (F.normalize(z @ wide) @ keys.T).max(1)
        group = _dense(torch.where(fit >= EXPLAINED, nearest, BUFFER))
        keys = _keys(z @ wide, group)
    similarity = F.normalize(z @ wide) @ keys.T  # (N, G)
    fit = similarity.max(1).values if len(keys) else torch.zeros(len(z))
    in_group = group >= 0
    fit[in_group] = similarity[in_group, group[in_group]]
    learned = [F.normalize(known.mean(0) @ wide, dim=0) for known in space.known]
    tasks = torch.stack(learned) if learned else torch.zeros(0, z.shape[1])
    back = torch.tensor(order).argsort()
    return Grouping(group[back], fit[back], keys @ keys.T, keys @ tasks.T)


def _dense(label: Tensor) -> Tensor:
    """Numbers groups from 0, largest first; those of fewer than FEWEST texts dissolve."""
    names, index, sizes = label.unique(return_inverse=True, return_counts=True)
    number = torch.full_like(names, BUFFER)
    by_size = [i for i in sizes.argsort(descending=True, stable=True).tolist() if names[i] >= 0]
    kept = [i for i in by_size if sizes[i] >= FEWEST]
    number[kept] = torch.arange(len(kept))
    return number[index]


def _sums(z: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the groups' sums (G, d) and sizes (G, 1)."""
    chosen = group >= 0
    count = int(group.max()) + 1 if chosen.any() else 0
    sums = torch.zeros(count, z.shape[1], dtype=z.dtype).index_add(0, group[chosen], z[chosen])
    return sums, torch.bincount(group[chosen], minlength=count)[:, None]


def _whitening(space: Space, z: Tensor, group: Tensor) -> Tensor:
    """Computes Wᵀ (d, d) from all that is known of what varies within a task."""
    chosen = group >= 0
    x = z[chosen].double()
    sums, sizes = _sums(x, group[chosen])
    x = x - (sums / sizes)[group[chosen]]
    freedom = space.freedom + len(x) - len(sizes)
    return whitening(space.scatter + x.T @ x, freedom).float()


def _keys(whitened: Tensor, group: Tensor) -> Tensor:
    """Computes the groups' whitened means, of length 1, (G, d)."""
    sums, _ = _sums(whitened, group)
    return F.normalize(sums)


def _grouped_further(space: Space, z: Tensor, group: Tensor) -> Tensor:
    """Assigns texts to the nearest group that explains them, and groups the others."""
    wide = _whitening(space, z, group)
    y = F.normalize(z @ wide)
    keys = _keys(z @ wide, group)
    left = torch.ones(len(z), dtype=torch.bool)
    if len(keys):
        fit, nearest = (y @ keys.T).max(1)
        left = fit < EXPLAINED
        group = torch.where(left, BUFFER, nearest)
    label = _dense(linked(y[left] @ y[left].T, LOOSE))
    group[left] = torch.where(label >= 0, label + len(keys), BUFFER)
    return _dense(group)


def _merged(space: Space, z: Tensor, group: Tensor) -> Tensor:
    """Makes one of the two groups whose means are nearest, while they are SAME."""
    while True:
        keys = _keys(z @ _whitening(space, z, group), group)
        near = (keys @ keys.T).fill_diagonal_(-torch.inf)
        if len(keys) < 2 or near.max() < SAME:
            return group
        one, other = divmod(int(near.argmax()), len(keys))
        group = _dense(torch.where(group == other, one, group))
