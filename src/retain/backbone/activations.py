"""What a step of training holds at its peak, counted without computing.

The model is on torch's meta device, where tensors have shapes and sizes and no numbers. So a step
of any size is counted in the time of its calls, on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retain.backbone.backbone import Backbone
from retain.backbone.losses import cross_entropy

PRODUCTS = ((torch, "matmul"), (torch, "bmm"), (Tensor, "matmul"), (Tensor, "__matmul__"))
"""Products of matrices beside those of linear layers, by the names that classes call."""


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are made in here and still there, and the most of them.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and notes what it returns in storage of its own."""
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is(t)}
        made = func(*args, **(kwargs or {}))
        for tensor in filter(_is, tree_leaves(made)):
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, size: int) -> None:
        self.now -= size


@contextmanager
def without_values() -> Iterator[None]:
    """Lets code for models with weights run on tensors without, where their sizes are wanted."""
    # torch has no autocast for the meta device, not even one that is switched off.
    with patch.object(torch, "autocast", lambda *_, **__: nullcontext()), _Answered():
        yield


class _Answered(TorchDispatchMode):
    """Answers with 1, or True, where code asks a tensor without values for one; copies are 0.

    Classes ask whether there is no padding, and no text beside another in a row.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, but for those that read values."""
        device = (kwargs or {}).get("device")
        leaves = device is not None and torch.device(device).type != "meta"
        if func is torch.ops.aten._to_copy.default and leaves and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        return func(*args, **(kwargs or {}))


def _is(value: Any) -> bool:
    return isinstance(value, Tensor)


@contextmanager
def _kernels(autocasts: bool) -> Iterator[None]:
    """Lets torch count, in here, as kernels of CPUs and GPUs compute, which the meta device lacks.

    Attention keeps no matrix of all weights. With `autocasts` linear layers and attention compute
    in bfloat16, from copies of their weights, which last until backward has used them.
    These are replaced functions and no mode of torch, since a mode is off in backward, where
    activations are computed again.
    """
    linear, plain_attention = F.linear, F.scaled_dot_product_attention

    def low(tensor: Any) -> Any:
        if not autocasts or tensor is None or tensor.dtype != torch.float32:
            return tensor
        return tensor.to(torch.bfloat16)

    def count_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return linear(*(low(tensor) for tensor in (x, weight, bias)))

    def lowered(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda a, b: product(low(a), low(b))

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *_: Any, **options: Any
    ) -> Any:
        q, k, v = (low(tensor) for tensor in (q, k, v))
        if attn_mask is not None and attn_mask.requires_grad:  # a trained bias: no such kernel
            return plain_attention(q, k, v, attn_mask=attn_mask.to(q.dtype), **options)
        mask = None if attn_mask is None else attn_mask.to(q.dtype)  # (B, 1, S, S)
        if (shared := q.shape[1] // k.shape[1]) > 1:  # (B, heads, S, d of a head)
            k, v = (tensor.repeat_interleave(shared, 1) for tensor in (k, v))
        causal = mask is None and options.get("is_causal", False)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(q, k, v, 0.0, causal, attn_mask=mask)[0]

    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "linear", count_linear))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        for place, name in PRODUCTS if autocasts else ():
            stack.enter_context(patch.object(place, name, lowered(getattr(place, name))))
        yield


def peak_of_step(
    backbone: Backbone,
    rows: int,
    read: int,
    written: int,
    autocasts: bool = False,
    checkpoints: bool = False,
    micro_batches: int = 1,
) -> int:
    """Counts the bytes at the peak of a step's forwards and backwards, gradients included.

    Rows are taken to differ in length, which needs a mask.

    Args:
        backbone: on the meta device, with a method's layers in use; what requires gradients is
            trained.
        rows: in a micro-batch.
        read: positions of the longest row; those of the encoder, for an encoder-decoder.
        written: positions of the longest answer, those where logits are computed.
        autocasts: whether it is computed in bfloat16 with weights in float32.
        checkpoints: whether activations are computed again instead of kept.
        micro_batches: of the step; a second one finds the gradients of the first.
    """
    model, live = backbone.model, Live()
    with ExitStack() as stack:
        if checkpoints:
            model.activation_checkpointing_enable({"use_reentrant": False})
            stack.callback(model.activation_checkpointing_disable)
        model.train()
        stack.callback(model.eval)
        hook = backbone.embedding.register_forward_hook(_differentiable)
        stack.callback(hook.remove)
        stack.callback(model.zero_grad)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_kernels(autocasts))
        stack.enter_context(live)
        for _ in range(min(2, micro_batches)):
            inputs, targets = _inputs(backbone, rows, read, written)
            logits = model(**inputs, use_cache=False).logits[:, -written:]
            cross_entropy(logits, targets).backward()
            del logits
    return live.peak


def peak_of_answers(backbone: Backbone, rows: int, read: int) -> int:
    """Counts the bytes at the peak of a forward over prompts and answers that keeps its cache.

    Args:
        backbone: on the meta device.
        rows: in the batch.
        read: positions of the longest prompt and its answer.
    """
    live = Live()
    with torch.no_grad(), _kernels(False), live:
        inputs, _ = _inputs(backbone, rows, read, 1)
        output = backbone.model(**inputs, use_cache=True)
        del output
    return live.peak


def _inputs(
    backbone: Backbone, rows: int, read: int, written: int
) -> tuple[dict[str, Any], Tensor]:
    """Makes a batch on the meta device; returns what the model reads, and the targets."""
    ids = torch.zeros(rows, read, dtype=torch.long, device="meta")
    targets = torch.zeros(rows, written, dtype=torch.long, device="meta")
    inputs: dict[str, Any] = {"input_ids": ids}
    if backbone.is_encoder_decoder:
        inputs["decoder_input_ids"] = targets
    else:
        if backbone.keeps_logits:
            inputs["logits_to_keep"] = written
        mask = torch.ones(rows, 1, read, read, dtype=torch.bool, device="meta")
        inputs["attention_mask"] = mask  # as the class makes one of the padding
    return inputs, targets


def _differentiable(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Lets a gradient come down to the first layer; for a method without layers, too."""
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()
    return output
