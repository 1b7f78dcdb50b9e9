"""A short try of a model at load: what retain takes for granted of any class, seen first.

Forwards and two steps of decoding compare a row alone with the same row padded beside longer ones.
A forward and backward in training mode see what each linear layer is given. All have a few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from retain.backbone.backbone import Backbone, Features
from retain.backbone.losses import IGNORED
from retain.backbone.out_of_memory import memory_advice
from retain.backbone.precision import SMALLER
from retain.backbone.quantization import is_quantized
from retain.errors import RetainError, first_line

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."
ROWS, READ, WRITTEN = 3, 5, 4
"""Rows, and positions of prompt and answer, of a forward: all differ, to be seen in shapes."""
LENGTHS = ((5, 2), (12, 4), (12, 4))
"""Lengths of prompt and answer of each row that is compared."""
TOLERANCES = {torch.float32: 1e-2, torch.float16: 0.05}
ROUGH = 0.2
"""Largest `_difference` of equal logits; in bfloat16, and in 4 or 8 bits, `ROUGH`."""


@dataclass(frozen=True)
class Calls:
    """How a model used one of its linear layers in a short step of training.

    Attributes:
        shapes: of its inputs; none if it was not called.
        is_read: whether the module around it reads its weight and bias, to hand them to a kernel
            that takes the place of several layers where it is installed.
    """

    shapes: frozenset[tuple[int, ...]]
    is_read: bool


_CALLS: WeakKeyDictionary[nn.Module, Mapping[str, Calls]] = WeakKeyDictionary()
"""What a model's step has shown already."""


def try_out(backbone: Backbone) -> None:
    """Tries a model on a few tokens, and notes in `sees_padding` if it does not mask padding.

    Raises:
        RetainError: if its weights are not finite, it cannot be trained, answers depend on what
            else is in the batch, or it reads the tokens that it has to predict.
    """
    name, kind = f"backbone '{backbone.name}'", type(backbone.model).__name__
    for key, weight in backbone.model.named_parameters():
        if weight.is_floating_point() and not _is_finite(weight):
            raise RetainError(
                f"{name}: {key} has numbers that are infinite, or none; take another "
                "backbone.dtype, or restore its files"
            )
    rows = _rows(backbone)
    with _reported(f"{name}: {kind} cannot read a short prompt"):
        together, alone = _logits(backbone, rows), _logits(backbone, rows[:1])[0]
    if together.isnan().any():
        raise RetainError(
            f"{name}: its logits are no numbers; take another backbone.dtype, or restore its files"
        )
    exact = not is_quantized(backbone.model)  # 8 bits round what they compute
    tolerance = TOLERANCES.get(backbone.model.dtype, ROUGH) if exact else ROUGH
    if _difference(together[1, :2], together[2, :2]) > tolerance:
        raise RetainError(
            f"{name}: {kind} reads the tokens that it has to predict; take a model that writes "
            "from left to right (BERT and its kin do with is_decoder: true in their config.json)"
        )
    span = slice(len(alone)) if backbone.is_encoder_decoder else slice(-len(alone), None)
    fits = _difference(alone, together[0, span]) <= tolerance
    if not fits and not backbone.is_encoder_decoder:
        backbone.sees_padding = True
        fits = _difference(alone, _logits(backbone, rows)[0, span]) <= tolerance
    with _reported(f"{name}: {kind} cannot answer a short prompt"):
        fits = fits and _answers_alike(backbone, rows, tolerance)
    if not fits:
        # Which columns LLM.int8() keeps out of the 8 bits is decided by all rows of a batch.
        advice = "another model" if exact else "backbone.quantization=nf4, or none"
        raise RetainError(
            f"{name}: what {kind} makes of a prompt depends on the other prompts in its batch; "
            f"take {advice}"
        )
    linear_calls(backbone.model)


def _is_finite(weight: Tensor) -> bool:
    """Whether all numbers are finite. Their sum tells, without memory, but for very large ones."""
    return bool(weight.sum(dtype=torch.float32).isfinite() or weight.isfinite().all())


def linear_calls(model: PreTrainedModel) -> Mapping[str, Calls]:
    """Returns how linear layers are used, by name, from one short step of training.

    It leaves out layers that a text does not reach, such as those of a vision tower: neither they
    nor the module around them are called. Inputs are of `ROWS` rows with prompts of `READ` tokens
    and answers of `WRITTEN`, in whatever order the class has them. The step is made once for a
    model: on the plain one, at load.

    Raises:
        RetainError: if the model cannot be trained.
    """
    if model not in _CALLS:
        _CALLS[model] = _seen(model)
    return _CALLS[model]


def short_forward(model: PreTrainedModel, first: int = 5) -> Tensor:
    """Runs `ROWS` rows of the same tokens, from id `first` on; returns the logits."""
    ids = torch.arange(first, first + READ, device=model.device).repeat(ROWS, 1)
    inputs = {"input_ids": ids}
    if not ids.is_meta:  # classes ask a mask whether it hides anything
        inputs["attention_mask"] = torch.ones_like(ids)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :WRITTEN].clamp(min=0)
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits


class _Watched(nn.Module):
    """Notes, mixed into the class of a layer, reads of its weight and bias from outside of it."""

    reads: ClassVar[dict[nn.Module, set[str]]] = {}
    running: ClassVar[set[nn.Module]] = set()

    def __getattr__(self, name: str) -> Any:
        if name in ("weight", "bias") and self not in self.running:
            self.reads.setdefault(self, set()).add(name)
        return super().__getattr__(name)


