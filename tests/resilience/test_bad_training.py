"""A step whose loss or gradient is not a number changes nothing, and is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from retain.backbone import BackboneConfig, Batch, load_backbone, wrap_loaded
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.tasks import Task
from retain.testing.runs import KIND, KilledError, Record
from retain.testing.tiny import make_backbone, make_learner, make_task, save_backbone
from retain.training.phase import Phase

FIRST = make_task("copy")


def learner_with(
    spoil: Callable[[dict[str, Tensor], Learner], dict[str, Tensor]], folder: Path
) -> Learner:
    """Its loss is spoiled from the third step on."""
    learner = make_learner("seqlora", make_backbone("llama"), folder)
    loss, calls = learner.method.loss, []

    def spoiled(batch: Batch) -> dict[str, Tensor]:
        calls.append(batch)
        parts = loss(batch)
        return spoil(parts, learner) if len(calls) >= 3 else parts

    learner.method.loss = spoiled
    return learner


def not_a_number(parts: dict[str, Tensor], learner: Learner) -> dict[str, Tensor]:
    return {"task": parts["task"] * float("nan")}


def infinite_slope(parts: dict[str, Tensor], learner: Learner) -> dict[str, Tensor]:
    weights = next(iter(learner.method.weights.named_parameters().values()))
    return {"task": parts["task"] + (0.0 * weights).abs().sum().sqrt()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(not_a_number, "the loss 'task' is nan"), (infinite_slope, "the gradient's norm is nan")],
)
def test_it_stops_before_the_step(
    spoil: Callable[[dict[str, Tensor], Learner], dict[str, Tensor]], says: str, tmp_path: Path
) -> None:
    learner = learner_with(spoil, tmp_path / "run")
    with pytest.raises(RetainError) as caught:
        learner.learn(FIRST)
    message = str(caught.value)
    assert f"phase 'learn', step 3: {says}, on 'copy this word: " in message
    assert "and 3 more; the last good state is step 2; take a look at" in message
    named = message.partition(" on ")[2].partition(" and 3 more")[0].split(", ")
    prompts = {example.prompt for example in FIRST.train}
    assert {name.strip("'") for name in named} <= prompts
    for parameter in learner.backbone.model.parameters():
        assert torch.isfinite(parameter).all()
    # The state of the second step is on disk, whole.
    fresh = make_learner("seqlora", make_backbone("llama"), tmp_path / "again")
    whole = fresh.learn(FIRST)
    resumed = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    assert resumed.learn(FIRST) == whole


def test_the_micro_batch_that_is_bad_is_named(tmp_path: Path) -> None:
    """All losses of a step are read after its last micro-batch."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", **settings)
    loss, batches = learner.method.loss, []

    def spoiled(batch: Batch) -> dict[str, Tensor]:
        batches.append(learner.backbone.prompts(batch))
        parts = loss(batch)
        return not_a_number(parts, learner) if len(batches) == 5 else parts

    learner.method.loss = spoiled
    with pytest.raises(RetainError) as caught:
        learner.learn(FIRST)
    first, second = batches[4]
    said = f"phase 'learn', step 2: the loss 'task' is nan, on {first!r}, {second!r}; the last"
    assert said in str(caught.value)
    for parameter in learner.backbone.model.parameters():
        assert torch.isfinite(parameter).all()


