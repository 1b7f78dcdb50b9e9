"""Memory is foretold from a model without weights, as large as the one with them takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import yaml

from retain.backbone import BackboneConfig, load_backbone
from retain.backbone.activations import Live, peak_of_step, without_values
from retain.backbone.loading import load_skeleton
from retain.backbone.precision import SMALLER
from retain.errors import RetainError
from retain.experiment.config import ExperimentConfig
from retain.experiment.validation import check
from retain.learner import stream
from retain.learner.check_memory import _remedies
from retain.learner.memory import SHARDS, Largest, Memory, foretell
from retain.methods import METHODS
from retain.system.files import write_jsonl
from retain.testing.tiny import EVALUATION, OWN_VARIANTS, TRAINING, make_task, save_backbone
from retain.training.config import Shard
from tests.command import call

FIRST = make_task("copy")
TOLD = Memory(
    weights=100,
    whole_under_full=10,
    trained=100,
    moments=200,
    method_bytes=1,
    step=150,
    step_with_gradients=180,
    answers=20,
    trains_all=True,
    accumulates=False,
    shards=SHARDS,
    recomputable=True,
    lowers="lower method.rank",
    largest=Largest(rows=8, positions=60, answer=7, asked=8, asked_positions=60),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone("llama", tmp_path_factory.mktemp("llama") / "model")


def experiment(folder: Path, variant: str, **changes: Any) -> ExperimentConfig:
    name, options = OWN_VARIANTS[variant]
    values = {
        "backbone": {"name": str(folder), "device": "cpu", **changes.pop("backbone", {})},
        "method": {"name": name, **options},
        "training": {**TRAINING, **changes},
        "evaluation": EVALUATION,
    }
    return check(ExperimentConfig, values, "test")


@pytest.mark.parametrize("variant", [*METHODS, "sapt-hidden", "seekr-lora"])
def test_every_method_goes_through_a_step_without_weights(variant: str, folder: Path) -> None:
    told = foretell(experiment(folder, variant), [FIRST])
    assert told.step > told.trained > 0
    assert told.answers > 0
    weights = load_backbone(BackboneConfig(name=str(folder))).model.parameters()
    assert told.weights >= sum(weight.nbytes for weight in weights)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.parametrize("method", ["sapt", "seqft", "progprompt"])
def test_other_architectures(method: str, kind: str, tmp_path: Path) -> None:
    folder = save_backbone(kind, tmp_path / kind)
    assert foretell(experiment(folder, method), [FIRST]).step > 0


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_step_is_counted_as_it_is_made(
    checkpoints: bool, full: bool, bf16: bool, folder: Path
) -> None:
    """By the same counter, over a step with weights and of rows that differ in length.

    Not with PyTorch's own attention, which takes another kernel while it is watched.
    """
    config = BackboneConfig(name=str(folder), dtype="float32", attention="eager")
    skeleton, backbone = load_skeleton(config), load_backbone(config)
    rows = [
        {"input_ids": [5] * n, "labels": [-100] * (n - 6) + [7] * 6, "route_ids": [5]}
        for n in (60, 50, 50, 50)
    ]
    batch = backbone.collate(rows)
    for each in (skeleton, backbone):
        each.model.requires_grad_(full)
    with without_values():
        told = peak_of_step(skeleton, 4, 60, 7, bf16, checkpoints)
    backbone.embedding.register_forward_hook(
        lambda module, inputs, output: output if full else output.requires_grad_()
    )
    if checkpoints:
        backbone.model.activation_checkpointing_enable({"use_reentrant": False})
    backbone.model.train()
    with Live() as live, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        backbone.answer_loss(batch).backward()
    assert told == pytest.approx(live.peak, rel=0.1)


def test_what_takes_less_is_told_so(folder: Path) -> None:
    def step(**changes: Any) -> int:
        return foretell(experiment(folder, "seqft", **changes), [FIRST]).step

    whole = step()
    assert step(gradient_checkpointing=True) < whole
    assert step(per_device_train_batch_size=1) < whole
    assert step(gradient_accumulation_steps=2) > whole  # gradients are there beside activations
    longer = replace(FIRST, train=[replace(FIRST.train[0], prompt="a b c d " * 20)])
    assert foretell(experiment(folder, "seqft"), [FIRST, longer]).step > whole


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_quantised_weights_are_told_as_they_are_loaded(
    bits: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retain.testing.tiny.WIDTH", 128)
    wide = save_backbone("llama", tmp_path / "wide")
    source = {"quantization": bits, "dtype": "float32"}
    told = foretell(experiment(wide, "seqlora", backbone=source), [FIRST]).weights
    model = load_backbone(check(BackboneConfig, {"name": str(wide), **source}, "test")).model
    assert told == pytest.approx(model.get_memory_footprint(), rel=0.03)


def test_no_batch_has_more_rows_than_there_are(folder: Path) -> None:
    few = replace(FIRST, train=FIRST.train[:3], test=FIRST.test[:2])
    told = foretell(experiment(folder, "seqlora", per_device_train_batch_size=3), [few])
    large = experiment(folder, "seqlora", per_device_train_batch_size=500_000)
    evaluation = large.evaluation.model_copy(update={"batch_size": 10**6})
    assert foretell(large.model_copy(update={"evaluation": evaluation}), [few]) == told


def test_what_does_not_go_together_has_no_numbers(folder: Path) -> None:
    told = foretell(experiment(folder, "seqft", optim="paged_adamw_8bit"), [FIRST])
    assert told.shards == ("none",)
    assert [line.count("–") for line in told.lines() if line.startswith("shard:")] == [0, 4, 4]
    with pytest.raises(RetainError, match="does not work in 4 or 8 bits"):
        foretell(experiment(folder, "seqft", backbone={"quantization": "nf4"}), [FIRST])


def test_several_processes() -> None:
    told = TOLD
    assert told.per_process(1, "none") == 1 + 100 + 200 + 150
    assert told.per_process(2, "none") == 1 + 100 + 200 + 180
    assert told.per_process(2, "optimizer") == 1 + 100 + 100 + 180
    assert told.per_process(2, "full") == 1 + (100 + 200) // 2 + 10 + 80
    accumulated = replace(told, step=180, accumulates=True)
    assert accumulated.per_process(2, "full") == 1 + (100 + 200 + 100) // 2 + 10 + 10 + 80
    frozen = replace(told, trains_all=False)
    assert frozen.per_process(2, "full") == 1 + 100 // 2 + 10 + 200 + 180
    answering = replace(told, method_bytes=0, answers=900)
    assert answering.per_process(2, "full") == 100 + 900  # weights are whole there


ANSWERS = replace(TOLD, answers=900)
ACTIVATIONS = replace(TOLD, step=500, step_with_gradients=500)
CHECKPOINTS = "set training.gradient_checkpointing=true"
ROWS = "lower training.per_device_train_batch_size"
SHORTER = "lower prompt.max_prompt_tokens"
RANK = "lower method.rank"
FULL = "set training.shard=full"


def one_row(told: Memory) -> Memory:
    return replace(told, largest=replace(told.largest, rows=1, asked=1))


@pytest.mark.parametrize(
    ("told", "count", "shard", "advice"),
    [
        (ANSWERS, 1, "none", "lower evaluation.batch_size"),
        (one_row(ANSWERS), 1, "none", SHORTER),
        (ACTIVATIONS, 1, "none", f"{CHECKPOINTS}, {ROWS}"),
        (one_row(ACTIVATIONS), 1, "none", f"{CHECKPOINTS}, {SHORTER}"),
        (replace(ACTIVATIONS, recomputable=False), 1, "none", ROWS),
        (one_row(replace(ACTIVATIONS, recomputable=False)), 1, "none", SHORTER),
        (TOLD, 1, "none", RANK),
        (TOLD, 2, "none", f"{RANK}, {FULL}"),
        (TOLD, 2, "optimizer", f"{RANK}, {FULL}"),
        (TOLD, 2, "full", RANK),
        (replace(TOLD, shards=("none", "optimizer")), 2, "none", RANK),
        (replace(TOLD, whole_under_full=900), 2, "none", RANK),  # it would take more
    ],
)
def test_advice_can_be_followed(told: Memory, count: int, shard: Shard, advice: str) -> None:
    assert _remedies(told, count, shard, free=150) == f"{advice}, or take {SMALLER}"


@pytest.mark.parametrize(("count", "shard", "advice"), [(1, "none", ""), (2, "none", FULL)])
def test_where_weights_alone_do_not_fit_no_smaller_batch_is_advised(
    count: int, shard: Shard, advice: str
) -> None:
    wanted = f"{advice}, or take {SMALLER}" if advice else f"take {SMALLER}"
    assert _remedies(ACTIVATIONS, count, shard, free=90) == wanted


def test_settings_that_only_several_processes_refuse(folder: Path) -> None:
    """One process shares nothing out, so it trains with them, and memory is told."""
    told = foretell(experiment(folder, "seqft", shard="full", torch_compile=True), [FIRST])
    assert "full" not in told.shards


def test_tests_that_are_not_asked_do_not_count(folder: Path) -> None:
    long = replace(FIRST.test[0], prompt=FIRST.test[0].prompt * 9)
    task = replace(FIRST, test=(*FIRST.test[:2], long))
    config = experiment(folder, "seqlora")
    asked = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"limit": 2})}
    )
    few, all_of_them = foretell(asked, [task]).largest, foretell(config, [task]).largest
    assert few.asked_positions < all_of_them.asked_positions


@pytest.mark.parametrize(
    ("variant", "changes", "recomputable", "lowers"),
    [
        ("seqft", {}, True, "take seqlora, which trains a LoRA"),
        ("ewc", {"gradient_checkpointing": True}, False, "train fewer weights (method.tune: lora)"),
        ("ewc-lora", {}, True, "lower method.rank"),
    ],
)
def test_advice_is_of_the_settings(
    variant: str, changes: dict[str, Any], recomputable: bool, lowers: str, folder: Path
) -> None:
    told = foretell(experiment(folder, variant, **changes), [FIRST])
    assert (told.recomputable, told.lowers) == (recomputable, lowers)


def test_full_needs_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `training.fit.check_class` says, which has the model."""
    monkeypatch.setattr("retain.learner.memory.layers_of", lambda model: ())
    assert foretell(experiment(folder, "seqlora"), [FIRST]).shards == ("none", "optimizer")


