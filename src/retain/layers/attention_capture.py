"""Attention weights of selected heads and queries, in addition to fused attention.

transformers passes q, k, v of each layer to an attention function. The one registered here computes
the output with SDPA as usual. It also computes softmax(q kᵀ), but only for the selected heads and
query positions, so the (S × S) matrices of all heads never exist.

In shapes, B is the batch size, H the number of heads, H_kv that of key-value heads, h that of
selected heads, Q the number of selected queries, S_q and S the lengths of queries and keys, d the
width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from retain.errors import RetainError

IMPLEMENTATION = "retain_capture"
ATTRIBUTE = "_retain_capture"


Side = Literal["input_ids", "labels"]
"""The sequence of a batch that queries or keys belong to; decoder-only models have one only."""


@dataclass(frozen=True)
class AttentionModule:
    """One attention module of a model: its number of heads, and the sequences it relates."""

    heads: int
    queries: Side
    keys: Side


@dataclass(frozen=True)
class Wanted:
    """What to capture of one attention module.

    Attributes:
        heads: indices of the heads, (h,).
        positions: query positions (B, Q) in the batch's sequences; None takes all.
    """

    heads: Tensor
    positions: Tensor | None = None


class AttentionCapture:
    """Captures attention weights of a model while it is on.

    Call `clear` before a forward: captured tensors stay until then. Layers are identified by the
    name of their attention module, since T5's encoder, decoder and cross-attention share layer
    indices. Leave the capture on until `backward` has run, since gradient checkpointing recomputes
    the forward.

    Attributes:
        wanted: what to capture, by the attention module's name.
        consume: receives name and weights as soon as they are computed. The weights are then not
            kept, so that those of one layer at a time are in memory.
        weights: after a forward, the weights (B, h, Q, S) by module, with their graph.
        outputs: after a forward with `keep_outputs`, each module's output per head (B, S_q, H, d)
            and its values (B, H_kv, S, d).
        keep_outputs: whether outputs and values are kept.

    Raises:
        RetainError: if the architecture does not use transformers' attention interface.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if not model._can_set_attn_implementation():
            raise RetainError(
                f"attention capture: {type(model).__name__} does not use transformers' attention "
                "interface; choose a method that does not read attention weights"
            )
        self.model = model
        self.wanted: dict[str, Wanted] = {}
        self.consume: Callable[[str, Tensor], None] | None = None
        self.keep_outputs = False
        self.weights: dict[str, Tensor] = {}
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}
        self._original: str | None = None  # the attention implementation, while the capture is on

    def on(self) -> None:
        """Starts the capture: every attention module of the model calls `_attend`."""
        if self._original is None:
            self._original = self.model.config._attn_implementation
            for name, module in self.model.named_modules():
                setattr(module, ATTRIBUTE, (self, name))
            self.model.set_attn_implementation(IMPLEMENTATION)

    def off(self) -> None:
        """Ends the capture, resets what is wanted, and restores the model."""
        if self._original is not None:
            self.model.set_attn_implementation(self._original)
            for module in self.model.modules():
                delattr(module, ATTRIBUTE)
            self._original = None
        self.wanted, self.consume = {}, None
        self.clear()

    def clear(self) -> None:
        """Drops the captured tensors."""
        self.weights, self.outputs = {}, {}

    def modules(self) -> dict[str, AttentionModule]:
        """Returns the model's attention modules by name, in the order in which it calls them.

        It runs a forward on three tokens, and two for a decoder. The lengths then identify the
        sequences.
        """
        ids = torch.ones(1, 3, dtype=torch.long, device=self.model.device)
        inputs = {"input_ids": ids}
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids[:, :2]
        was_off = self._original is None
        self.on()
        self.clear()
        self.keep_outputs = True
        with torch.no_grad():
            self.model(**inputs, use_cache=False)
        self.keep_outputs = False
        sides: dict[int, Side] = {3: "input_ids", 2: "labels"}
        modules = {
            name: AttentionModule(output.shape[2], sides[output.shape[1]], sides[value.shape[2]])
            for name, (output, value) in self.outputs.items()
        }
        self.clear()
        if was_off:
            self.off()
        return modules


