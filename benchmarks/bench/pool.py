"""A step of the pool beside one PEFT LoRA: float32, bfloat16, compiled, and as others do it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.bench import model as bench
from benchmarks.timing import Side
from retain.layers.lora_pool import LoraPool


class NaiveLinear(nn.Module):
    """Pooled layer of SAPT's published code for LLaMA: mixes the full outputs of the blocks.

    Frozen blocks pass no gradient to their input, as in that code and in retain's pool.
    """

    def __init__(self, base: nn.Linear, blocks: int) -> None:
        super().__init__()
        self.base = base
        self.A = nn.ParameterList(
            [torch.randn(bench.RANK, base.in_features) / 32 for _ in range(blocks)]
        )
        self.B = nn.ParameterList(
            [torch.randn(base.out_features, bench.RANK) / 32 for _ in range(blocks)]
        )
        self.A[:-1].requires_grad_(False)
        self.B[:-1].requires_grad_(False)
        self.weights = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x (B, S, d) to (B, S, d)."""
        *old, new = zip(self.A, self.B, strict=True)
        with torch.no_grad():
            outputs = torch.stack([x @ A.T @ B.T for A, B in old])  # (T − 1, B, S, d)
        newest = (x @ new[0].T @ new[1].T)[None]
        outputs = torch.cat([outputs, newest]).transpose(0, 1).flatten(2)  # (B, T, S·d)
        y: Tensor = self.base(x)
        mixed = (self.weights[:, None] @ outputs).view_as(y)
        return y + bench.ALPHA / bench.RANK * mixed


def step_of(
    model: nn.Module, before: Callable[[], object] = lambda: None, length: int | None = None
) -> Callable[[], None]:
    """Returns a function that runs forward and backward on one batch of so long rows."""
    ids = torch.randint(2, bench.VOCABULARY, (bench.BATCH, length or bench.LENGTH))

    def step() -> None:
        before()
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


def with_lora(model: LlamaForCausalLM, config: LoraConfig, name: str = "default") -> PeftModel:
    """Adds one PEFT adapter to the model, without PEFT's own deprecation warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        found: PeftModel = get_peft_model(model, config, adapter_name=name)
    return found


def single(model: LlamaForCausalLM | None = None, length: int | None = None) -> Callable[[], None]:
    """One PEFT LoRA, on the bench model or another."""
    config = LoraConfig(r=bench.RANK, lora_alpha=bench.ALPHA, target_modules=bench.TARGETS)
    return step_of(with_lora(model or bench.bench_model(), config), length=length)


def peft_pool(blocks: int) -> Callable[[], None]:
    """Active PEFT adapters, all but the last frozen."""
    config = LoraConfig(r=bench.RANK, lora_alpha=bench.ALPHA, target_modules=bench.TARGETS)
    model = with_lora(bench.bench_model(), config, "b0")
    names = [f"b{i}" for i in range(blocks)]
    for name in names[1:]:
        model.add_adapter(name, config)
    model.base_model.set_adapter(names)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(f".{names[-1]}." in name)
    return step_of(model)


def mixing(blocks: int) -> Tensor:
    """Returns a router's weights (B, T), which require a gradient."""
    return torch.softmax(torch.randn(bench.BATCH, blocks), 1).requires_grad_(True)


def pool_of(model: LlamaForCausalLM, blocks: int, input_gradient: bool = False) -> LoraPool:
    """Makes a pool of blocks, of which the last is trainable."""
    pool = LoraPool(
        model, bench.TARGETS, bench.RANK, bench.ALPHA, old_block_gradient=input_gradient
    )
    for i in range(blocks):
        pool.grow(f"b{i}", seed=i)
    return pool


def fused_pool(
    blocks: int,
    model: LlamaForCausalLM | None = None,
    length: int | None = None,
    input_gradient: bool = False,
    compiled: bool = False,
) -> Callable[[], None]:
    """retain's pool, on the bench model or another; `compiled` by torch.compile."""
    model = model or bench.bench_model()
    pool, weights = pool_of(model, blocks, input_gradient), mixing(blocks)
    if compiled:
        model.compile()
    return step_of(model, lambda: pool.use(weights), length)


def naive_pool(blocks: int) -> Callable[[], None]:
    """The pool of the papers' published code."""
    model, weights = bench.bench_model(), mixing(blocks)
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in bench.TARGETS and isinstance(module, nn.Linear):
            layer = NaiveLinear(module, blocks)
            layer.weights = weights
            model.set_submodule(name, layer)
    return step_of(model)


@contextmanager
def float32_sides() -> Iterator[dict[str, Side]]:
    yield {
        "single": single(),
        "pool 15": fused_pool(15),
        "pool 100": fused_pool(100),
        "naive 50": naive_pool(50),
        "pool 50": fused_pool(50),
        "peft 15": peft_pool(15),
        "peft 50": peft_pool(50),
    }


@contextmanager
def bfloat16_sides() -> Iterator[dict[str, Side]]:
    """On two layers of LLaMA-2-7B, and on the bench model, with a quarter of the tokens."""
    sides: dict[str, Side] = {}
    models = {"": bench.two_layers_of_7b(), " narrow": bench.bench_model().to(torch.bfloat16)}
    for name, model in models.items():
        length = None if name else max(2, bench.LENGTH // 4)
        copies = [bench.sharing_weights(model) for _ in range(3)]
        sides[f"single{name}"] = single(copies[0], length)
        sides[f"pool 15{name}"] = fused_pool(15, copies[1], length)
        sides[f"pool 100{name}"] = fused_pool(100, copies[2], length)
    yield sides


@contextmanager
def compiled_sides() -> Iterator[dict[str, Side]]:
    with warnings.catch_warnings():
        # torch.compile reads the gates' .grad itself
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield {"eager": fused_pool(15), "compiled": fused_pool(15, compiled=True)}


@contextmanager
def optimizer_sides() -> Iterator[dict[str, Side]]:
    """AdamW's own step over all weights of the bench model."""
    sides: dict[str, Side] = {}
    for name, fused in (("plain", False), ("fused", True)):
        parameters = list(bench.bench_model().requires_grad_(True).parameters())
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        sides[name] = torch.optim.AdamW(parameters, lr=1e-5, fused=fused).step
    yield sides