def test_what_cannot_fit_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = experiment(folder, "seqft").model_copy(update={"output": str(tmp_path / "run")})
    need = foretell(config, [FIRST]).per_process(1, "none")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=need - 1))
    with monkeypatch.context() as patch:
        patch.setattr("retain.learner.learned_model.load_backbone", None)
        with pytest.raises(RetainError) as caught:
            stream.learn_stream(config, [FIRST])
    text = str(caught.value)
    assert "this run needs about" in text
    assert "training.gradient_checkpointing=true" in text
    assert "--dry-run prints the table" in text
    assert "\n" not in text
    assert not (tmp_path / "run").exists()


def test_the_table_stands_below_the_experiment(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "copy.jsonl", [example.as_row() for example in FIRST.train])
    values = {"backbone": str(folder), "method": "seqft", "tasks": [{"path": "copy.jsonl"}]}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done = call("run", "exp.yaml", "--dry-run")
    assert done.status == 0, done.err
    assert yaml.safe_load(done.out)["method"]["name"] == "seqft"
    table = [line for line in done.out.splitlines() if line.startswith("#")]
    assert table[0].startswith("# memory of one process: ")
    assert table[-1].startswith("# shard: ")
    assert len(table[-1].split()) == 3 + 2 * 4  # four numbers with their units
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.jsonl", "exp.yaml"]
    values["backbone"] = str(tmp_path / "gone")
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    done = call("run", "exp.yaml", "--dry-run")
    assert done.status == 0, done.err
    assert "# memory: cannot be estimated: backbone" in done.out
    done = call("run", "exp.yaml", "--dry-run", "--set", "backbone.quantization=nf4")
    assert done.status == 2
    assert "full fine-tuning does not work in 4 or 8 bits" in done.err