def attention_weights(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    heads: Tensor,
    positions: Tensor | None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """Computes softmax(q kᵀ · scaling + bias + mask) for some heads and queries, in float32.

    Args:
        module: the attention module; its `is_causal` says whether it is causal.
        query: (B, H, S_q, d).
        key: (B, H_kv, S, d); H is a multiple of H_kv (grouped heads).
        mask: bool (True = may attend) or additive, (B or 1, 1 or H, S_q, S); None means causal for
            a causal module, else no mask.
        scaling: factor of the scores; None is d^−½.
        heads: indices of the heads, (h,).
        positions: query positions (B, Q), or None for all.
        is_causal: replaces the module's `is_causal` unless None.
        position_bias: T5's position bias, (1, H, S_q, S).

    Returns:
        (B, h, Q, S).
    """
    batch, all_heads, length, width = query.shape
    groups = all_heads // key.shape[1]
    if positions is None:
        positions = torch.arange(length, device=query.device).expand(batch, -1)
    index = positions[:, None, :, None]  # (B, 1, Q, 1)
    q = query[:, heads].gather(2, index.expand(-1, len(heads), -1, width))  # (B, h, Q, d)
    k = key[:, heads // groups]  # (B, h, S, d)
    with torch.autocast(query.device.type, enabled=False):
        scores = q.float() @ k.float().transpose(2, 3)  # (B, h, Q, S)
    scores = scores * (width**-0.5 if scaling is None else scaling)
    if position_bias is not None:
        scores = scores + _rows(position_bias, heads, index, batch).float()
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is not None or (causal and length > 1):
        if mask is None:
            rows = torch.arange(key.shape[2], device=query.device) <= index  # (B, 1, Q, S)
        else:
            rows = _rows(mask, heads, index, batch)
        if rows.dtype == torch.bool:
            scores = scores.masked_fill(~rows, torch.finfo(scores.dtype).min)
        else:
            scores = scores + rows.float()
    return scores.softmax(-1)


def _rows(table: Tensor, heads: Tensor, index: Tensor, batch: int) -> Tensor:
    """Selects a table (B or 1, H or 1, S_q or 1, S) at the chosen heads and queries.

    Args:
        table: a mask or a bias.
        heads: (h,).
        index: query positions, (B, 1, Q, 1).
        batch: B.
    """
    if table.shape[1] > 1:
        table = table[:, heads]
    if table.shape[2] == 1:
        return table
    table = table.expand(batch, -1, -1, -1)
    return table.gather(2, index.expand(-1, table.shape[1], -1, table.shape[3]))


def squared_gradient(gradient: Tensor, value: Tensor) -> Tensor:
    """Computes the squared Frobenius norm of ∂L/∂A per example and head, without the matrix A.

    O = A V, so ∂L/∂A = G Vᵀ with G = ∂L/∂O, and ‖G Vᵀ‖² = ⟨GᵀG, VᵀV⟩. This takes two d × d Gram
    matrices, O(S d²) time and d² memory. It is exact without attention dropout.

    Args:
        gradient: G (B, S_q, H, d).
        value: V (B, H_kv, S, d), zero at keys that do not count.

    Returns:
        (B, H).
    """
    g = torch.einsum("bshd,bshe->bhde", gradient, gradient)  # (B, H, d, d)
    v = torch.einsum("bhsd,bhse->bhde", value, value)  # (B, H_kv, d, d)
    return (g * v.repeat_interleave(g.shape[1] // v.shape[1], 1)).sum((2, 3))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: SDPA, and the weights that the capture wants."""
    for option in ("softcap", "s_aux"):
        if options.get(option) is not None:
            raise RetainError(
                f"attention capture: {type(module).__name__} uses {option}, which fused attention "
                "cannot reproduce; choose a method that does not read attention weights"
            )
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    capture, name = _installed(module)
    wanted = capture.wanted.get(name)
    if wanted is not None:
        weights = attention_weights(
            module,
            query,
            key,
            attention_mask,
            options.get("scaling"),
            wanted.heads,
            wanted.positions,
            options.get("is_causal"),
            options.get("position_bias"),
        )
        if capture.consume is not None:
            capture.consume(name, weights)
        else:
            # Gradient checkpointing calls this again during backward. Keep the first weights: the
            # loss was computed from them.
            capture.weights.setdefault(name, weights)
    if capture.keep_outputs:
        capture.outputs[name] = (output, value)
    return output, None


def _installed(module: nn.Module) -> tuple[AttentionCapture, str]:
    """Returns the capture that is on, and the module's name."""
    capture: tuple[AttentionCapture, str] = getattr(module, ATTRIBUTE)
    return capture


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
