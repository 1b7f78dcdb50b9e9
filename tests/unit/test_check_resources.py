"""Every method tells before a run what a task will take, and about as much is then on the disk."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retain.errors import RetainError
from retain.learner.check_resources import check_resources, size
from retain.methods import METHODS
from retain.methods.base import Footprint, bytes_of
from retain.system.files import write_jsonl
from retain.tasks import Example
from retain.testing.runs import Record
from retain.testing.tiny import make_backbone, make_learner, make_task
from retain.training.config import TrainingConfig

FIRST = make_task("copy")


def numbers(folder: Path, pattern: str) -> int:
    """Bytes of the tensors in files, without their headers."""
    files = [load_file(path) for path in folder.rglob(pattern)]
    return sum(t.numel() * t.element_size() for tensors in files for t in tensors.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_task_takes_what_was_told(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def look(folder: Path) -> None:
        seen.append(numbers(folder, "model.safetensors"))

    monkeypatch.setattr("retain.runs.checkpoints.seal", look)
    heard = Record()
    learner = make_learner(method, make_backbone("llama"), tmp_path / "run", heard)
    foretold = learner.method.footprint(FIRST, 6)
    learner.learn(FIRST)
    (line,) = [text for text in heard.said if text.startswith("needs about")]
    assert " 0 bytes" not in line
    folder = learner.run.learned()[0]
    newest = METHODS[method].traits.latest_only
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in newest and path.parent.name != "predictions"
    ]
    kept = sum(path.stat().st_size for path in files)
    assert 0 < foretold.kept < kept
    if method != "lfpt5":  # its untrained prompt writes answers of any length, with their logits
        assert kept < foretold.kept + 16_000  # headers, the log, and records of a fixed size
    assert foretold.trainable >= max(seen) > 0


def test_importance_counts_before_the_lora_is_there(tmp_path: Path) -> None:
    learner = make_learner("ewc-lora", make_backbone("llama"), tmp_path / "run")
    told = learner.method.footprint(FIRST, 6)
    assert told.passing == told.trainable * 2 > 0


def test_information_that_grows_in_training_is_in_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        "retain.runs.checkpoints.seal",
        lambda folder: seen.append(numbers(folder, "model.safetensors")),
    )
    after, during = (
        make_learner(variant, make_backbone("llama"), tmp_path / variant)
        for variant in ("ewc", "ewc-trace")
    )
    told, told_of_batches = (learner.method.footprint(FIRST, 6) for learner in (after, during))
    weights = told.trainable
    assert told_of_batches.passing - told.passing == 2 * weights
    assert told_of_batches.ram - told.ram == weights
    during.learn(FIRST)
    assert set(seen) == {2 * weights}


def test_logits_at_all_positions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner("lwf-trace", make_backbone("llama"), tmp_path / "run")
    without = make_learner("seqft", make_backbone("llama"), tmp_path / "seqft")
    told = learner.method.footprint(FIRST, 6).passing
    told -= without.method.footprint(FIRST, 6).passing
    seen: list[int] = []
    monkeypatch.setattr(
        "retain.methods.lwf.remove_folders",
        lambda folder: seen.append(numbers(folder, "*.safetensors")),
    )
    for name in ("constant", "copy"):
        learner.learn(make_task(name))
    assert seen == [0, told]


def test_examples_take_the_bytes_of_their_file(tmp_path: Path) -> None:
    examples = [Example("他走了吗?", ("是",))]
    write_jsonl(tmp_path / "kept.jsonl", [example.as_row() for example in examples])
    assert bytes_of(examples) + len("\n") == (tmp_path / "kept.jsonl").stat().st_size


def test_on_a_gpu_it_is_the_gpu_s_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method: Any = SimpleNamespace(
        backbone=SimpleNamespace(device=torch.device("cuda:0")),
        footprint=lambda task, batch_size: Footprint(1, 2, 1000),
        lowers=lambda what: {"disk": "x", "ram": "lower method.rank"}[what],
    )
    run: Any = SimpleNamespace(path=tmp_path, unfinished=lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 10**9))
    assert check_resources(method, [(FIRST, TrainingConfig())], run) == (
        "needs about 3 bytes on disk, 1.0 kB on cuda:0, in addition to the model"
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (999, 10**9))
    with pytest.raises(RetainError, match=r"1.0 kB on cuda:0, but 999 bytes are free; lower metho"):
        check_resources(method, [(FIRST, TrainingConfig())], run)


@pytest.mark.parametrize("method", ["replay", "ewc", "multitask", "lwf", "derpp", "seekr"])
def test_advice_is_of_the_options(method: str) -> None:
    for tune, other, advice in (
        ("full", "rank", "train fewer weights (method.tune: lora)"),
        ("lora", "tune", "lower method.rank"),
    ):
        options = METHODS[method].Config.model_validate({"tune": tune})
        told = METHODS[method](make_backbone("llama"), options).lowers("ram")
        assert advice in told
        assert other not in told


@pytest.mark.parametrize(
    ("name", "shard", "numbers"),
    [
        ("seqft", "none", 3),
        ("seqft", "optimizer", 1 + 2 / 2),
        ("seqft", "full", 3 / 2),
        ("seqlora", "full", 3 + 1),  # the block itself is new
    ],
)
def test_two_processes_need_their_shares(
    name: str, shard: str, numbers: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(name, make_backbone("llama"), tmp_path)
    trainable = learner.method.footprint(FIRST, 1).trainable
    training = TrainingConfig.model_validate({"shard": shard})
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = check_resources(learner.method, [(FIRST, training)], learner.run)
    assert f"{size(numbers * trainable)} in RAM" in said


@pytest.mark.parametrize(("optim", "numbers"), [("adamw_torch", 3), ("adafactor", 1), ("sgd", 1)])
def test_the_optimizer_counts(
    optim: str, numbers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as a checkpoint has: the parameters, and what the optimizer keeps of them."""
    sizes: list[int] = []

    def look(folder: Path) -> None:
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))

    monkeypatch.setattr("retain.runs.checkpoints.seal", look)
    heard = Record()
    folder, backbone = tmp_path / "run", make_backbone("llama")
    learner = make_learner("seqft", backbone, folder, heard, optim=optim, save_steps=1)
    learner.learn(FIRST)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    state = 4 * numbers * parameters
    told = next(text for text in heard.said if text.startswith("needs about"))
    assert f"{size(state)} in RAM" in told
    assert state < sizes[0] < state + 60_000  # Trainer's own files, Adafactor's rows and columns