def _seen(model: PreTrainedModel) -> Mapping[str, Calls]:
    """Makes one short step in training mode, and returns what `linear_calls` does."""
    linears = {
        name: part
        for name, part in model.named_modules(remove_duplicate=False)
        if isinstance(part, nn.Linear | Conv1D)
    }
    classes = {part: type(part) for part in linears.values()}
    reads: dict[nn.Module, set[str]] = {}
    running: set[nn.Module] = set()
    shapes: dict[nn.Module, set[tuple[int, ...]]] = {}

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        running.add(module)
        seen = shapes.setdefault(module, set())
        if inputs and isinstance(inputs[0], Tensor):
            seen.add(tuple(inputs[0].shape))

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        running.discard(module)
        if isinstance(module, nn.Embedding) and isinstance(output, Tensor) and output.is_leaf:
            # A copy, since some classes change it in place, which a leaf does not bear.
            return output.requires_grad_().clone()
        return None

    gpus = [model.device] if model.device.type == "cuda" else []
    hooks = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    for part, kind in classes.items():
        members = {"reads": reads, "running": running}
        part.__class__ = type(kind.__name__, (_Watched, kind), members)
    try:
        with (
            _reported(f"backbone: {type(model).__name__} cannot be trained"),
            torch.random.fork_rng(gpus),
            torch.enable_grad(),
        ):
            model.train()  # some classes have another way there
            logits = short_forward(model)
            logits.float().square().mean().backward()
    finally:
        model.eval()
        for part, kind in classes.items():
            part.__class__ = kind
        for hook in hooks:
            hook.remove()
    around = {name: model.get_submodule(name.rpartition(".")[0]) for name in linears}
    kernels = {around[name] for name, part in linears.items() if "bias" in reads.get(part, ())}
    return {
        name: Calls(frozenset(shapes.get(part, ())), part in reads and around[name] in kernels)
        for name, part in linears.items()
        if part in shapes or around[name] in shapes
    }


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turns any exception into a RetainError that starts with `what`."""
    try:
        with memory_advice("backbone", f"take {SMALLER}"):
            yield
    except RetainError:
        raise
    except Exception as error:  # classes fail in many ways at what they lack
        raise RetainError(f"{what} ({first_line(error)}); take another model") from error


def _rows(backbone: Backbone) -> list[Features]:
    """Encodes three rows: a short one, and two that differ in the middle of their answers."""
    ids: list[int] = backbone.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    if len(set(ids)) < 9:  # a vocabulary without English
        ids = list(range(min(20, backbone.embedding.num_embeddings)))
    tokens = cycle(dict.fromkeys(ids))
    rows: list[Features] = []
    for length, written in LENGTHS:
        prompt, answer = list(islice(tokens, length)), list(islice(tokens, written))
        if len(rows) == 2:
            other = answer[0] if answer[0] != rows[1]["labels"][-2] else answer[1]
            last = rows[1]
            rows.append({**last, "labels": [*last["labels"][:-2], other, last["labels"][-1]]})
            if not backbone.is_encoder_decoder:
                ids = last["input_ids"]
                rows[-1]["input_ids"] = [*ids[:-2], other, ids[-1]]
        elif backbone.is_encoder_decoder:
            rows.append({"input_ids": prompt, "labels": answer, "route_ids": prompt})
        else:
            labels = [IGNORED] * length + answer
            rows.append({"input_ids": prompt + answer, "labels": labels, "route_ids": prompt})
    return rows


def _logits(backbone: Backbone, rows: list[Features]) -> Tensor:
    """Computes the logits (rows, K, V) that predict the answers, K of the longest."""
    with torch.no_grad():
        return backbone.answer_logits(backbone.collate(rows))[0].float()


def _answers_alike(backbone: Backbone, rows: list[Features], tolerance: float) -> bool:
    """Whether answers of prompts together are those alone, if need be with equal lengths only.

    Some classes go on wrongly from what they have kept of several rows (RWKV); they do without.
    """
    settings = backbone.model.generation_config
    short, long = ({**row, "input_ids": row["route_ids"]} for row in rows[:2])
    other = {**long, "input_ids": long["input_ids"][::-1]}
    beside = other if backbone.sees_padding else short

    def alike() -> bool:
        together, alone = _steps(backbone, [long, beside]), _steps(backbone, [beside])
        first, second = together[:, 1], alone[:, 0]  # each (2, V)
        # A step after another token has other logits; only rounding makes the first one differ.
        steps = 2 if first[0].argmax() == second[0].argmax() else 1
        return all(_difference(second[i], first[i]) <= tolerance for i in range(steps))

    if alike():
        return True
    if not backbone.is_encoder_decoder and not backbone.sees_padding:
        backbone.sees_padding, beside = True, other
        if alike():
            return True
    settings.use_cache = False
    return alike()


def _steps(backbone: Backbone, rows: list[Features]) -> Tensor:
    """Computes the logits (2, rows, V) of the first two tokens of the rows' answers."""
    rows = [{key: row[key] for key in ("input_ids", "route_ids")} for row in rows]
    batch = backbone.collate(rows)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    with torch.no_grad():
        output = backbone.model.generate(
            **inputs, **options, output_logits=True, return_dict_in_generate=True
        )
    return torch.stack(output.logits).float()


def _difference(first: Tensor, second: Tensor) -> float:
    """Returns the root mean square difference of logits (…, V), as a share of their spread.

    It is that of the position that differs most. A mean over the vocabulary, since the largest of
    fifty thousand roundings in bfloat16 is a fifth of the spread.
    """
    finite = first.isfinite() & second.isfinite()  # −inf is the logit of a token that never comes
    squares = torch.where(finite, first - second, 0).square().sum(-1) / finite.sum(-1).clamp(min=1)
    return float(squares.max().sqrt() / first[finite].std().clamp(min=1e-12))