class Reads(TorchDispatchMode):
    """Counts how often a number is read from the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_as_often_with_more_micro_batches(tmp_path: Path) -> None:
    counts = []
    for number, micro in enumerate((1, 3)):
        settings = {"per_device_train_batch_size": 6 // micro, "max_steps": 4}
        learner = make_learner(
            "seqlora",
            make_backbone("llama"),
            tmp_path / str(number),
            **settings,
            gradient_accumulation_steps=micro,
        )
        loss, inside = learner.method.loss, Reads()

        def counted(batch: Batch, loss: Any = loss, inside: Reads = inside) -> dict[str, Tensor]:
            with inside:  # what the model itself reads
                part = loss(batch)["task"]
            return {"task": part, "half": part / 2}

        learner.method.loss = counted
        with Reads() as reads:
            learner.learn(FIRST)
        counts.append(reads.count - inside.count)
    assert counts[0] == counts[1]


GO_ON = "training at 6 rows a batch: out of memory; continue, with --set training.gradient_check"
FEWER = (
    "01-copy and learn the task anew with per_device_train_batch_size=3 and "
    "gradient_accumulation_steps=2 in its 'training'"
)
SMALLER = "a smaller backbone (a frozen one also with backbone.dtype=bfloat16 or backbone.quant"
ALL_SAVED = {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("error", "settings", "says"),
    [
        (torch.OutOfMemoryError("x"), {}, GO_ON),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"), {}, GO_ON),
        (MemoryError(), ALL_SAVED, FEWER),
        (MemoryError(), {**ALL_SAVED, "per_device_train_batch_size": 1}, SMALLER),
    ],
)
def test_out_of_memory_says_what_to_change(
    error: Exception, settings: dict[str, Any], says: str, tmp_path: Path
) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", **settings)

    def fails(batch: Batch) -> dict[str, Tensor]:
        raise error

    learner.method.loss = fails
    with pytest.raises(RetainError, match=r"^training at . rows a batch: out of mem") as caught:
        learner.learn(FIRST)
    assert says in str(caught.value)


def test_out_of_memory_while_a_backbone_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_backbone("llama", tmp_path / "model")

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("x")

    loaded = load_backbone(BackboneConfig(name=str(folder), device="cpu"))
    monkeypatch.setattr(LlamaForCausalLM, "to", fails)
    with pytest.raises(RetainError, match=r"^backbone.device 'cpu': out of memory; ") as caught:
        wrap_loaded((loaded.model, loaded.tokenizer))
    assert SMALLER in str(caught.value)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", fails)
    with pytest.raises(RetainError, match=r"^backbone '.*model': out of memory; ") as caught:
        load_backbone(BackboneConfig(name=str(folder), device="cpu"))
    assert SMALLER in str(caught.value)


@pytest.mark.parametrize(
    ("variant", "says"),
    [
        (
            "seqlora",
            "evaluation with batch size 3: out of memory; lower evaluation.batch_size to 1 ",
        ),
        (
            "sapt",
            "the method's own passes before or after training: out of memory; .*"
            "with prompt.max_prompt_tokens=256$",
        ),
    ],
)
def test_out_of_memory_outside_of_training(
    variant: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where answers are generated, and where the method itself uses the model."""
    learner = make_learner(variant, make_backbone("llama"), tmp_path / "run")

    def fails(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("x")

    monkeypatch.setattr(learner.backbone, "generate", fails)
    with pytest.raises(RetainError, match=says):
        learner.learn(FIRST)


def test_another_runtime_error_is_not_one_of_memory(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run")

    def fails(batch: Batch) -> dict[str, Tensor]:
        raise RuntimeError("a bug")

    learner.method.loss = fails
    with pytest.raises(RuntimeError, match="a bug"):
        learner.learn(FIRST)


@pytest.mark.parametrize(("max_steps", "where"), [(3, "in a checkpoint"), (2, "in the result")])
def test_a_step_that_leaves_no_numbers_is_not_kept(
    max_steps: int, where: str, tmp_path: Path
) -> None:
    """Loss and gradient of the second step are finite, and its rate takes the weights beyond."""
    settings = {"max_steps": max_steps, "warmup_steps": 1, "max_grad_norm": 0.0, "optim": "sgd"}
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", **settings)
    phases, loss = learner.method.phases, learner.method.loss
    learner.method.loss = lambda batch: {"task": 1e8 * loss(batch)["task"]}

    def far(task: Task, folder: Path) -> Iterator[Phase]:
        for phase in phases(task, folder):
            yield replace(phase, groups=[replace(group, rate=1e38) for group in phase.groups])

    learner.method.phases = far
    with pytest.raises(RetainError) as caught:
        learner.learn(FIRST)
    says = "phase 'learn', step 2: trained parameters are no longer finite, on 'copy this word: "
    assert says in str(caught.value), where
    assert "the last good state is step 1;" in str(caught.value)
    (kept,) = (tmp_path / "run").rglob("checkpoint-*/model.safetensors")
    assert kept.parent.name == "checkpoint-1"
    assert all(torch.isfinite(tensor).all() for tensor in load_file(kept).values())
    assert not list((tmp_path / "run").rglob("trained.safetensors"))


def test_a_resumed_phase_saves_and_logs_as_often_as_it_says_now(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone(KIND), tmp_path, save_steps=2, max_steps=6)
    learner.progress = Record(lambda event: event.startswith("3 "))
    with pytest.raises(KilledError):
        learner.learn(FIRST)
    assert [path.name for path in tmp_path.rglob("checkpoint-*")] == ["checkpoint-2"]
    resumed = Learner.load(
        tmp_path, Record(lambda event: event.startswith("4 ")), make_backbone(KIND)
    )
    training = resumed.experiment.training.model_copy(update={"save_steps": 1})
    resumed.experiment = resumed.experiment.model_copy(update={"training": training})
    with pytest.raises(KilledError):
        resumed.learn(FIRST)
    assert [path.name for path in tmp_path.rglob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("replay", "steps", "says"),
    [
        ({"share": 0.1}, 1, "no replay: a step on old examples comes after every 2 steps, and"),
        ({"share": 0.1}, 2, "1 replay: a step on old examples comes after every 2 steps, and"),
        ({"share": 0.1, "every": 2}, 2, None),
    ],
)
def test_a_phase_with_hardly_any_replay_is_told(
    replay: dict[str, Any], steps: int, says: str | None, tmp_path: Path
) -> None:
    heard = Record()
    method = {"name": "replay", "tune": "lora", "rank": 2, "replay": replay}
    training = {"max_steps": steps, "per_device_train_batch_size": 6, "learning_rate": 1e-4}
    learner = Learner(
        make_backbone("llama"), method, tmp_path / "run", training=training, progress=heard
    )
    learner.learn(FIRST)
    learner.learn(make_task("constant"))
    warned = [line.partition("warning: ")[2] for line in heard.said if "warning: " in line]
    assert [line.startswith(says or " ") for line in warned] == ([True] if says else [])


@pytest.mark.parametrize(
    ("tune", "rate", "warned"), [("full", 1e-3, True), ("full", 1e-4, False), ("lora", 1e-3, False)]
)
def test_a_rate_for_lora_on_the_whole_model_is_told(
    tune: str, rate: float, warned: bool, tmp_path: Path
) -> None:
    heard = Record()
    method = {"name": "replay", "tune": tune}
    training = {"max_steps": 1, "learning_rate": rate}
    learner = Learner(
        make_backbone("llama"), method, tmp_path / "run", training=training, progress=heard
    )
    learner.learn(FIRST)
    assert any("a rate for LoRA" in line for line in heard.said) == warned
