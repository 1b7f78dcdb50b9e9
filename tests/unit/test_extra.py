"""What is handed on to Trainer: `training.extra` and callbacks; and what is overridden in it."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from retain.errors import RetainError, StoppedError
from retain.experiment.config import ExperimentConfig
from retain.experiment.resume import refuse_changes
from retain.learner.learner import Learner
from retain.testing.runs import content
from retain.testing.tiny import make_backbone, make_learner, make_task
from retain.training import extra, fit, shard, sharded_trainer
from retain.training.config import TrainingConfig
from retain.training.sharded_trainer import ShardedTrainer
from retain.training.trainer import PRIVATE, PhaseTrainer

NAMES = {field.name for field in dataclasses.fields(TrainingArguments)}
FIELDS = set(TrainingConfig.model_fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 1}, "'learning_rate' is a field of training itself; write training.lea"),
        (
            {"output_dir": "x"},
            "'output_dir' is retain's own to set, or has no effect in it",
        ),
        (
            {"label_smoothing_factor": 0.1},
            "'label_smoothing_factor' is retain's own",
        ),
        ({"fp16": True}, r"'fp16' is retain's own .* \(extra takes ddp_bucket_cap_mb, "),
        ({"loging_first_step": 1}, "has no 'loging_first_step'; the closest names are logging_fi"),
        ({"zzz": 1}, "has no 'zzz'; the closest names are ddp_bucket_cap_mb, "),
        ({"ddp_timeout": "long"}, "'ddp_timeout': Input should be a valid integer"),
        ({"lr_scheduler_kwargs": {"cycles": 1}}, "extra 'lr_scheduler_kwargs': .*'cycles'"),
        ({"lr_scheduler_kwargs": {"num_cycles": "many"}}, "extra 'lr_scheduler_kwargs': "),
        ({"lr_scheduler_kwargs": {"num_cycles": math.nan}}, "'lr_scheduler_kwargs': .* finite"),
        ({"lr_scheduler_kwargs": {"num_cycles": [{"a": -math.inf}]}}, "_kwargs': .* finite"),
        ({"lr_scheduler_kwargs": {"num_cycles": np.float32(2)}}, "_kwargs': .* plain Python"),
        ({"lr_scheduler_kwargs": {"num_cycles": 1e308}}, "_kwargs': .*, at step 1 of 100"),
        ({"lr_scheduler_kwargs": ""}, "extra 'lr_scheduler_kwargs': .*mapping"),
        ({"trackio_space_id": math.nan}, "'trackio_space_id': .* finite"),
        ({"torch_empty_cache_steps": 0}, "'torch_empty_cache_steps': .* greater than 0"),
        ({"ddp_bucket_cap_mb": -1}, "'ddp_bucket_cap_mb': .* greater than 0"),
        ({"ddp_timeout": -1}, "'ddp_timeout': .* greater than 0"),
        ({"ddp_timeout": 10**18}, "'ddp_timeout': .* less than"),
        ({"tf32": True}, "'tf32': this machine has no GPU that computes in TF32"),
    ],
)
def test_names_and_values_are_checked(
    values: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extra, "is_torch_tf32_available", lambda: False)
    training = {"extra": values, "lr_scheduler_type": "cosine"}
    with pytest.raises(RetainError, match=message) as refusal:
        Learner("models/none", "seqlora", tmp_path / "run", training=training)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_constant_schedule_takes_no_options() -> None:
    kind = "constant_with_warmup"
    with pytest.raises(ValueError, match=f"the schedule '{kind}' takes none; remove"):
        TrainingConfig(lr_scheduler_type=kind, extra={"lr_scheduler_kwargs": {"num_cycles": 1}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"power": -1}, "0.0 cannot be raised to a negative power, at step 100 of 100"),
        ({"lr_end": -1.0}, "the learning rate is -0.0[0-9]*, at step 1 of 100"),
        ({"power": "2"}, ".* 'float' and 'str'"),
    ],
)
def test_a_schedule_is_tried_out_to_its_end(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"extra 'lr_scheduler_kwargs': {message}"):
        TrainingConfig(lr_scheduler_type="polynomial", extra={"lr_scheduler_kwargs": options})


def test_a_polynomial_schedule_has_steps_after_the_warmup(tmp_path: Path) -> None:
    warmup = {"lr_scheduler_type": "polynomial", "warmup_steps": 2}
    with pytest.raises(ValueError, match=r"warmup_steps \(2\) is the number of all steps"):
        TrainingConfig(max_steps=2, **warmup)
    learner = make_learner(
        "seqlora", make_backbone("llama"), tmp_path, max_steps=-1, num_train_epochs=1, **warmup
    )
    with pytest.raises(RetainError, match=r"phase '.*': warmup_steps \(2\) is the number of all"):
        learner.learn(make_task("copy"))


def test_what_retain_sets_cannot_be_passed() -> None:
    """Everything that fit.py sets by name is refused, and every name that is passed on exists."""
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(fit)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "PlacedArguments"
    ]
    assert len(calls) == 1
    set_by_name = {keyword.arg for keyword in calls[0].keywords} - {None}
    assert {"output_dir", "seed", "max_steps", "save_strategy", "ddp_backend"} <= set_by_name
    assert not set_by_name & set(extra.PASSED_ON)
    missing = set(extra.PASSED_ON) - NAMES
    assert not missing, f"this release of transformers has no TrainingArguments {missing}"


def test_extra_reaches_trainer(tmp_path: Path) -> None:
    def rates(folder: Path, **training: Any) -> list[float]:
        task = make_task("copy")
        learner = make_learner("seqlora", make_backbone("llama"), folder, **training)
        learner.learn(task)
        rows = (folder / "tasks/01-copy/training.jsonl").read_text().splitlines()
        return [eval(row)["learning_rate"] for row in rows]

    schedule = {"lr_scheduler_type": "polynomial", "warmup_steps": 0}
    ends = [
        rates(tmp_path / str(end), **schedule, extra={"lr_scheduler_kwargs": {"lr_end": end}})
        for end in (1e-7, 0.01)
    ]
    assert ends[0] == rates(tmp_path / "plain", **schedule)
    assert ends[1] == pytest.approx([0.02, 0.01 + 0.01 * 2 / 3, 0.01 + 0.01 / 3])


def test_a_task_and_a_resumed_run_are_held_to_it(tmp_path: Path) -> None:
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run")
    bad = dataclasses.replace(make_task("copy"), training={"extra": {"do_eval": True}})
    with pytest.raises(RetainError, match=r"task 'copy': .*'do_eval' is retain's own"):
        learner.learn(bad)
    assert not (tmp_path / "run").exists()
    values = learner.experiment.model_dump()
    values["training"]["extra"] = {"ddp_timeout": 60}
    with pytest.raises(RetainError, match=r"training.extra.ddp_timeout: None is now 60"):
        refuse_changes(learner.experiment, ExperimentConfig(**values), tmp_path / "run", 0)


# -- callbacks


class Count(TrainerCallback):
    """Counts phases and steps; ends training after step `last`."""

    def __init__(self, last: int = -1) -> None:
        self.phases = self.steps = 0
        self.last = last

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.phases += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps += 1
        control.should_training_stop |= state.global_step == self.last
        control.should_save = True


def learner_with(callbacks: Any, folder: Path) -> Learner:
    return Learner(
        make_backbone("llama"),
        {"name": "seqlora", "rank": 2},
        folder,
        training={"max_steps": 3},
        callbacks=callbacks,
    )


def test_callbacks_see_every_phase_and_change_nothing(tmp_path: Path) -> None:
    count = Count()
    seen, plain = (
        learner_with([count], tmp_path / "seen"),
        learner_with([], tmp_path / "plain"),
    )
    for learner in (seen, plain):
        learner.learn(make_task("copy"))
    assert (count.phases, count.steps) == (1, 3)
    assert content(tmp_path / "seen") == content(tmp_path / "plain")
    Learner.load(tmp_path / "seen", None, make_backbone("llama"), callbacks=[count]).learn(
        make_task("constant")
    )
    assert (count.phases, count.steps) == (2, 6)


def test_a_callback_that_ends_training_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="after step 2 of 3"):
        learner_with([Count(last=2)], tmp_path / "run").learn(make_task("copy"))
    again = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    again.learn(make_task("copy"))
    learner_with([], tmp_path / "plain").learn(make_task("copy"))
    assert content(tmp_path / "run") == content(tmp_path / "plain")


@pytest.mark.parametrize("callback", [Count, "wandb", None])
def test_what_is_no_callback_is_refused(callback: Any, tmp_path: Path) -> None:
    with pytest.raises(RetainError, match=r"callbacks: .* is no transformers.TrainerCallback"):
        learner_with([callback], tmp_path / "run")


def test_callbacks_that_retain_cannot_serve_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RetainError, match=r"callbacks: .* is no list; give \[callback\]"):
        learner_with(Count(), tmp_path / "run")
    with pytest.raises(RetainError, match=r"EarlyStoppingCallback waits for Trainer's evaluations"):
        learner_with([EarlyStoppingCallback()], tmp_path / "run")
    learner_with(None, tmp_path / "run")


# -- private names of transformers and torch


def test_this_release_has_the_private_names() -> None:
    """If one is missing: see what has become of it, before pyproject.toml admits the release."""
    private = {**PRIVATE, PreTrainedModel: ("_can_set_attn_implementation", "_no_split_modules")}
    arguments = vars(TrainingArguments(use_cpu=True))  # which has some after __init__ only
    missing = [
        f"{kind.__name__}.{name}"
        for kind, names in private.items()
        for name in names
        if not hasattr(kind, name) and not (kind is TrainingArguments and name in arguments)
    ]
    assert not missing, f"this release of transformers lacks {', '.join(missing)}"
    shares = {name for name in vars(ShardedTrainer) if name in vars(Trainer) and name[:2] != "__"}
    assert shares == {*sharded_trainer.PRIVATE, "train", "training_step"}
    overridden = {name for name in vars(PhaseTrainer) if name in vars(Trainer)}
    assert {name for name in overridden if name[:2] != "__" and name[0] == "_"} == {
        *PRIVATE[Trainer]
    }
    assert overridden - {*PRIVATE[Trainer], "__init__", "__module__", "__doc__"} == {
        "compute_loss",
        "create_optimizer",
        "get_batch_samples",
        "get_train_dataloader",
        "log",
    }


def test_this_release_of_torch_has_the_private_names() -> None:
    imports = [
        (node.module, alias.name)
        for path in Path(extra.__file__).parents[1].rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torch.")
        for alias in node.names
        if "._" in f"{node.module}.{alias.name}"
    ]
    assert ("torch.distributed._composable_state", "_module_state_mapping") in imports
    missing = [
        f"{module}.{name}"
        for module, name in imports
        if not hasattr(importlib.import_module(module), name)
    ]
    kernels = ("_to_copy", "_local_scalar_dense", "_scaled_dot_product_flash_attention_for_cpu")
    missing += [name for name in kernels if not hasattr(torch.ops.aten, name)]
    missing += [
        name for name in ("_compiled_call_impl", "_parameters") if not hasattr(nn.Module(), name)
    ]
    assert not missing, f"this release of torch lacks {', '.join(missing)}"


def test_sharing_out_leaves_nothing_in_a_module() -> None:
    """What torch's `fully_shard` adds is named one by one in `shard`, and some of it is private."""
    module = nn.Linear(2, 2)
    kind, before, hooks = type(module), set(vars(module)), shard._hooks(module)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(module, mesh=dist.init_device_mesh("cpu", (1,)))
        assert set(vars(module)) > before
        shard._undo(module, kind, hooks)
    finally:
        dist.destroy_process_group()
    assert type(module) is kind
    assert set(vars(module)) == before
    assert shard._hooks(module) == hooks
